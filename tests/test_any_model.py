"""Scores of any model: equal to the recommender's own and to dense NumPy, in every form they may come in."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounding import rounding
from scipy import sparse

from correct_smooth import correct_and_smooth, graph_of, refined_blocks
from correct_smooth.any_model import as_labels, as_operators, as_probabilities
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth, Operators
from correct_smooth.dataset import targets
from correct_smooth.diffusion import Diffusion
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

SOME = tried(20, 300)


@st.composite
def worlds(draw):
    "Scores by ids, labels with holes, and a symmetric graph without loops."
    m, n = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    A = rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < 0.4)
    A = np.float32(np.maximum(A, A.T))
    np.fill_diagonal(A, 0)
    A[0, 1] = A[1, 0] = 0.5
    users = pd.Index([f"u{k}" for k in rng.permutation(m)], name="user_id")
    items = pd.Index(rng.permutation(n) + 10, name="item_id")
    labels = np.where(rng.random((m, n)) < 0.4, rng.integers(0, 2, (m, n)), np.nan)
    scores = pd.DataFrame(rng.random((m, n), np.float32), users, items)
    return scores, pd.DataFrame(labels, users, items), A


def dense(Z, Y, A, settings):
    "The default rule with one step of smoothing or none, in float64, item by item."
    Z, A = Z.astype(float), A.astype(float)
    out, weights = Z.copy(), A + np.eye(len(A))
    for u in range(len(Z)):
        known = ~np.isnan(Y[u])
        alpha = settings.alpha * known.sum() / max(known.sum() + settings.half_trust, 1e-9)
        total = weights[:, known].sum(axis=1)
        error = weights[:, known] @ (Y[u] - Z[u])[known]
        out[u] += alpha * np.where(total > 0, error / np.maximum(total + settings.shrinkage, 1e-9), 0)
    degree = A.sum(axis=1)
    S = np.where(degree[:, None] > 0, A / np.maximum(degree, 1e-9)[:, None], np.eye(len(A)))
    for _ in range(settings.T):
        out = (1 - settings.beta) * out + settings.beta * out @ S.T
    return np.clip(out, 0, 1)


def forms_of_labels(labels):
    "The same labels in all forms."
    user, item = np.nonzero(labels.notna().to_numpy())
    value = labels.to_numpy()[user, item]
    stored = sparse.csr_matrix((value, (user, item)), shape=labels.shape)
    long = pd.DataFrame({"user_id": labels.index[user], "item_id": labels.columns[item], "label": value})
    array = labels.to_numpy(copy=True)
    shuffled = labels.iloc[::-1, ::-1]
    return [
        array,
        torch.from_numpy(array),
        stored,
        stored.tocsc(),
        stored.tocoo(),
        long,
        long[::-1],
        shuffled,
    ]


def forms_of_graphs(A, items):
    "The same graph in all forms."
    i, j = np.nonzero(np.triu(A))
    table = pd.DataFrame({"source": items[i], "target": items[j], "weight": A[i, j]})
    index = np.stack([i, j])
    drawn = nx.from_pandas_edgelist(table, edge_attr=True)
    matrix = sparse.csr_matrix(A)
    return [
        matrix, matrix.tocsc(), matrix.tolil(), sparse.coo_array(A.astype(float)), Operators(matrix),
        table, drawn, (index, A[i, j]), (torch.from_numpy(index), torch.from_numpy(A[i, j])),
    ]  # fmt: skip


@SOME
@given(worlds(), st.sampled_from([0.0, 6.0]), st.integers(0, 2))
def test_equal_to_dense_numpy(world, shrinkage, T):
    "Whatever form labels and graph come in."
    scores, labels, A = world
    settings = CorrectAndSmooth(shrinkage=shrinkage, T=T)
    wanted = dense(scores.to_numpy(), labels.to_numpy(), A, settings)
    bound = rounding(40 * (len(A) + T), 2 * settings.alpha)
    for form in forms_of_labels(labels):
        found = correct_and_smooth(scores, form, sparse.csr_matrix(A), settings)
        assert_allclose(found.to_numpy(), wanted, rtol=0, atol=bound)
        assert found.index is scores.index and found.columns is scores.columns
    for form in forms_of_graphs(A, scores.columns):
        found = correct_and_smooth(scores, labels, form, settings)
        assert_allclose(found.to_numpy(), wanted, rtol=0, atol=bound)


@SOME
@given(worlds(), st.sampled_from([CorrectAndSmooth(T=1), Diffusion(T=2), CorrectAndSmooth("own", T=1)]))
def test_forms_of_scores_and_blocks_agree(world, settings):
    "A table, an array, a tensor, other units, and a block at a time give the same bits or nearly."
    scores, labels, A = world
    graph, values = sparse.csr_matrix(A), scores.to_numpy(copy=True)
    stored = as_labels(labels, scores.index, scores.columns).T
    table = correct_and_smooth(scores, labels, graph, settings).to_numpy()
    before = values.copy()
    for form in (values, torch.from_numpy(values)):
        assert_array_equal(correct_and_smooth(form, stored, graph, settings), table)
    blocks = refined_blocks(lambda at: values[at], stored, graph, settings, megabytes=1e-5)
    assert_allclose(np.vstack([block for _, block in blocks]), table, rtol=0, atol=1e-6)
    assert_array_equal(values, before)
    for unit, other in (("percent", 100 * scores), ((1, 5), 1 + 4 * scores.astype(float))):
        found = correct_and_smooth(other, labels, graph, settings, unit)
        assert_allclose(found.to_numpy(), table, rtol=0, atol=1e-5)


def test_equal_to_the_recommender():
    "Its own base scores, labels and graph give its own refined scores, to the last bit."
    data = synthetic_data(60, 80, 1_500, seed=0)
    r = CorrectSmoothRecommender(training=TrainConfig(epochs=2), ensemble=1, validation=0.0, progress=False)
    r.fit(data)
    known, n = r.data_, len(r.users_)
    ((_, base, refined),) = r.scorer_.blocks(np.arange(n), megabytes=1e9)
    scores = pd.DataFrame(base.T, r.users_, r.items_)
    ids = {"user_id": known.users[known.user], "item_id": known.items[known.item]}
    told = pd.DataFrame({**ids, "label": targets(known, r.training.target)})
    found = correct_and_smooth(scores, told, r.A_, r.refinement)
    assert_array_equal(found.to_numpy(), refined.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": "logits"}, "unit='logit'"),
        ({"scores": "stars"}, r"unit=\(1, 5\)"),
        ({"scores": "percent"}, "unit='percent'"),
        ({"scores": "holes"}, "score of user 'ann' and item 2 is nan"),
        ({"scores": "classes"}, "predict_proba"),
        ({"scores": "twice"}, "'ann' is there twice"),
        ({"scores": "text"}, "scores must be numbers in all columns"),
        ({"scores": [[0.5]]}, "scores must be a table or an array .* got list"),
        ({"scores": sparse.eye(2).tocsr()}, "scores must be a table or an array"),
        ({"labels": "ratings"}, "label of user 'ann' and item 1 is 4.*liked=4"),
        ({"labels": "stranger"}, "user 'eve' is unknown"),
        ({"labels": "other item"}, "item 9 is unknown"),
        ({"labels": "again"}, "have one already"),
        ({"labels": np.ones((3, 2))}, r"labels are of shape \(3, 2\), and scores have 2 users x 3 items"),
        ({"labels": np.full((2, 3), "x")}, "labels must be a table"),
        ({"labels": None}, "labels are of shape"),
        ({"graph": sparse.eye(2).tocsr()}, "a graph of 3 items is a sparse matrix of 3 x 3"),
        ({"graph": np.array([[0, 3], [1, 2]])}, "positions from 0 to 2"),
        ({"graph": None}, "edges must be a DataFrame"),
        ({"settings": "own"}, "must be of the class Refinement"),
        ({"unit": "odds"}, "one of probability, logit, percent"),
        ({"unit": (5, 1)}, "highest of unit must be a number from 5"),
        ({"unit": ("a", 1)}, "lowest of unit must be a number"),
        ({"liked": "most"}, "liked must be a number"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_way_out(change, message):
    "By name, row or id."
    scores = pd.DataFrame([[0.2, 0.5, 0.9], [0.4, 0.5, 0.6]], index=["ann", "bob"], columns=[1, 2, 3])
    told = pd.DataFrame({"user_id": ["ann"], "item_id": [1], "label": [1.0]})
    odd = {
        "logits": 3 * scores - 2, "stars": 5 * scores, "percent": 100 * scores,
        "holes": scores.mask(scores == 0.5), "classes": (scores > 0.5).astype(int),
        "twice": scores.loc[["ann", "ann"]], "text": scores.assign(**{"2": "x"}),
        "ratings": told.assign(label=4), "stranger": told.assign(user_id="eve"),
        "other item": told.assign(item_id=9), "again": pd.concat([told, told]),
    }  # fmt: skip
    given = {
        "scores": scores,
        "labels": told,
        "graph": sparse.csr_matrix(np.ones((3, 3)) - np.eye(3)),
        **change,
    }
    given = {
        name: odd.get(value, value) if isinstance(value, str) else value for name, value in given.items()
    }
    with pytest.raises(InputError, match=message) as caught:
        correct_and_smooth(**given)
    assert "movie" not in str(caught.value)


@SOME
@given(worlds(), st.sampled_from([4.0, "mean"]))
def test_ratings_become_labels(world, liked):
    "By a line for all, or each user's own mean; equal to a loop."
    scores, labels, _ = world
    ratings = labels * 3 + 1.5
    found = as_labels(ratings, scores.index, scores.columns, liked)
    for u, row in enumerate(ratings.to_numpy()):
        line = np.nanmean(row) if liked == "mean" and not np.isnan(row).all() else 4.0
        wanted = [(i, float(row[i] >= line)) for i in np.flatnonzero(~np.isnan(row))]
        column = found[:, [u]]
        assert sorted(zip(column.indices, column.data, strict=True)) == wanted


@SOME
@given(worlds(), st.integers(1, 5))
def test_a_graph_of_features_is_by_id_or_by_place(world, k):
    "A table with ids in any order, an array and a tensor make the same graph."
    scores, _, A = world
    table = pd.DataFrame(A, scores.columns)
    by_place = graph_of(A, k)
    assert_array_equal(by_place.toarray(), graph_of(torch.from_numpy(A), k).toarray())
    assert_array_equal(by_place.toarray(), graph_of(sparse.csr_matrix(A), k).toarray())
    if by_place.nnz:
        assert_allclose(
            as_operators(graph_of(table, k), scores.columns).A.toarray(), by_place.toarray(), rtol=1e-6
        )


def test_rounding_of_probabilities_is_forgiven():
    "A sum that misses 1 by a few eps is 1."
    found = as_probabilities(np.array([[1 + 1e-7, -1e-9]]))
    assert_array_equal(found, [[1, 0]])
