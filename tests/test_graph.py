"""Graphs against dense references, and edge files that are not what they say."""

import gzip
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from correct_smooth import graph
from correct_smooth.checks import InputError
from correct_smooth.dataset import Interactions
from correct_smooth.edges import both_ways, edge_graph, given_graph, read_edges
from correct_smooth.graph import (
    GraphConfig,
    corating_knn,
    cosine_knn,
    graph_statistics,
    item_graph,
    neighbours,
    normalise,
    symmetrise,
)

SOME = tried(20, 300)
ITEMS = pd.Index([10, 20, 30, 40, 50], name="item_id")


@st.composite
def features(draw):
    "Sparse rows of two to fifteen movies; equal rows, empty rows and negative values occur."
    n, d = draw(st.integers(2, 15)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    X = rng.choice([0, 0, 1, 2.5, -1], (n, d)) if draw(st.booleans()) else rng.random((n, d))
    X[rng.random(n) < draw(st.sampled_from([0, 0.3]))] = 0
    X = X[rng.integers(0, n, n)] if draw(st.booleans()) else X
    return sparse.csr_matrix(X.astype(np.float32))


@st.composite
def graphs(draw):
    "A directed graph with weights of 0 or more, some movies alone."
    n = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    A = rng.uniform(0.01, 5, (n, n)) * (rng.random((n, n)) < draw(st.sampled_from([0, 0.15, 0.9])))
    np.fill_diagonal(A, 0)
    return sparse.csr_matrix(A.astype(np.float32))


def cosines(X):
    "All cosine similarities, 0 for empty rows and for a movie with itself."
    X = X.toarray().astype(np.float64)
    length = np.linalg.norm(X, axis=1, keepdims=True)
    X = X / np.where(length > 0, length, 1)
    C = X @ X.T
    np.fill_diagonal(C, 0)
    return C


@SOME
@given(features(), st.data())
def test_nearest_neighbours_equal_a_dense_reference(X, data):
    "Each row holds the k largest positive cosines, and no movie is its own neighbour."
    n = X.shape[0]
    k = data.draw(st.integers(1, n - 1))
    A = cosine_knn(X, k, n_threads=1)
    C, row = cosines(X), np.repeat(np.arange(n), np.diff(A.indptr))
    assert A.shape == (n, n) and A.dtype == np.float32
    assert np.diff(A.indptr).max() <= k
    assert (A.indices != row).all() and (A.data > 0).all()
    assert_allclose(A.data, C[row, A.indices], rtol=0, atol=1e-5)
    best = -np.sort(-np.maximum(C, 0), axis=1)[:, :k]
    assert_allclose(-np.sort(-A.toarray(), axis=1)[:, :k], best, rtol=0, atol=1e-5)


@SOME
@given(features())
def test_movies_without_features_stand_alone(X):
    "An empty row is nobody's neighbour and has none."
    A = cosine_knn(X, 1, n_threads=1).toarray()
    empty = (X.toarray() == 0).all(axis=1)
    assert (A[empty] == 0).all() and (A[:, empty] == 0).all()


def test_threads_and_lengths_do_not_matter():
    "One thread or two, short or long rows: the same neighbours."
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.random((60, 8)).astype(np.float32))
    longer = sparse.csr_matrix(sparse.diags(2.0 ** rng.integers(-3, 4, 60)) @ X)
    A = cosine_knn(X, 5, n_threads=1)
    for other in (cosine_knn(X, 5, n_threads=2), cosine_knn(longer, 5, n_threads=1)):
        assert_array_equal(other.indices, A.indices)
        assert_allclose(other.data, A.data, rtol=1e-6)


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_leave_a_neighbour(k):
    "k below 1 is refused by value."
    with pytest.raises(InputError, match=f"k must be .*got {k}"):
        cosine_knn(sparse.csr_matrix(np.eye(3, dtype=np.float32)), k)


@SOME
@given(features(), st.integers(0, 5))
def test_k_beyond_the_catalogue_takes_all_others(X, more):
    "As many neighbours as there are other movies, whatever is asked for."
    n = X.shape[0]
    found, wanted = (cosine_knn(X, k, n_threads=1) for k in (n + more, n - 1))
    assert_array_equal(found.toarray(), wanted.toarray())


@st.composite
def catalogues(draw):
    "Some tens of movies with a few common columns and many rare ones; equal and empty rows occur."
    n, rng = draw(st.integers(40, 120)), np.random.default_rng(draw(st.integers(0, 10_000)))
    common = rng.random((n, draw(st.integers(0, 4)))) < 0.4
    rare = (rng.random((n, 60)) < 0.06) * rng.choice([1, 2.5, draw(st.sampled_from([0.5, -1]))], (n, 60))
    X = np.hstack([common, rare])[rng.integers(0, n, n) if draw(st.booleans()) else slice(None)]
    X[rng.random(n) < draw(st.sampled_from([0, 0.2]))] = 0
    return sparse.csr_matrix(X.astype(np.float32))


def by_bounds(X, k, **options):
    "The graph as of a large catalogue, in groups of some three movies."
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(graph, "_MANY", 0)
        patched.setattr(graph, "_GROUP", 3)
        return cosine_knn(X, k, **options)


@SOME
@given(catalogues(), st.integers(1, 2))
def test_search_by_bounds_equals_brute_force(X, k):
    "scikit-learn's cosines, one thread or two; of equally near movies the first ones."
    n = X.shape[0]
    A = by_bounds(X, k, n_threads=1)
    distance, _ = NearestNeighbors(n_neighbors=n, metric="cosine", algorithm="brute").fit(X).kneighbors(X)
    filled = np.diff(X.indptr) > 0
    own = np.append(1 - distance[:, 1:], np.zeros((n, 1)), axis=1)[:, :k]  # the first is the movie itself
    got = -np.sort(-A.toarray(), axis=1)[:, :k]
    assert_allclose(got[filled], np.maximum(own, 0)[filled], rtol=0, atol=1e-5)
    assert (got[~filled] == 0).all() and (A[:, ~filled].toarray() == 0).all()
    assert (A.diagonal() == 0).all() and (A.data > 0).all()
    other = by_bounds(X, k, n_threads=2)
    assert_array_equal(A.indices, other.indices)
    assert_array_equal(A.data, other.data)


@SOME
@given(catalogues(), st.data())
def test_search_by_bounds_finds_some_rows_alike(X, data):
    "Neighbours of some movies are those they have among all, bit by bit."
    n = X.shape[0]
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    A, some = by_bounds(X, 2), by_bounds(X, 2, rows=rows)
    assert_array_equal(some[rows].toarray(), A[rows].toarray())
    assert some.nnz == A[rows].nnz


def test_search_by_bounds_keeps_the_first_of_equals():
    "Of many movies that are equally near, those that stand first."
    X = sparse.csr_matrix(np.tile(np.float32([[3, 4, 0], [0, 1, 1]]), (40, 1)))
    A = by_bounds(X, 3)
    assert_array_equal(A.indices.reshape(-1, 3)[6:], np.tile([[0, 2, 4], [1, 3, 5]], (37, 1)))


def test_large_catalogues_have_the_same_graph():
    "By bounds as by all products, where groups are passed over and runs begin anew."
    rng = np.random.default_rng(0)
    kind, n = np.sort(rng.integers(0, 12, 12_000)), 12_000
    words = sparse.random(n, 3_000, 0.004, "csr", rng=rng)
    X = sparse.hstack([sparse.csr_matrix(np.eye(12)[kind] + np.eye(12)[(kind * 5 + 1) % 12]), words])
    X = sparse.csr_matrix(X, dtype=np.float32)
    A, B = (by_bounds(X, 20), cosine_knn(X, 20))
    for some in (A, B):
        assert (np.diff(some.indptr) == 20).all()
    assert_allclose(*(np.sort(o.data.reshape(n, 20), axis=1) for o in (A, B)), rtol=0, atol=1e-5)


@st.composite
def rated(draw, n_items=None):
    "Ratings of a few movies by a few users; some movies have none, some users rate all alike."
    n_users, n_items = draw(st.integers(1, 6)), n_items or draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    user, item = np.nonzero(rng.random((n_users, n_items)) < draw(st.sampled_from([0.3, 0.9])))
    stars = rng.integers(1, 11, len(user)) / 2
    stars[user < draw(st.integers(0, 2))] = 3.5
    users, items = pd.RangeIndex(n_users), pd.RangeIndex(n_items)
    at = user.astype(np.int32), item.astype(np.int32)
    return Interactions(*at, stars.astype(np.float32), np.ones(len(user), np.float32), users, items)


def coratings(pairs, shrinkage):
    "Shrunk correlation of every two movies over users, from each user's mean; 0 on the diagonal."
    R = np.full((len(pairs.users), len(pairs.items)), np.nan)
    R[pairs.user, pairs.item] = pairs.rating
    centred = np.zeros_like(R)
    for u, own in enumerate(R):
        has = ~np.isnan(own)
        centred[u, has] = own[has] - own[has].mean() if has.any() else 0
    freedom = max(sum(max((~np.isnan(own)).sum() - 1, 0) for own in R), 1)
    spread = np.sqrt((centred**2).sum() / freedom) or 1
    size = np.sqrt((centred**2).sum(0) + shrinkage * spread**2)
    C = centred.T @ centred / np.where(np.outer(size, size) > 0, np.outer(size, size), 1)
    np.fill_diagonal(C, 0)
    return C


@SOME
@given(rated(), st.integers(1, 12), st.sampled_from([0.0, 0.5, 5.0]))
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")  # see the next test
def test_corating_equals_a_dense_reference(pairs, k, shrinkage):
    "Each row holds the k largest positive shrunk correlations, and no movie is its own neighbour."
    C, n = corating_knn(pairs, k, shrinkage, n_threads=1), len(pairs.items)
    wanted, row = coratings(pairs, shrinkage), np.repeat(np.arange(n), np.diff(C.indptr))
    assert C.shape == (n, n) and C.dtype == np.float32
    assert np.diff(C.indptr).max() <= k
    assert (C.indices != row).all() and (C.data > 0).all() and (C.data <= 1 + 1e-5).all()
    assert_allclose(C.data, wanted[row, C.indices], rtol=0, atol=1e-5)
    best = -np.sort(-np.maximum(wanted, 0), axis=1)[:, :k]
    assert_allclose(-np.sort(-C.toarray(), axis=1)[:, :k], best, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_corating_without_shrinkage_divides_by_nothing():
    "Movies without ratings, or rated at everybody's mean only, have no neighbours, and no warning."
    cells = np.array([0, 0, 0, 1, 1], np.int32), np.array([0, 1, 2, 1, 2], np.int32)
    stars = np.array([1, 3, 2, 5, 5], np.float32)
    pairs = Interactions(*cells, stars, stars, pd.RangeIndex(2), pd.RangeIndex(4))
    assert corating_knn(pairs, 3, shrinkage=0).nnz == 0


@SOME
@given(rated(), st.integers(-3, 3))
def test_corating_forgives_strict_users(pairs, more):
    "A user who gives everything more stars, or fewer, changes nothing."
    strict = np.where(pairs.user == 0, pairs.rating + more, pairs.rating).astype(np.float32)
    there, back = (corating_knn(o, 9, n_threads=1) for o in (pairs, replace(pairs, rating=strict)))
    assert_allclose(back.toarray(), there.toarray(), rtol=0, atol=1e-5)


@SOME
@given(rated(n_items=6), st.sampled_from([0.0, 0.5, 2.0]), st.booleans())
def test_movie_graph_adds_up_content_and_corating(pairs, weight, mutual):
    "The graph is content plus so many times co-rating, averaged over directions if asked for."
    X = sparse.csr_matrix(np.random.default_rng(0).random((6, 4)).astype(np.float32))
    config = GraphConfig(k=2, corating=weight, corating_k=1, corating_shrinkage=5, symmetrise=mutual)
    content, rating = cosine_knn(X, 2).toarray(), corating_knn(pairs, 1, 5.0).toarray()
    wanted = content + weight * rating
    wanted = (wanted + wanted.T) / 2 if mutual else wanted
    found = item_graph(X, {"genres": slice(0, 4)}, pairs, config).toarray()
    assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_movie_graph_compares_by_the_chosen_blocks():
    "Movies alike in genres only are neighbours by genres, not by keywords."
    X = sparse.csr_matrix(np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]], np.float32))
    blocks = {"genres": slice(0, 2), "keywords": slice(2, 4)}
    nobody = Interactions(*(np.zeros(0, np.int32),) * 4, pd.RangeIndex(0), pd.RangeIndex(3))
    by_genres, by_keywords = (
        item_graph(X, blocks, nobody, GraphConfig(1, (o,), corating=0)).toarray() for o in blocks
    )
    assert_array_equal(by_genres, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert_array_equal(by_keywords, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])


@SOME
@given(graphs())
def test_row_sums_are_one(A):
    "Row-normalised weights of every movie sum to 1, also where it had no neighbour."
    S = normalise(A, "row")
    assert_allclose(S.sum(axis=1), 1, rtol=0, atol=1e-5)
    assert (S.data >= 0).all()


@SOME
@given(graphs(), st.sampled_from(["row", "symmetric", "column"]))
def test_normalise_equals_a_dense_reference(A, how):
    "Each weight is divided by what the definition says; movies alone keep to themselves."
    dense = A.toarray().astype(np.float64)
    dense += np.diag(dense.sum(1) == 0)
    degree = dense.sum(0 if how == "column" else 1)
    degree[degree == 0] = 1
    i, j = np.ogrid[: len(dense), : len(dense)]
    share = {"row": degree[i], "column": degree[j], "symmetric": np.sqrt(degree[i] * degree[j])}
    assert_allclose(normalise(A, how).toarray(), dense / share[how], rtol=1e-5, atol=1e-7)


@SOME
@given(graphs())
def test_symmetric_normalisation_does_not_amplify(A):
    "On a mutual graph no eigenvalue of S is above 1 in size."
    S = normalise(symmetrise(A), "symmetric").toarray()
    assert_allclose(S, S.T, rtol=0, atol=1e-6)
    assert np.abs(np.linalg.eigvalsh(S)).max() <= 1 + 1e-5


@SOME
@given(graphs())
def test_symmetrise_averages_both_directions(A):
    "Every weight becomes the mean of both directions, so the total stays."
    dense, found = A.toarray(), symmetrise(A).toarray()
    assert_array_equal(found, found.T)
    assert_allclose(found, (dense + dense.T) / 2, rtol=1e-6)
    assert_allclose(found.sum(), dense.sum(), rtol=1e-5)


def test_unknown_normalisation_is_named():
    "A normalisation that does not exist is refused by name."
    with pytest.raises(InputError, match="'rows'"):
        normalise(sparse.csr_matrix((2, 2), dtype=np.float32), "rows")


EDGES = st.lists(
    st.tuples(
        st.sampled_from([*ITEMS, 99]),
        st.sampled_from([*ITEMS, -1]),
        st.sampled_from([0.0, 0.25, 1.0, 7.5]),
    ),
    min_size=1,
    max_size=25,
)


def as_table(edges):
    "Edges as a frame."
    return pd.DataFrame(edges, columns=["source", "target", "weight"])


@SOME
@given(EDGES)
def test_edge_graph_equals_a_dense_reference(edges):
    "The largest weight of each known pair, no movie with itself, and a count of what was left out."
    wanted, at = np.zeros((5, 5)), {o: k for k, o in enumerate(ITEMS)}
    for i, j, w in edges:
        if i in at and j in at and i != j:
            wanted[at[i], at[j]] = max(w, wanted[at[i], at[j]])
    if not wanted.any():
        with pytest.raises(InputError, match=f"edges hold.*{edges[0][0]}"):
            edge_graph(as_table(edges), ITEMS)
        return
    dropped = {}
    A = edge_graph(as_table(edges), ITEMS, dropped)
    assert_array_equal(A.toarray(), wanted.astype(np.float32))
    assert A.nnz == (wanted > 0).sum()  # no stored zeros
    assert A.nnz + sum(dropped.values()) == len(edges)
    assert dropped["edges with an unknown item"] == sum(not {*e[:2]} <= at.keys() for e in edges)
    assert dropped["edges from an item to itself"] == sum(e[0] == e[1] for e in edges)


@SOME
@given(EDGES, st.randoms(use_true_random=False))
def test_order_of_edges_does_not_matter(edges, random):
    "Shuffled edges give the same graph."
    edges = [*edges, (10, 20, 0.5)]
    there = edge_graph(as_table(edges), ITEMS)
    back = edge_graph(as_table(random.sample(edges, len(edges))), ITEMS)
    assert_array_equal(back.toarray(), there.toarray())


NAMES = st.sampled_from(["source", "Source", " SOURCE ", "from", "src"])


@SOME
@given(EDGES, NAMES, st.sampled_from(["target", "Target", "to"]), st.sampled_from(["Weight", "score", "sim"]))
def test_columns_may_be_called_what_programs_call_them(edges, source, target, weight):
    "The same graph, with a remark on the weight, and on what else there is."
    edges = as_table([*edges, (10, 20, 0.5)])
    dropped = {}
    other = edges.set_axis([source, target, weight], axis=1).assign(Id=range(len(edges)), Label="x")
    assert_array_equal(edge_graph(other, ITEMS, dropped).toarray(), edge_graph(edges, ITEMS).toarray())
    told = [f"note: edge column {weight!r}, taken for the weight"]
    told += [f"edge column {o!r}, not one of those known" for o in ("Id", "Label")]
    assert {o: n for o, n in dropped.items() if "edge column" in o} == dict.fromkeys(told, 1)


@pytest.mark.parametrize("more, what", [("from", "source"), ("To", "target"), ("similarity", "weight")])
def test_columns_of_which_two_may_be_meant_are_refused(more, what):
    "Nobody but their owner can tell which."
    edges = as_table([(10, 20, 1.0)])
    with pytest.raises(InputError, match=f"several columns for the {what}: .*{more}"):
        edge_graph(edges.assign(**{more: edges[what]}), ITEMS)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".CSV"])
@pytest.mark.parametrize("ids", [["007", "7", "12"], [7, 8, 12], ["7", "8", "12"], [7.0, 8.0, 12.0]])
def test_ids_in_files_of_edges_are_those_of_the_catalogue(tmp_path, suffix, ids):
    "Numbers or text, with leading zeros or a `.0`: by the kind of the catalogue, whichever it is."
    edges, path = pd.DataFrame({"source": ids[:2], "target": ids[1:]}), tmp_path / f"edges{suffix}"
    if suffix == ".parquet":
        edges.to_parquet(path)
    elif suffix == ".npz":
        np.savez(path, **{o: np.array(edges[o].tolist()) for o in edges})
    else:
        edges.to_csv(path, index=False)
    number = [7, 8, 12] if "007" not in ids else None
    for items in (pd.Index(ids if number is None else number), pd.Index([str(o) for o in number or ids])):
        assert given_graph(path, items).toarray().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


@SOME
@given(graphs())
def test_an_edge_listed_once_counts_as_one_listed_in_both_directions(A):
    "Of a mutual graph either half, or one direction of each edge at random, gives all of it back."
    mutual = symmetrise(A)
    upper, lower = sparse.triu(mutual, format="csr"), sparse.tril(mutual, format="csr")
    rng = np.random.default_rng(A.nnz)
    first = np.triu(rng.random(A.shape) < 0.5, 1)
    mixed = sparse.csr_matrix(np.where(first | (np.tri(*A.shape, -1, bool) & ~first.T), mutual.toarray(), 0))
    for listed in (mutual, upper, lower, mixed, mixed.T.tocsr()):
        assert_array_equal(both_ways(listed).toarray(), mutual.toarray())
    dense, found = A.toarray().astype(np.float64), both_ways(A).toarray()
    count = (dense > 0).astype(int) + (dense.T > 0)
    assert_allclose(found, (dense + dense.T) / np.maximum(count, 1), rtol=1e-6)


FORMS = {
    "scipy": lambda A, g: A,
    "coo": lambda A, g: sparse.coo_array(A),
    "csc": lambda A, g: sparse.csc_array(A.astype(np.float64)),
    "networkx": lambda A, g: g,
    "multigraph": lambda A, g: nx.MultiGraph(g),
    "directed": lambda A, g: g.to_directed(),
    "text": lambda A, g: nx.relabel_nodes(g, str),
    "table": lambda A, g: nx.to_pandas_edgelist(g),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_is_one_graph_in_any_form(form):
    "Weights, directions and all; movies that are unknown are counted."
    graph = nx.Graph()
    graph.add_weighted_edges_from([(10, 20, 0.5), (20, 30, 2.0), (40, 50, 0.25)])
    A = nx.to_scipy_sparse_array(graph, nodelist=list(ITEMS), dtype=np.float32)
    found = both_ways(given_graph(FORMS[form](A, graph), ITEMS))
    assert_array_equal(found.toarray(), A.toarray())
    if "networkx" in form:
        graph.add_edge(10, "stranger", weight=1.0)
        dropped = {}
        given_graph(graph, ITEMS, dropped)
        assert dropped["edges with an unknown item"] == 1


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, "torch"])
def test_an_edge_index_goes_by_position(kind):
    "As an array or a tensor."
    at = np.array([[0, 1, 1], [1, 2, 1]])
    dropped = {}
    at = torch.from_numpy(at) if kind == "torch" else at.astype(kind)
    found = given_graph(at, ITEMS, dropped).toarray()
    assert found.sum() == found[0, 1] + found[1, 2] == 2 and dropped["edges from an item to itself"] == 1


@pytest.mark.parametrize(
    "edges",
    [
        np.ones((5, 5)),
        np.eye(5, dtype=bool),
        np.zeros((2, 3)),
        np.zeros((3, 2), int),
        np.array([[0], [5]]),
        np.array([[-1], [2]]),
        np.array("a"),
        torch.ones(5, 5),
        torch.eye(5).to_sparse(),
        sparse.eye(4).tocsr(),
        sparse.csr_matrix((5, 5)),
        sparse.diags([-1.0], [1], (5, 5)).tocsr(),
        sparse.diags([1e38], [1], (5, 5)).tocsr(),
        nx.Graph(),
        nx.path_graph(3),
        [(10, 20)],
        {10: [20]},
        7,
        b"edges.csv",
        "edges.xlsx",
        "edges.gz",
        (np.array([[0], [1]]), np.array([-1.0])),
        (np.array([[0], [1]]), np.array([np.nan])),
        (np.array([[0], [1]]), "weights"),
        Path("gone.csv"),
        pd.Series([1, 2]),
    ],
    ids=lambda o: type(o).__name__,
)
def test_what_is_no_graph_is_refused(edges):
    "With one clear line each."
    with pytest.raises(InputError) as caught:
        given_graph(edges, ITEMS)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("how", ["row", "symmetric", "column"])
@pytest.mark.parametrize("weight", [1e15 - 2**30, 1.0, 1e-30, 1e-44])
def test_weights_of_any_size_make_no_gaps(how, weight):
    "Of a clique of equal weights each movie has equal shares, whether these are huge or tiny."
    n = 30
    edges = as_table([(i, j, weight) for i in range(n) for j in range(i)])
    A = both_ways(given_graph(edges, pd.RangeIndex(n)))
    S = normalise(A, how).toarray()
    assert np.isfinite(A.data).all()
    assert_allclose(S, (1 - np.eye(n)) / (n - 1), rtol=1e-6)


def test_edges_without_weights_weigh_one():
    "Where there is no column weight every edge counts 1."
    edges = pd.DataFrame({"source": [10, 10], "target": [50, 50]})
    assert edge_graph(edges, ITEMS).toarray().tolist()[0] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf, "heavy", 1e39])
def test_bad_weights_are_named(bad):
    "The message says which edge has which weight; 1e39 is more than float32 holds."
    edges = as_table([(10, 20, 1.0), (30, 40, bad)]).astype({"weight": object})
    with pytest.raises(InputError, match="30 -> 40 .row 1. is '.+'") as caught:
        edge_graph(edges, ITEMS)
    assert str(bad) in str(caught.value)


def test_tiny_weights_are_stored_as_more_than_zero():
    "A weight that float32 cannot tell from 0 leaves no stored zero behind."
    A = edge_graph(as_table([(10, 20, 1e-60), (30, 40, 1.0)]), ITEMS)
    assert (A.data > 0).all()


def test_edges_between_strangers_are_named():
    "Where no edge joins two known movies the message shows ids of both sides."
    with pytest.raises(InputError, match="edges hold .*'a'.*items are .*10"):
        edge_graph(as_table([("a", "b", 1.0)]), ITEMS)
    with pytest.raises(InputError, match="no edge joins"):
        edge_graph(as_table([]), ITEMS)


@pytest.mark.parametrize("gone", ["source", "target"])
def test_missing_columns_are_named(gone):
    "The message says which column is missing and which were found."
    edges = as_table([(10, 20, 1.0)]).rename(columns={gone: "movie"})
    with pytest.raises(InputError, match=f"lack the column {gone}; found: .*movie"):
        edge_graph(edges, ITEMS)


@SOME
@given(graphs())
def test_statistics_equal_a_count_by_hand(A):
    "Edges, degrees, movies alone and mutual edges are what a loop over all pairs counts."
    has = A.toarray() > 0
    n, found = len(has), graph_statistics(A)
    edges = [(i, j) for i in range(n) for j in range(n) if has[i, j]]
    assert found["movies"] == n and found["edges"] == len(edges)
    assert found["isolated"] == sum(not (has[i].any() or has[:, i].any()) for i in range(n))
    assert found["largest_degree"] == max(has.sum(1))
    assert found["mean_degree"] == pytest.approx(len(edges) / n)
    mutual = sum(has[j, i] for i, j in edges) / max(len(edges), 1)
    assert found["mutual"] == pytest.approx(mutual)
    reach = np.linalg.matrix_power(np.eye(n) + has + has.T, n) > 0
    assert found["components"] == len({tuple(o) for o in reach})


@SOME
@given(graphs(), st.integers(1, 14))
def test_neighbours_come_nearest_first(A, n):
    "The n largest weights of the row, falling."
    for i in range(A.shape[0]):
        item, weight = neighbours(A, i, n)
        assert_array_equal(weight, A.toarray()[i, item])
        row = -np.sort(-A.toarray()[i])
        assert_array_equal(weight, row[row > 0][:n])


# files of edges


def table_bytes(suffix, packed=False):
    "A sound file of edges."
    edges, out = as_table([(10, 20, 1.0), (20, 30, 0.5), (40, 50, 0.25)] * 20), io.BytesIO()
    if suffix == ".csv":
        edges.to_csv(out, index=False)
    elif suffix in (".tsv", ".csv.gz", ".tsv.gz"):
        text = edges.to_csv(index=False, sep="\t" if "tsv" in suffix else ",").encode()
        out.write(gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text)
    elif suffix == ".graphml":
        nx.write_graphml(nx.from_pandas_edgelist(edges, edge_attr=True, create_using=nx.DiGraph), out)
    elif suffix == ".parquet":
        edges.to_parquet(out, index=False)
    else:
        save = np.savez_compressed if packed else np.savez
        save(out, **{o: edges[o].to_numpy() for o in edges})
    return out.getvalue()


SOUND = {o: table_bytes(o) for o in (".csv", ".parquet", ".npz", ".tsv", ".csv.gz", ".tsv.gz", ".graphml")}
PACKED = table_bytes(".npz", packed=True)


def read_bytes(suffix, content):
    "Read a file of these bytes; None where it was refused."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edges" + suffix)
        path.write_bytes(content)
        try:
            return read_edges(path)
        except InputError as error:
            assert path.name in str(error)
            return None


@pytest.mark.parametrize("suffix", SOUND)
def test_sound_files_are_read(suffix):
    "Each format gives back what was written."
    wanted, found = pd.read_csv(io.BytesIO(SOUND[".csv"])), read_bytes(suffix, SOUND[suffix])
    if suffix == ".graphml":  # ids are text there, and an edge is there once
        wanted = wanted.drop_duplicates(ignore_index=True)
        found = found.astype({"source": int, "target": int})
    if "tsv" in suffix:  # all of it text, as from any CSV with a cell that is no number
        found = found.astype(wanted.dtypes)
    pd.testing.assert_frame_equal(found, wanted)
    assert edge_graph(read_bytes(suffix, SOUND[suffix]), ITEMS).nnz == 3


def saved_matrix(A):
    "A scipy matrix as its own .npz."
    out = io.BytesIO()
    sparse.save_npz(out, A)
    return out.getvalue()


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_a_saved_matrix_is_a_graph_by_position(form):
    "In every format that scipy saves."
    A = sparse.random(5, 5, 0.4, "csr", np.float32, rng=np.random.default_rng(0))
    A.setdiag(0)
    A.eliminate_zeros()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.npz")
        path.write_bytes(saved_matrix(A.asformat(form)))
        assert_array_equal(given_graph(path, ITEMS).toarray(), A.toarray())


class Data:
    "An object with attributes, as PyTorch Geometric's."

    def __init__(self, **attributes):
        self.__dict__ |= attributes


BOMBS = {
    "entities": '<!DOCTYPE g [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><graphml><graph>&b;</graph></graphml>',
    "a file": '<!DOCTYPE g [<!ENTITY a SYSTEM "file:///etc/passwd">]><graphml>&a;</graphml>',
    "elsewhere": '<!DOCTYPE g SYSTEM "http://127.0.0.1:9/g.dtd"><graphml/>',
    "parameters": "<!DOCTYPE g [<!ENTITY % a \"<!ENTITY b 'c'>\"> %a;]><graphml/>",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_graphml_declares_no_document_type(bomb, encoding, tmp_path):
    "Nothing is expanded, and nothing is fetched."
    path = tmp_path / "graph.graphml"
    path.write_text(BOMBS[bomb], encoding=encoding)
    with pytest.raises(InputError, match="declares a document type"):
        read_edges(path)


def test_gzip_ends_where_no_table_would_be():
    "Zeros without end are refused by how much they would be."
    with pytest.raises(InputError, match="would unpack from"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edges.tsv.gz")
        with gzip.open(path, "wb", compresslevel=1) as packed:
            for _ in range(200):
                packed.write(bytes(2**20))
        read_edges(path)


@pytest.mark.parametrize("weights", ["pair", "edge_weight", "edge_attr"])
def test_an_edge_index_with_weights(weights):
    "As a pair, or in an object as PyTorch Geometric's."
    index, weight = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.5, 2.0])
    given = (index, weight) if weights == "pair" else Data(edge_index=index, **{weights: weight})
    found = given_graph(given, ITEMS)
    assert found[0, 1] == 0.5 and found[1, 2] == 2 and found.nnz == 2
    with pytest.raises(InputError, match="one number for each of 2 edges"):
        given_graph((index, weight[:1]), ITEMS)


@st.composite
def damaged(draw, sound):
    "A sound file cut short, with bytes changed, or made of anything."
    how = draw(st.sampled_from(["cut", "changed", "anything"]))
    if how == "anything":
        return draw(st.binary(max_size=60))
    if how == "cut":
        return sound[: draw(st.integers(0, len(sound) - 1))]
    spots = st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255))
    out = bytearray(sound)
    for at, value in draw(st.lists(spots, min_size=1, max_size=4)):
        out[at] = value
    return bytes(out)


@pytest.mark.parametrize("suffix", SOUND)
@tried(20, 300)
@given(st.data())
def test_damaged_files_are_refused_with_a_reason(suffix, data):
    "Cut, changed or arbitrary files are read or refused by name, never with another error."
    read_bytes(suffix, data.draw(damaged(SOUND[suffix])))


@tried(20, 300)
@given(damaged(PACKED))
def test_damaged_compressed_files_are_refused_with_a_reason(content):
    "The same for compressed .npz files."
    read_bytes(".npz", content)


def flipped(content, at):
    "The same bytes with one of them turned over."
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def one_array():
    "A lone array, as np.save writes it."
    out = io.BytesIO()
    np.save(out, np.arange(4))
    return out.getvalue()


def in_directory(content, offset, value):
    "A zip file with one byte changed in the first entry of its directory."
    at = content.index(b"PK\x01\x02") + offset
    return content[:at] + bytes([value]) + content[at + 1 :]


def with_notes(old, new):
    "A Parquet file in whose notes for pandas one word is another."
    table, out = pa.Table.from_pandas(as_table([(10, 20, 1.0)])), io.BytesIO()
    notes = table.schema.metadata[b"pandas"].replace(old, new)
    pq.write_table(table.replace_schema_metadata({b"pandas": notes}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    "suffix, content",
    [
        pytest.param(".npz", one_array(), id="one array, saved without names"),
        pytest.param(".npz", flipped(PACKED, 60), id="compressed data changed"),
        pytest.param(".npz", flipped(SOUND[".npz"], 200), id="plain data changed"),
        pytest.param(".npz", in_directory(PACKED, 8, 1), id="marked as encrypted"),
        pytest.param(".npz", in_directory(PACKED, 10, 99), id="unknown compression"),
        pytest.param(".npz", PACKED[:-30], id="npz end missing"),
        pytest.param(".npz", b"", id="npz empty"),
        pytest.param(".csv", b"", id="csv empty"),
        pytest.param(".csv", b"source,target\n1,2\n3,4,5,6\n", id="csv row too long"),
        pytest.param(".parquet", SOUND[".parquet"][:-9], id="parquet end missing"),
        pytest.param(".parquet", with_notes(b"int64", b"int54"), id="no such type"),
        pytest.param(".parquet", with_notes(b'"columns"', b'"columnt"'), id="notes incomplete"),
    ],
)
def test_broken_files_are_refused(suffix, content):
    "Ways in which a file of edges breaks."
    assert read_bytes(suffix, content) is None


def test_arrays_that_are_no_table_are_refused():
    "Arrays of different lengths, or with two axes, are no list of edges."
    for target in (np.arange(3), np.ones((2, 2)), np.array(5)):
        out = io.BytesIO()
        np.savez(out, source=np.arange(2), target=target)
        found = read_bytes(".npz", out.getvalue())
        assert found is None or found.shape == (2, 2)  # one number stands for both rows


@pytest.mark.parametrize("arrays", [{"edge_index": np.ones((2, 3))}, {"source": [1], "target": [1, 2]}])
def test_arrays_that_are_no_table_are_described(arrays, tmp_path):
    "By name and shape, with what to do."
    np.savez(tmp_path / "edges.npz", **arrays)
    with pytest.raises(InputError, match=f"{next(iter(arrays))} of shape .*; hand over a scipy matrix"):
        read_edges(tmp_path / "edges.npz")


@pytest.mark.parametrize("index", [None, "source", ["source", "target"]], ids=str)
def test_parquet_may_have_an_index(index, tmp_path):
    "As tables have that were filtered, or looked up by their ends."
    edges = as_table([(10, 10, 1.0), (10, 20, 0.5), (20, 30, 2.0)])[1:]
    (edges if index is None else edges.set_index(index)).to_parquet(tmp_path / "edges.parquet")
    found = edge_graph(read_edges(tmp_path / "edges.parquet"), ITEMS)
    assert_array_equal(found.toarray(), edge_graph(edges, ITEMS).toarray())


@pytest.mark.parametrize(
    "edges, lost",
    [
        (pd.DataFrame({"source": [10, 20], "target": [10, 20]}), "2 edges from an item to itself"),
        (pd.DataFrame({"source": [10], "target": [20], "weight": [0]}), "1 edges of weight 0"),
        (np.array([[1, 1], [1, 1]]), "2 edges from an item to itself"),
        (nx.Graph([("a", "b")]), "1 edges with an unknown item"),
    ],
    ids=lambda o: type(o).__name__,
)
def test_the_error_that_no_edge_is_left_says_what_was_lost(edges, lost):
    "For every form of a graph."
    with pytest.raises(InputError, match=lost):
        given_graph(edges, ITEMS)


def test_files_that_are_not_there_or_not_ours_are_named():
    "A missing file and a format that is not read are refused by name."
    with pytest.raises(InputError, match="no file .*nowhere.csv"):
        read_edges("nowhere.csv")
    with pytest.raises(InputError, match="edges.txt is none of the formats"):
        read_edges("edges.txt")
