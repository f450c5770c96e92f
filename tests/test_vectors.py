"""Features of one's own: each item keeps its row, nothing absurd gets in, and no rating is looked at."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.dataset import cold_items, holdout, index_ratings, split
from correct_smooth.encoders import ENCODERS
from correct_smooth.features import MovieFeatures, features_from_state, features_state
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ItemEncoder, ModelConfig
from correct_smooth.partition import partition
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import read_tables, write_tables
from correct_smooth.synthetic import synthetic_books
from correct_smooth.train import TrainConfig
from correct_smooth.vectors import as_vector, check_vectors, more_vectors

QUICK = {
    "graph": GraphConfig(k=4, corating_k=6),
    "model": ModelConfig(emb_dim=4, hidden_dim=8),
    "training": TrainConfig(epochs=2),
    "ensemble": 1,
    "validation": 0.0,
    "progress": False,
}


@pytest.fixture(scope="module")
def library():
    return synthetic_books(40, 60, seed=3)


@pytest.fixture(scope="module")
def data(library):
    return library.data()


def by_hand(ids, rows, items):
    "The oracle: a dense row for each item, looked up one by one."
    out = np.zeros((len(items), rows.shape[1]), np.float32)
    where = {id_: k for k, id_ in enumerate(ids)}
    for k, item in enumerate(items):
        if item in where:
            out[k] = rows[where[item]]
    return out


# --- each item keeps its row


@tried(60, 2000)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from(["frame", "column", "dense", "csr", "csc", "coo", "float16", "int", "cells", "texts"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_rows_find_their_items(n_items, n_rows, width, form, text, seed):
    "Whatever order they come in, and whatever they are kept as."
    rng = np.random.default_rng(seed)
    name = (lambda k: f"item {k}") if text else int
    items = pd.Index([name(k) for k in rng.permutation(15)[:n_items]], name="item_id")
    ids = [name(k) for k in rng.permutation(15)[:n_rows]]
    rows = rng.integers(-8, 8, (n_rows, width)) / (1 if form == "int" else 4)
    made = {
        "frame": lambda: pd.DataFrame(rows, pd.Index(ids)),
        "column": lambda: pd.DataFrame(rows).assign(item_id=ids),
        "dense": lambda: (ids, rows),
        "csr": lambda: (np.array(ids, object), sparse.csr_matrix(rows)),
        "csc": lambda: (ids, sparse.csc_array(rows)),
        "coo": lambda: (pd.Series(ids), sparse.coo_matrix(rows)),
        "float16": lambda: (ids, rows.astype(np.float16)),
        "int": lambda: (ids, rows.astype(np.int8)),
        "cells": lambda: pd.DataFrame({"vector": list(rows)}, pd.Index(ids)),
        "texts": lambda: pd.DataFrame({"vector": [str(row.tolist()) for row in rows], "item_id": ids}),
    }[form]()
    lost = {}
    if not set(ids) & set(items):
        with pytest.raises(InputError, match="no vector is of a known item"):
            check_vectors(made, items, lost)
        return
    found = check_vectors(made, items, lost)
    assert found.dtype == np.float32 and found.has_canonical_format and (found.data != 0).all()
    np.testing.assert_array_equal(found.toarray(), by_hand(ids, rows, items))
    assert list(lost.values()) == [len(set(ids) - set(items)), len(set(items) - set(ids))]


def test_what_was_handed_in_is_not_changed():
    "A sparse matrix with entries twice is summed up in a copy."
    twice = sparse.csr_matrix((np.ones(3), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    found = check_vectors(([5, 6], twice), pd.Index([6, 5]), {})
    assert found.toarray().tolist() == [[1, 0], [0, 2]] and twice.nnz == 3


def test_through_split_and_dataset(data):
    "Positions of items never change, so rows go with them, whatever is hidden."
    dense = data.vectors.toarray()
    whole = index_ratings(data)
    for hide in (holdout, cold_items):
        for part in split(data, hide(data.ratings)):
            assert part.vectors is data.vectors and part.noun == "book"
            inner, _ = split(part, holdout(part))
            assert inner.vectors is data.vectors
    assert whole.vectors is data.vectors
    again = check_vectors((whole.items, whole.vectors), whole.items[::-1], {})
    np.testing.assert_array_equal(again.toarray(), dense[::-1])


def test_later_items_stand_behind(data):
    new = pd.Index([1001, 1002, 1003])
    rows = np.arange(32, dtype=np.float32).reshape(2, 16)
    found = more_vectors(data.vectors, ([1003, 1001], rows), new)
    expected = np.vstack([data.vectors.toarray(), rows[1], np.zeros(16), rows[0]])
    np.testing.assert_array_equal(found.toarray(), expected)


def test_the_block_is_the_direction(data):
    "Rows of length one behind all other columns, on any scale, saved as plain facts."
    features = MovieFeatures().fit(data.movies, vectors=data.vectors)
    X = features.transform(data.movies, data.vectors)
    at = features.blocks_["vectors"]
    assert at.stop == X.shape[1]
    dense = data.vectors.toarray().astype(np.float64)
    direction = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    np.testing.assert_allclose(X[:, at].toarray(), direction, atol=1e-6)
    for factor in (1e-20, 1e-3, 1e12):
        scaled = sparse.csr_matrix(dense * factor, dtype=np.float32)
        other = features.transform(data.movies, scaled)[:, at]
        np.testing.assert_allclose(other.toarray(), direction, atol=1e-5)
    back = features_from_state(json.loads(json.dumps(features_state(features))))
    assert (back.transform(data.movies, data.vectors) != X).nnz == 0


# --- they reach scores, and ratings never reach them


def test_they_speak_in_training_and_in_the_graph(data):
    "Beside the rest, or instead of it; other vectors make other scores."
    model = CorrectSmoothRecommender(**QUICK).fit(data)
    assert {"creators", "vectors", "overview", "numbers"} <= set(model.features_.blocks_)
    shuffled = data.vectors[np.random.default_rng(0).permutation(60)]
    other = CorrectSmoothRecommender(**QUICK).fit(replace(data, vectors=shuffled))
    assert (model.A_ != other.A_).nnz and not model.recommend().equals(other.recommend())
    alone = CorrectSmoothRecommender(**QUICK, features=MovieFeatures.only("vectors")).fit(data)
    assert list(alone.features_.blocks_) == ["vectors"] and alone.X_.shape[1] == 16


def test_given_to_fit(library, data):
    "The same as if they had come with the data; those of the data are left aside."
    bare = replace(data, vectors=None)
    one = CorrectSmoothRecommender(**QUICK).fit(data)
    for start in (bare, replace(data, vectors=data.vectors[::-1])):
        two = CorrectSmoothRecommender(**QUICK).fit(start, features=library.embeddings.iloc[::-1])
        pd.testing.assert_frame_equal(one.recommend(), two.recommend(), check_exact=True)
    few = CorrectSmoothRecommender(**QUICK).fit(bare, features=library.embeddings[:50])
    assert few.dropped_["note: items without a vector, described by the rest alone"] == 10


def test_ratings_do_not_reach_them(data):
    "Content columns are the same, to the last bit, whoever rated what: nothing leaks."
    rng = np.random.default_rng(0)
    other = replace(data, ratings=data.ratings.assign(rating=rng.permutation(data.ratings["rating"])))
    few = replace(data, ratings=data.ratings[::3].reset_index(drop=True))
    first = CorrectSmoothRecommender(**QUICK).fit(data)
    for changed in (other, few):
        X = CorrectSmoothRecommender(**QUICK).fit(changed).X_
        assert (X != first.X_).nnz == 0 and (X.indices == first.X_.indices).all()


def test_cold_items_by_their_vectors(library, data):
    "An item that comes later scores as the one whose vector and facts it has."
    model = CorrectSmoothRecommender(**QUICK).fit(data)
    twin = library.books[:1].assign(book_id=2001)
    model.add_movies(twin, (np.array([2001]), library.embeddings.to_numpy()[:1]))
    X = model.X_.toarray()
    np.testing.assert_allclose(X[-1], X[0], atol=1e-6)
    shared = model.A_[60].toarray()[0] > 0
    assert shared[0]  # the nearest neighbour of the twin is the first book
    with pytest.raises(InputError, match="vectors of the new items have 3 numbers, those known have 16"):
        model.add_movies(twin.assign(book_id=2002), ([2002], np.ones((1, 3))))
    assert len(model.items_) == 61  # refused as a whole
    bare = CorrectSmoothRecommender(**QUICK).fit(replace(data, vectors=None))
    with pytest.raises(InputError, match="have no vectors, so new ones cannot have any"):
        bare.add_movies(twin, ([2001], np.ones((1, 16))))


# --- bad input

BAD = {
    "nan": (np.array([[1, np.nan], [1, 2]]), "item 1 holds nan at place 1"),
    "inf": (np.array([[1, 2], [-np.inf, 2]]), "item 2 holds -inf at place 0"),
    "absurd": (np.array([[1, 2], [1e15, 2]]), "item 2 holds 1000000000000000.0 at place 0"),
    "lowest": (np.array([[1, 2], [-(2**63), 2]]), "item 2 holds -9223372036854775808 at place 0"),
    "float64 beyond float32": (np.array([[1e300, 2], [1, 2]]), "item 1 holds 1e\\+300"),
    "sparse nan": (sparse.csr_matrix([[0, np.nan], [0, 1]]), "item 1 holds nan at place 1"),
    "1-d": (np.ones(2), "got 1 dimensions"),
    "3-d": (np.ones((2, 2, 2)), "got 3 dimensions"),
    "0-d": (np.float64(1), "got 0 dimensions"),
    "complex": (np.eye(2) * 1j, "of complex128"),
    "object": (np.array([[1, None], [2, 3]]), "of object"),
    "text": (np.array([["a", "b"], ["c", "d"]]), "matrix of real numbers"),
    "dates": (np.array([["2020-01-01"], ["2020-01-02"]], "datetime64[D]"), "of datetime64"),
    "too many rows": (np.eye(3, 2), "2 ids of vectors and 3 rows"),
    "no columns": (np.empty((2, 0)), "at least one number each"),
    "ragged": ([[1, 2], [3]], "the matrix of vectors cannot be read"),
    "masked": (np.ma.masked_equal(np.eye(2), 0), "masked places"),
    "none": (None, "got 0 dimensions"),
    "a word": ("vectors", "got 0 dimensions"),
    "a dict": ({1: [1, 2]}, "got 0 dimensions"),
    "gradient": (torch.ones(2, 2, requires_grad=True), "the matrix of vectors cannot be read"),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_matrices_are_named(which):
    matrix, message = BAD[which]
    with pytest.raises(InputError, match=message):
        check_vectors(([1, 2], matrix), pd.Index([1, 2, 3]), {})


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.eye(2), "does not say whose its rows are"),
        (sparse.eye(2), "does not say whose its rows are"),
        ({1: [1, 2]}, "does not say whose its rows are"),
        ("vectors.npy", "got str"),
        (7, "got int"),
        (([1], np.eye(1), 3), "got tuple"),
        (([1, 1], np.eye(2)), "item 1 has two vectors"),
        ((["1", 1], np.eye(2)), "all whole numbers .* or all text"),
        (([1.5, 2], np.eye(2)), "all whole numbers"),
        (([1, np.nan], np.eye(2)), "row 1 of the vectors has no item id"),
        (([[1], [2]], np.eye(2)), "ids of vectors|all whole numbers"),
        ((7, np.eye(1)), "no vector is of a known item"),
        ((["x"], np.eye(1)), "no vector is of a known item"),
        (([True, False], np.eye(2)), "all whole numbers"),
        (pd.DataFrame({"x": [1, 2]}, [1, 1]), "item 1 has two vectors"),
        (pd.DataFrame({"x": ["a", "b"]}, [1, 2]), "column 'x' of the vectors holds no numbers"),
        (pd.DataFrame({"x": [1, None]}, [1, 2]), "item 2 holds nan"),
        (pd.DataFrame(index=[1, 2]), "at least one number each"),
        (pd.DataFrame({"vector": ["1 2", "3"]}, [1, 2]), "vector of item 2 has 1 numbers, that of 1 has 2"),
        (pd.DataFrame({"vector": ["1 2", "red"]}, [1, 2]), "vector of item 2 cannot be read"),
        (pd.DataFrame({"vector": ["[1 ... 2]"]}, [1]), "it was shortened|was shortened"),
        (pd.DataFrame({"vector": [None, None]}, [1, 2]), "at least one number each"),
        (pd.DataFrame({"item_id": [1], "x": [1j]}), "holds nothing|real numbers|no numbers"),
    ],
)
def test_bad_hand_overs_are_named(vectors, message):
    with pytest.raises(InputError, match=message):
        check_vectors(vectors, pd.Index([1, 2, 3]), {})


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=8,
)


@tried(400, 10_000)
@given(ANY, ANY, st.integers(0, 3))
def test_anything_at_all(ids, matrix, form):
    "An answer of finite numbers, or our error; never another."
    if form == 0:
        vectors = (ids, matrix)
    elif form == 1:
        vectors = ids
    elif form == 2:
        vectors = ([1, 2], matrix)
    else:
        vectors = pd.DataFrame({"vector": pd.Series([ids, matrix], dtype=object)}, index=[1, 2])
    try:
        found = check_vectors(vectors, pd.Index([1, 2, 3]), {})
    except InputError as error:
        assert str(error)
    else:
        assert found.shape[0] == 3 and np.isfinite(found.data).all()


@tried(200, 5000)
@given(ANY)
def test_any_cell(cell):
    try:
        row = as_vector(cell)
    except ValueError:
        return
    assert row is None or (row.ndim == 1 and row.dtype == np.float64)


def test_vectors_of_too_few_rows_are_noticed(data):
    "A table cut without its vectors, or the other way round."
    with pytest.raises(InputError, match="vectors of 60 items and a table of 50; cut both alike"):
        CorrectSmoothRecommender(**QUICK).fit(
            replace(data, movies=data.movies[:50], ratings=data.ratings[data.ratings["item_id"] <= 50])
        )


# --- an encoder of one's own


class Doubled(ItemEncoder):
    "What a user might write: the sparse sum, and a layer on top."

    def __init__(self, n_features, n_items, config):
        super().__init__(n_features, n_items, config)
        self.more = torch.nn.Linear(config.hidden_dim, config.hidden_dim)

    def hidden(self, bag, neighbours):
        return torch.relu(self.more(super().hidden(bag, neighbours)))


def test_an_encoder_of_ones_own(data, tmp_path, monkeypatch):
    "Trains on vectors, is saved by its name, loads where the name is known, and is missed where it is not."
    monkeypatch.setitem(ENCODERS, "doubled", Doubled)
    settings = {**QUICK, "model": ModelConfig(emb_dim=4, hidden_dim=8, encoder="doubled")}
    model = CorrectSmoothRecommender(**settings).fit(data)
    assert isinstance(model.models_[0].encoder, Doubled)
    model.save(tmp_path / "model")
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    pd.testing.assert_frame_equal(back.recommend(), model.recommend(), check_exact=True)
    monkeypatch.delitem(ENCODERS, "doubled")
    for ask in (
        lambda: CorrectSmoothRecommender.load(tmp_path / "model"),
        lambda: ModelConfig(encoder="doubled"),
    ):
        with pytest.raises(InputError, match="encoder must be one of .*'doubled'.*import the module"):
            ask()


def test_tables_of_ones_own_keep_vectors(data, tmp_path):
    "Written and read again: the same items, creators and vectors."
    write_tables(data, tmp_path / "books")
    partition(tmp_path / "books", tmp_path / "dealt", progress=False)
    for folder in ("books", "dealt"):
        again = read_tables(tmp_path / folder)
        assert (again.vectors != data.vectors).nnz == 0 and not again.dropped
    assert again.movies["creators"].tolist() == data.movies["creators"].tolist()
    assert movie_data(data.movies, data.ratings).vectors is None
