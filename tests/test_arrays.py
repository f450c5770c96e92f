"""Arrays handed to any function: the right result or `InputError`; no crash, no nan, nothing changed."""

import copy
import warnings
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import torch
from effort import LONG, tried
from hypothesis import given
from hypothesis import strategies as st
from mypy import api
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from correct_smooth.any_model import correct_and_smooth, graph_of
from correct_smooth.arrays import as_floats, as_marks, as_positions, as_sparse
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import (
    CorrectAndSmooth,
    Operators,
    Scorer,
    cells,
    correct,
    label_matrix,
    neighbour_residual,
    neighbour_sums,
    refine,
    refine_at,
    residual,
    smooth,
    trust,
)
from correct_smooth.diffusion import (
    Diffusion,
    propagate,
    rescale,
    smooth_labels,
    spread_back,
    spread_residual,
)
from correct_smooth.edges import both_ways, given_graph
from correct_smooth.embeddings import Embeddings
from correct_smooth.evaluate import user_metrics
from correct_smooth.graph import (
    check_graph,
    cosine_knn,
    graph_statistics,
    link_items,
    neighbours,
    normalise,
    symmetrise,
)
from correct_smooth.topn import best_of_both, top_n
from correct_smooth.watch import (
    Watch,
    WatchConfig,
    discount,
    discounted,
    few_users_weights,
    filling,
    gram,
    inverse_in_place,
    item_weights,
    list_score,
    many_users_weights,
    user_weights,
    with_mean,
)

N, M, K = 7, 4, 3  # items, users, whatever else

# --- what arguments mean, without any of our checks


def is_sound(A):
    "Whether SciPy's own full check, on a copy, finds nothing; 'meaning' reads no other matrix."
    A = copy.deepcopy(A)
    try:
        if A.format in ("csr", "csc", "bsr"):
            if A.format != "bsr" and (len(A.data) < A.indptr[-1] or len(A.indices) < A.indptr[-1]):
                return False
            A.check_format(full_check=True)
            return bool((A.indptr[1:] >= A.indptr[:-1]).all()) and bool(A.tocoo().nnz + 1)
        if A.format == "coo":
            return all(
                (0 <= at).all() and (at < n).all() for at, n in zip((A.row, A.col), A.shape, strict=True)
            )
        return True
    except (ValueError, TypeError):
        return False


class Sparse:
    "Values and stored places of a sparse matrix, dense."

    def __init__(self, A):
        A = copy.deepcopy(A)
        if A.format in ("csr", "csc", "bsr"):
            A.prune()  # what lies beyond the last row is not there
        listed = A.tocoo()
        self.values, self.stored = np.zeros(A.shape), np.zeros(A.shape, int)
        np.add.at(self.values, (listed.row, listed.col), listed.data)
        np.add.at(self.stored, (listed.row, listed.col), 1)


def meaning(value):
    "An argument as NumPy's float64, or `Sparse`; None where it cannot mean anything."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sparse.issparse(value):
            fine = len(value.shape) == 2 and is_sound(value) and value.dtype.kind in "buif"
            return Sparse(value) if fine else None
        if isinstance(value, Operators):
            return Sparse(value.A)
        if isinstance(value, list | pd.DataFrame | torch.Tensor):
            value = np.array(value)
        if isinstance(value, np.ndarray):
            return None if value.dtype.kind not in "buif" else np.array(value, np.float64)
    return value


# --- the right results, item by item or in dense NumPy


def plain_normalise(A, how="row"):
    A = A + np.diag(A.sum(1) == 0)
    degree = A.sum(0 if how == "column" else 1)
    degree = np.where(degree == 0, 1, degree)
    if how == "symmetric":
        return A / np.sqrt(degree)[:, None] / np.sqrt(degree)[None]
    return A / (degree if how == "column" else degree[:, None])


def plain_average(W, E, shrinkage):
    total = W @ (E.stored > 0).astype(float)
    return np.where(total > 0, W @ E.values / np.where(total > 0, total + shrinkage, 1), 0)


def plain_refine(Z, Y, A, config):
    Z = Z[:, : Y.values.shape[1]]
    E = copy.copy(Y)
    E.values = np.where(Y.stored > 0, Y.values - Z, 0)
    n = Y.stored.sum(0)
    alpha = config.alpha * n / np.maximum(n + config.half_trust, 1e-9)
    out = Z + alpha * plain_average(A + np.eye(len(A)), E, config.shrinkage)
    for _ in range(config.T):
        out = (1 - config.beta) * out + config.beta * plain_normalise(A) @ out
    return np.clip(out, 0, 1)


def plain_top(scores, n, mask, seen):
    out = np.full((scores.shape[1], min(n, len(scores))), -1)
    for u, column in enumerate(scores.T):
        free = [i for i in range(len(column)) if not mask[i] and not (seen is not None and seen.stored[i, u])]
        best = sorted(free, key=lambda i: (-column[i], i))[: out.shape[1]]
        out[u, : len(best)] = best
    return out


def plain_spread(X, S, share, steps, post=lambda X: X):
    out = X
    for _ in range(steps):
        out = post(share * S @ out + (1 - share) * X)
    return out


def plain_knn(X, k):
    length = np.sqrt((X**2).sum(1))
    X = X / np.where(length > 0, length, 1)[:, None]
    cosine = X @ X.T
    np.fill_diagonal(cosine, 0)
    return np.sort(np.maximum(cosine, 0), 1)[:, ::-1][:, : min(k, len(X) - 1)]


def held(E, X):
    return np.where(E.stored > 0, E.values, X)


def weights_of(M, penalty=2.0):
    d = np.array([1 / np.sqrt(n) if n else 0 for n in (M.stored > 0).sum(0)])
    d = d * ((d > 0).sum() / max(d.sum(), 1e-9))
    P = np.linalg.inv((M.values * d) @ M.values.T + penalty * np.eye(len(M.values)))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


def whole(columns):
    "All columns of B side by side."
    B = np.zeros((N, N))
    for rows, at, part in columns:
        B[np.ix_(rows, at)] = part
    return B


def plain_filling(S, known, config):
    k = known.astype(float)
    taken = ((1 - config.beta) * np.eye(len(k)) + config.beta * S) * k
    total = taken.sum(1)
    share = np.where(known, 1, config.unrated)
    return np.where(total[:, None] > 0, share[:, None] * taken / np.maximum(total, 1e-9)[:, None], 0)


# --- sound arguments


def graph(rng, n=N):
    A = rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < 0.4)
    np.fill_diagonal(A, 0)
    return sparse.csr_matrix(np.float32(A))


def labels(rng, low=0.0):
    at = np.nonzero(rng.random((N, M)) < 0.5)
    return sparse.csc_matrix((np.float32(np.maximum(rng.integers(0, 2, len(at[0])), low)), at), shape=(N, M))


def errors(rng):
    E = labels(rng)
    E.data = np.float32(rng.uniform(-1, 1, E.nnz))
    return E


def scores(rng):
    return rng.random((N, M), np.float32)


def line(rng):
    return np.sort(rng.random(M))


def embeddings(rng):
    return dict(
        zip("HcUb", (rng.normal(size=s).astype(np.float32) for s in ((N, K), N, (M, K), M)), strict=True)
    )


DEFAULT, STEP, WATCH = CorrectAndSmooth(), CorrectAndSmooth(T=1, beta=0.3), WatchConfig()


def at_cells(asked, table):
    return table[cells(asked)]


def scored(Z, asked, Y, graph, config):
    "`refine_at` over a table of scores, which may be odd itself."

    def score(at):
        with suppress(Exception):  # of what is handed in here, a table may be made; of nothing else
            return Z[cells(at)]
        return Z

    return np.concatenate(refine_at(asked, score, Y, Operators(graph), config))


FUNCTIONS = {
    # name: sound arguments, call, right result
    "residual": (
        lambda r: {"Z": scores(r), "Y": labels(r)},
        lambda Z, Y: residual(Z, Y),
        lambda Z, Y: np.where(Y.stored > 0, Y.values - Z, 0),
    ),
    "correct": (
        lambda r: {"Z": scores(r), "R": errors(r) if r.random() < 0.5 else scores(r), "alpha": line(r)},
        lambda Z, R, alpha: correct(Z, R, alpha),
        lambda Z, R, alpha: Z + alpha * (R.values if isinstance(R, Sparse) else R),
    ),
    "smooth": (
        lambda r: {"Z": scores(r), "S": normalise(graph(r)), "beta": 0.3, "T": 2},
        smooth,
        lambda Z, S, beta, T: [Z := (1 - beta) * Z + beta * S.values @ Z for _ in range(T)][-1] if T else Z,
    ),
    "neighbour_residual": (
        lambda r: {"E": errors(r), "weights": graph(r), "shrinkage": 2.0},
        neighbour_residual,
        lambda E, weights, shrinkage: plain_average(weights.values, E, shrinkage),
    ),
    "neighbour_sums": (
        lambda r: {"asked": labels(r), "known": errors(r), "weights": graph(r)},
        lambda asked, known, weights: np.concatenate(neighbour_sums(asked, known, weights)),
        None,
    ),
    "trust": (
        lambda r: {"n_labels": r.integers(0, 9, M), "alpha": 2.0, "half_trust": 3.0},
        trust,
        lambda n_labels, alpha, half_trust: alpha * n_labels / np.maximum(n_labels + half_trust, 1e-9),
    ),
    "refine": (
        lambda r: {"Z": scores(r), "Y": labels(r), "A": graph(r)},
        lambda Z, Y, A: refine(Z, Y, Operators(A), STEP),
        lambda Z, Y, A: plain_refine(Z, Y, A.values, STEP),
    ),
    "refine by diffusion": (
        lambda r: {"Z": scores(r), "Y": labels(r), "A": graph(r)},
        lambda Z, Y, A: refine(Z, Y, Operators(A), Diffusion(T=1, steps=2, scale="user")),
        None,
    ),
    "refine_at": (
        lambda r: {"Z": scores(r), "asked": labels(r), "Y": labels(r), "graph": graph(r)},
        lambda Z, asked, Y, graph: scored(Z, asked, Y, graph, STEP),
        None,
    ),
    "label_matrix": (
        lambda r: {"user": r.permutation(M), "item": r.permutation(N)[:M], "y": r.random(M)},
        lambda user, item, y: label_matrix(user, item, y, (N, M)),
        lambda user, item, y: sparse.coo_matrix((y, (item.astype(int), user.astype(int))), (N, M)).toarray(),
    ),
    "normalise": (
        lambda r: {"A": graph(r), "how": str(r.choice(["row", "column", "symmetric"]))},
        normalise,
        lambda A, how: plain_normalise(A.values, how),
    ),
    "symmetrise": (lambda r: {"A": graph(r)}, symmetrise, lambda A: (A.values + A.values.T) / 2),
    "both_ways": (
        lambda r: {"A": graph(r)},
        both_ways,
        lambda A: np.divide(
            A.values + A.values.T,
            (A.stored > 0) + 0.0 + (A.stored > 0).T,
            out=np.zeros(A.values.shape),
            where=(A.stored + A.stored.T) > 0,
        ),
    ),
    "check_graph": (lambda r: {"A": graph(r)}, lambda A: check_graph(A, N), lambda A: A.values),
    "given_graph": (
        lambda r: {"A": graph(r)},
        lambda A: given_graph(A, pd.RangeIndex(N)),
        lambda A: A.values * (1 - np.eye(len(A.values))) if A.values.shape == (N, N) else None,
    ),
    "edge_index": (
        lambda r: {"index": r.integers(0, N, (2, 5)), "weight": r.random(5)},
        lambda index, weight: given_graph((index, weight), pd.RangeIndex(N)) * 0,
        lambda index, weight: np.zeros((N, N)),
    ),
    "cosine_knn": (
        lambda r: {"X": sparse.csr_matrix(np.float32(r.normal(size=(N, K)))), "k": 2},
        lambda X, k: -np.sort(-cosine_knn(X, k).toarray(), 1)[:, : min(k, max(X.shape[0] - 1, 0))],
        lambda X, k: plain_knn(X.values, k),
    ),
    "graph_of": (
        lambda r: {"X": r.normal(size=(N, K))},
        lambda X: graph_of(X, 2).sum() * 0,
        lambda X: np.zeros(()),
    ),
    "link_items": (
        lambda r: {"A": graph(r, N - 2), "X": sparse.csr_matrix(np.float32(r.random((N, K))))},
        lambda A, X: link_items(A, X, {})[: A.shape[0], : A.shape[0]],
        lambda A, X: A.values,
    ),
    "graph_statistics": (
        lambda r: {"A": graph(r)},
        lambda A: np.array(graph_statistics(A)["edges"]),
        lambda A: np.array((A.stored > 0).sum()),
    ),
    "neighbours": (
        lambda r: {"A": graph(r), "i": 2},
        lambda A, i: neighbours(check_graph(A, N), i, N)[1].sum(),
        lambda A, i: A.values[int(i)].sum(),
    ),
    "propagate": (
        lambda r: {"X0": scores(r), "S": normalise(graph(r)), "share": 0.5, "steps": 2},
        propagate,
        lambda X0, S, share, steps: plain_spread(X0, S.values, share, steps),
    ),
    "rescale": (
        lambda r: {"R": scores(r), "E": errors(r)},
        lambda R, E: rescale(R, E, "user"),
        None,
    ),
    "spread_residual": (
        lambda r: {"E": errors(r), "S": normalise(graph(r)), "spread": 0.5, "steps": 2},
        spread_residual,
        lambda E, S, spread, steps: plain_spread(E.values, S.values, spread, steps, lambda X: held(E, X)),
    ),
    "smooth_labels": (
        lambda r: {"Z": scores(r), "Y": labels(r), "S": normalise(graph(r)), "beta": 0.5, "T": 2},
        smooth_labels,
        lambda Z, Y, S, beta, T: plain_spread(held(Y, Z), S.values, beta, T, lambda X: np.clip(X, 0, 1)),
    ),
    "spread_back": (
        lambda r: {
            "s": r.random(N), "S": normalise(graph(r)), "labelled": np.array([0, 3]), "spread": 0.5,
            "steps": 0,
        },  # fmt: skip
        spread_back,
        lambda s, S, labelled, spread, steps: s[labelled.astype(int)] if steps == 0 else None,
    ),
    "gram": (
        lambda r: {"M": labels(r, 0.5).tocsr(), "d": r.random(M)},
        gram,
        lambda M, d: np.tril((M.values * d) @ M.values.T),
    ),
    "inverse_in_place": (
        lambda r: {"K": np.float32(np.eye(N) + 0.1 * np.ones((N, N)))},
        lambda K: inverse_in_place(K.copy() if isinstance(K, np.ndarray) else K),
        lambda K: np.linalg.inv(np.tril(K) + np.tril(K, -1).T),
    ),
    "user_weights": (
        lambda r: {"M": labels(r, 0.5)},
        lambda M: user_weights(M)[0],
        lambda M: (d := np.array([1 / np.sqrt(n) if n else 0 for n in (M.stored > 0).sum(0)]))
        * ((d > 0).sum() / max(d.sum(), 1e-9)),
    ),
    "item_weights": (lambda r: {"M": labels(r, 0.5)}, lambda M: item_weights(M), None),
    "few_users_weights": (
        lambda r: {"M": labels(r, 0.5), "d": 1 + r.random(M), "penalty": 2.0},
        lambda M, d, penalty: whole(few_users_weights(M, d, penalty)),
        None,
    ),
    "many_users_weights": (
        lambda r: {"M": labels(r, 0.5), "d": 1 + r.random(M), "penalty": 2.0},
        lambda M, d, penalty: whole(many_users_weights(M, d, penalty)),
        None,
    ),
    "with_mean": (lambda r: {"M": labels(r, 0.5)}, lambda M: with_mean(M)[:, :-1], lambda M: M.values),
    "filling": (
        lambda r: {"S": normalise(graph(r)), "known": r.random(N) < 0.6},
        filling,
        lambda S, known: plain_filling(S.values, known > 0, WATCH),
    ),
    "watch": (
        lambda r: {
            "M": labels(r, 0.5), "B": graph(r), "S": normalise(graph(r)), "count": r.integers(1, 9, N),
            "users": np.array([1, 0]),
        },  # fmt: skip
        lambda M, B, S, count, users: Watch(M, B, S, count, WATCH).block(users),
        None,
    ),
    "list_score": (
        lambda r: {"Q": scores(r), "P": scores(r)},
        list_score,
        lambda Q, P: np.minimum(np.sqrt(P) * Q, Q),
    ),
    "discount": (
        lambda r: {"count": r.integers(0, 9, N)},
        discount,
        lambda count: np.maximum(count / max(count.sum() / max(len(count), 1), 1), 1) ** -0.1,
    ),
    "discounted": (
        lambda r: {"scores": scores(r), "by": r.random(N)},
        discounted,
        lambda scores, by: scores if by is None else np.where(scores > 0, scores * by[:, None], scores),
    ),
    "top_n": (
        lambda r: {"scores": scores(r), "n": 3, "mask": r.random(N) < 0.2, "seen": labels(r)},
        lambda scores, n, mask, seen: top_n(scores, n, mask, seen),
        plain_top,
    ),
    "best_of_both": (
        lambda r: {"Q": scores(r), "n": 3, "mask": r.random(N) < 0.2, "seen": labels(r), "liking": 0.5},
        lambda Q, n, mask, seen, liking: best_of_both(
            Q, lambda column, item: np.ones(len(item), np.float32), n, mask, seen, liking
        ),
        lambda Q, n, mask, seen, liking: plain_top(Q, n, mask, seen),
    ),
    "user_metrics": (
        lambda r: {"user": r.integers(0, 2, 12), "y": r.integers(0, 2, 12), "z": r.random(12)},
        lambda user, y, z: user_metrics(user, y, z, 2)["roc_auc"].fillna(-1).to_numpy(),
        lambda user, y, z: [
            roc_auc_score(y[user == u], z[user == u]) if len(set(y[user == u])) == 2 else -1 for u in (0, 1)
        ],
    ),
    "embeddings": (
        lambda r: {**embeddings(r), "user": np.array([1, 0]), "item": np.array([2, 6])},
        lambda H, c, U, b, user, item: Embeddings(H, c, U, b).pairs(user, item),
        lambda H, c, U, b, user, item: expit(
            (H[i := item.astype(int)] * U[u := user.astype(int)]).sum(1) + b[u] + c[i]
        ),
    ),
    "embeddings' block": (
        lambda r: {**embeddings(r), "users": np.array([1, 0])},
        lambda H, c, U, b, users: Embeddings(H, c, U, b).block(users),
        lambda H, c, U, b, users: expit(H @ U[u := users.astype(int)].T + b[u] + c[:, None]),
    ),
    "scorer": (
        lambda r: {"Y": labels(r), "A": graph(r), "user": np.array([1, 0, 1]), "item": np.array([2, 6, 0])},
        lambda Y, A, user, item: Scorer(
            Embeddings(**embeddings(np.random.default_rng(0))), Y, Operators(A), DEFAULT
        ).pairs(user, item)[1],
        lambda Y, A, user, item: plain_refine(
            expit((e := embeddings(np.random.default_rng(0)))["H"] @ e["U"].T + e["b"] + e["c"][:, None]),
            Y, A.values, DEFAULT,
        )[item.astype(int), user.astype(int)],
    ),
    "correct_and_smooth": (
        lambda r: {"scores": scores(r).T, "labels": labels(r).T, "graph": graph(r)},
        lambda scores, labels, graph: correct_and_smooth(scores, labels, graph, STEP),
        None,
    ),
}  # fmt: skip


def plain_pairs(asked, table):
    "Entries of a dense table in the order of the cells asked for."
    users = np.repeat(np.arange(asked.shape[1]), np.diff(asked.indptr))
    return table[asked.indices[: len(users)], users]


def by_order(name, given, meant):
    "The right result where it is in the order of cells, or needs more than a line."
    if name == "neighbour_sums":
        W, E = meant["weights"].values, meant["known"]
        tables = W @ E.values, W @ (E.stored > 0)
        return np.concatenate([plain_pairs(given["asked"], table) for table in tables])
    if name == "refine_at":
        Z = meant["Z"][: len(meant["Y"].values), : meant["Y"].values.shape[1]]
        tables = Z, plain_refine(Z, meant["Y"], meant["graph"].values, STEP)
        return np.concatenate([plain_pairs(given["asked"], table) for table in tables])
    if name == "correct_and_smooth" and not isinstance(meant["labels"], np.ndarray):
        Y = meant["labels"]
        Y.values, Y.stored = Y.values.T, Y.stored.T
        return plain_refine(meant["scores"].T, Y, meant["graph"].values, STEP).T
    if name == "watch":
        F = plain_filling(meant["S"].values, meant["count"] > 0, WATCH)
        users = meant["users"].astype(int)
        empty = (meant["M"].stored > 0).sum(0)[users] == 0
        return F @ meant["B"].values.T @ meant["M"].values[:, np.where(empty, -1, users)]
    if name in ("few_users_weights", "many_users_weights") and len(meant["M"].values) == N:
        Mv, d, penalty = meant["M"].values, meant["d"], meant["penalty"]
        P = np.linalg.inv((Mv * d) @ Mv.T + penalty * np.eye(N))
        B = -P / np.diag(P)
        np.fill_diagonal(B, 0)
        return B
    return None


# --- arguments gone wrong

NUMBERS = [np.nan, np.inf, -np.inf, -1.0, 2.0, 0.0, 1e14, 1e300, -1e-3, 1e-45]


def odd_array(value, how, rng):
    "An array with something done to it."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "type":
            kinds = [
                np.float16, np.float64, ">f4", np.longdouble, np.int8, np.int64, np.uint64, np.bool_, complex,
                object, str, "M8[s]", "V4",
            ]  # fmt: skip
            kind = kinds[rng.integers(len(kinds))]
            return value.astype(np.float32).view("V4") if kind == "V4" else value.astype(kind)
    if how == "number" and value.size and value.dtype.kind == "f":
        out = value.copy()
        out.flat[rng.integers(out.size)] = NUMBERS[rng.integers(len(NUMBERS))]
        return out
    if how == "position" and value.size and value.dtype.kind in "iu":
        out = value.copy()
        out.flat[rng.integers(out.size)] = [-1, 99, 2**31, -(2**62), N, 0][rng.integers(6)]
        return out
    shapes = [
        value.T, value[:-1], value[..., None], value[None], np.float32(0.5), np.array(0.5), value[:0],
        np.empty((0, 0), np.float32), value.ravel(), np.concatenate([value, value]), value[::-1],
        np.asfortranarray(value), np.repeat(value, 2, 0)[::2], np.asmatrix(value), value.tolist(),
        np.ma.masked_array(value, value == value.flat[0]), pd.DataFrame(value), None, "0.5",
        torch.tensor([1.0]), np.broadcast_to(value[:1], value.shape), {}, object(),
    ]  # fmt: skip
    return shapes[rng.integers(len(shapes))]


def odd_matrix(A, how, rng):
    "A sparse matrix with something done to it, of equal or other meaning."
    if A.format not in ("csr", "csc") or not is_sound(A):
        return A  # SciPy itself would crash over what is broken already
    if how == "type":
        kinds = [np.float64, np.int8, np.int64, np.uint8, np.bool_, complex, np.longdouble]
        return A.astype(kinds[rng.integers(len(kinds))])
    if how == "number" and A.nnz:
        A = A.copy()
        A.data[rng.integers(A.nnz)] = np.float32(min(NUMBERS[rng.integers(len(NUMBERS))], 3e38))
        return A
    if how == "position" and A.nnz:
        A = A.copy()
        part = [A.indices, A.indptr][rng.integers(2)]
        part[rng.integers(len(part))] = [-1, 99, 2**31 - 1, -(2**31), 10**6, N, 0, A.nnz][rng.integers(8)]
        return A
    kind = type(A)
    wide = A.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    unsorted = kind((A.data[::-1].copy(), A.indices[::-1].copy(), A.nnz - A.indptr[::-1]), shape=A.shape)
    twice = kind((np.repeat(A.data, 2), np.repeat(A.indices, 2), 2 * A.indptr), shape=A.shape)
    fixed = A.copy()
    for part in (fixed.data, fixed.indices, fixed.indptr):
        part.flags.writeable = False
    lies = A.copy()
    lies.has_canonical_format = True
    lies.indices[:] = lies.indices[::-1].copy()
    short = A.copy()
    short.data = short.data[:-1]
    longer = A.copy()
    longer.data, longer.indices = (
        np.append(longer.data, np.float32(9)),
        np.append(longer.indices, np.int32(10**6)),
    )
    listed = A.tocoo()
    strange = A.tocoo()
    if strange.nnz:
        strange.row[0] = 10**6
    others = [
        A.tocsr(), A.tocsc(), listed, A.tolil(), A.todok(), A.todia(), A.tobsr(), sparse.csr_array(A),
        sparse.coo_array(A), A.T, A[:-1], A[:, :-1], A[:0], kind((0, 0)), wide, unsorted, twice, fixed, lies,
        short, longer, strange, kind((300, 300)), A.toarray(), None, "A", A.toarray().tolist(),
        pd.DataFrame(A.toarray()), A * -1, A * 0, A * 1e20, sparse.hstack([A, A]).asformat(A.format),
    ]  # fmt: skip
    return others[rng.integers(len(others))]


def odd_number(value, rng):
    return [
        np.nan,
        np.inf,
        -1,
        1e300,
        "1",
        None,
        True,
        0,
        1.5,
        np.float64(0.5),
        np.array([1.0, 2.0]),
        10**30,
    ][rng.integers(12)]


def odd(value, rng):
    "An argument with something done to it."
    how = ["type", "number", "position", "shape", "shape", "number", "position"][rng.integers(7)]
    if sparse.issparse(value):
        return odd_matrix(value, how, rng)
    return odd_array(value, how, rng) if isinstance(value, np.ndarray) else odd_number(value, rng)


CANNOT = (
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    AttributeError,
    NotImplementedError,
)  # be done to it


def parts_of(value):
    "Everything in an argument that a function could change."
    if sparse.issparse(value) and value.format in ("csr", "csc", "bsr"):
        return [value.data, value.indices, value.indptr]
    if sparse.issparse(value) and value.format == "coo":
        return [value.data, value.row, value.col]
    return [value] if isinstance(value, np.ndarray) else []


def snapshot(given):
    return [part.tobytes() for value in given.values() for part in parts_of(value) if part.dtype != object]


def dense(found):
    return np.asarray(found.toarray() if sparse.issparse(found) else found)


def tried_on(name, seed, changes):
    "One function on arguments of which some are odd; whether it took them."
    make, call, right = FUNCTIONS[name]
    rng = np.random.default_rng(seed)
    given = make(rng)
    for _ in range(changes):
        which = sorted(given)[rng.integers(len(given))]
        with suppress(*CANNOT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given[which] = odd(given[which], rng)
    before = snapshot(given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = call(**given)
        except InputError as error:
            assert changes, f"{name} refuses what is sound: {error}"
            assert len(str(error).splitlines()) == 1
            found = None
        assert snapshot(given) == before, f"{name} changed its arguments"
        if found is None:
            return False
        found = dense(found)
        assert not np.isnan(found.astype(float)).any(), f"{name} gives nan"
        meant = {key: meaning(value) for key, value in given.items()}
        used = {key: value for key, value in meant.items() if given[key] is not None and key != "asked"}
        assert all(value is not None for value in used.values()), f"{name} took what means nothing: {meant}"
        wanted = by_order(name, given, meant) if right is None else right(**meant)
    if wanted is not None:
        arrays = [v.values if isinstance(v, Sparse) else v for v in meant.values()]
        sizes = [np.abs(v[np.isfinite(v)]).max(initial=1) for v in arrays if isinstance(v, np.ndarray)]
        assert_allclose(found, wanted, rtol=2e-4, atol=2e-5 * float(np.prod([min(s, 1e15) for s in sizes])))
    return True


@pytest.mark.parametrize("name", FUNCTIONS)
@tried(10, 230)
@given(seed=st.integers(0, 2**32), changes=st.sampled_from([0, 1, 1, 1, 2, 3]))
def test_the_right_result_or_our_error(name, seed, changes):
    "For every function, on arguments of odd type, shape, order, values and indices."
    tried_on(name, seed, changes)


def test_sound_arguments_are_taken():
    "By every function, whatever the seed."
    assert all(tried_on(name, seed, 0) for name in FUNCTIONS for seed in range(3))


@tried(60, 2000)
@given(st.integers(0, 2**32), st.sampled_from(["csr", "csc"]), st.integers(0, 3))
def test_one_form_for_any_matrix(seed, form, changes):
    "Canonical, sound and of equal meaning, or refused."
    rng = np.random.default_rng(seed)
    A = graph(rng)
    for _ in range(changes):
        how = ["type", "number", "position", "shape"][rng.integers(4)]
        with suppress(*CANNOT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            A = odd_matrix(A, how, rng) if sparse.issparse(A) and A.format in ("csr", "csc") else A
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = as_sparse("A", A, form)
        except InputError:
            return
    assert (found.format, found.dtype) == (form, np.float32)
    again = found.copy()
    again.has_canonical_format = again.has_sorted_indices = False
    again.sum_duplicates()
    assert_array_equal(again.indices, found.indices)
    assert_allclose(found.toarray(), Sparse(A).values, rtol=1e-6)


def test_what_was_taken_before_is_taken_as_it_is():
    "No copy of what is in order already."
    rng = np.random.default_rng(0)
    A, Z, at, marks = graph(rng), scores(rng), np.arange(3, dtype=np.int32), np.ones(3, bool)
    assert as_sparse("A", A, "csr") is A and as_floats("Z", Z) is Z
    assert as_positions("at", at, 3) is at and as_marks("marks", marks) is marks


CHOICES = """
import numpy as np
from correct_smooth.any_model import correct_and_smooth
from correct_smooth.correct_smooth import CorrectAndSmooth, refine
from correct_smooth.diffusion import Diffusion
CorrectAndSmooth(rule="own", T=1)
CorrectAndSmooth(rule="neighbour")  # arg-type
Diffusion(scale="users")  # arg-type
Diffusion(normalisation="rows")  # arg-type
correct_and_smooth(1, 1, 1, unit="odds")  # arg-type
refine(np.ones(3), np.ones(3), 3, CorrectAndSmooth())  # arg-type
"""


def test_mypy_sees_choices_that_are_none(tmp_path):
    "A rule that does not exist is an error of types, before anything runs; through a door types are seen."
    path = tmp_path / "choices.py"
    path.write_text(CHOICES)
    found, _, _ = api.run(["--follow-imports=silent", "--ignore-missing-imports", str(path)])
    wrong = {n for n, line in enumerate(CHOICES.splitlines(), 1) if line.endswith("# arg-type")}
    assert {int(line.split(":")[1]) for line in found.splitlines() if "[arg-type]" in line} == wrong, found


if __name__ == "__main__":  # how many are taken and refused: python tests/test_arrays.py
    counts = {name: [0, 0] for name in FUNCTIONS}
    for seed in range(10_000 // len(FUNCTIONS) + 1 if LONG else 20):
        for name in FUNCTIONS:
            counts[name][tried_on(name, seed, 1 + seed % 3)] += 1
    print(pd.DataFrame(counts, index=["refused", "taken"]).T)
