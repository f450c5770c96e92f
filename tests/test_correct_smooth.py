"""Correcting and smoothing against a plain loop over users, and laws that must hold."""

import numba
import numpy as np
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from correct_smooth.correct_smooth import (
    RULES,
    SCALES,
    SMOOTHINGS,
    CorrectAndSmooth,
    Scorer,
    cells,
    correct,
    heard,
    label_matrix,
    neighbour_residual,
    operators,
    propagate,
    refine,
    residual,
    smooth,
    smooth_labels,
    spread_residual,
    trust,
    user_blocks,
)
from correct_smooth.data import InputError
from correct_smooth.graph import NORMALISATIONS, normalise
from correct_smooth.model import Embeddings

SOME = tried(20, 300)


@st.composite
def worlds(draw):
    "A graph A, scores Z, and labels as known marks and values; some films stand alone."
    n, m = draw(st.integers(2, 25)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    A = rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < draw(st.sampled_from([0, 0.1, 0.4, 1])))
    A = np.maximum(A, A.T) if draw(st.booleans()) else A
    np.fill_diagonal(A, 0)
    alone = rng.random(n) < draw(st.sampled_from([0, 0.2, 0.6]))
    A[alone] = 0
    if draw(st.booleans()):
        A[:, alone] = 0  # else others still point at the films that point nowhere
    known = rng.random((n, m)) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    kinds = {"labels": rng.integers(0, 2, (n, m)), "targets": rng.random((n, m))}
    Y = kinds[draw(st.sampled_from(sorted(kinds)))]
    Z = rng.random((n, m), np.float32)
    return sparse.csr_matrix(A.astype(np.float32)), Z, known, Y.astype(np.float32)


CONFIGS = st.builds(
    CorrectAndSmooth,
    rule=st.sampled_from(RULES),
    alpha=st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.5]),
    half_trust=st.sampled_from([0.0, 2.0]),
    shrinkage=st.sampled_from([0.0, 0.5, 3.0]),
    spread=st.sampled_from([0.0, 0.5, 1.0]),
    steps=st.integers(0, 3),
    scale=st.sampled_from(("fixed", "user")),  # autoscale has jumps at 0 and 1/1000: see below and test_pyg
    spread_normalisation=st.sampled_from(NORMALISATIONS),
    smoothing=st.sampled_from(SMOOTHINGS),
    keep_labels=st.booleans(),
    beta=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    T=st.integers(0, 3),
    normalisation=st.sampled_from(NORMALISATIONS),
)


def marked(known, Y):
    "Labels as a sparse matrix, zeros stored where they are known."
    item, user = np.nonzero(known)
    return label_matrix(user, item, Y[item, user], known.shape)


def dense_normalise(A, how):
    "S by its definition: films that point nowhere point to themselves."
    A = A + np.diag(A.sum(1) == 0)
    degree = A.sum(0 if how == "column" else 1)
    degree = np.where(degree == 0, 1, degree)
    if how == "symmetric":
        return A / np.sqrt(np.outer(degree, degree))
    return A / (degree if how == "column" else degree[:, None])


def plain_diffusion(A, error, known, config):
    "Residuals spread one step after the other, in float64."
    S, start = dense_normalise(A, config.spread_normalisation), np.where(known, error, 0)
    R = start.copy()
    for _ in range(config.steps):
        R = config.spread * S @ R + (1 - config.spread) * start
        R = np.where(known, error, R) if config.scale == "fixed" else np.clip(R, -1, 1)
    if config.scale == "user" and np.abs(R).sum() > 0:
        gamma = np.abs(error[known]).mean() / np.abs(R[R != 0]).mean()
        R = R * (gamma if gamma <= 1000 else 1)
    return R


def plain(A, z, known, y, config):
    "One user, one film after the other, in float64."
    z, n, S = z.astype(np.float64), len(z), dense_normalise(A, config.normalisation)
    error, near, moved = y - z, A + np.eye(n), z.copy()
    labels = known.sum()
    alpha = config.alpha * labels / (labels + config.half_trust) if labels else 0
    for i in range(n):
        if config.rule == "own" and known[i]:
            moved[i] += alpha * error[i]
        if config.rule == "neighbours" and (total := near[i, known].sum()) > 0:
            moved[i] += alpha * near[i, known] @ error[known] / (config.shrinkage + total)
    if config.rule == "diffusion":
        moved += alpha * plain_diffusion(A, error, known, config)
    start = np.where(known, y, moved)
    if config.smoothing == "labels" and config.T:
        moved = start.copy()
    for _ in range(config.T):
        if config.smoothing == "scores":
            moved = (1 - config.beta) * moved + config.beta * S @ moved
        else:
            moved = np.clip((1 - config.beta) * start + config.beta * S @ moved, 0, 1)
            moved = np.where(known & config.keep_labels, y, moved)
    return np.clip(moved, 0, 1)


@tried(50, 1000)
@given(worlds(), CONFIGS)
def test_refine_equals_a_plain_loop(world, config):
    "A block of users at once gives what each user alone would get."
    A, Z, known, Y = world
    found = refine(Z, marked(known, Y), operators(A, config), config)
    dense = A.toarray().astype(np.float64)
    columns = range(Z.shape[1])
    wanted = [plain(dense, Z[:, u], known[:, u], Y[:, u], config) for u in columns]
    assert found.dtype == np.float32
    assert_allclose(found, np.array(wanted).T, rtol=0, atol=1e-5)


@SOME
@given(worlds(), CONFIGS)
def test_refined_scores_lie_between_0_and_1(world, config):
    "Whatever the settings, refined scores are finite and in bounds."
    A, Z, known, Y = world
    found = refine(Z, marked(known, Y), operators(A, config), config)
    assert found.shape == Z.shape and np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1


@SOME
@given(worlds(), CONFIGS)
def test_nothing_handed_in_is_changed(world, config):
    "Scores, labels and graph are the same after refining."
    A, Z, known, Y = world
    labels, graph = marked(known, Y), operators(A, config)
    held = [Z, A.data, A.indices, labels.data, labels.indices]
    held += [graph.near.data, graph.S.data, graph.spread.data]
    before = [o.copy() for o in held]
    refine(Z, labels, graph, config)
    for now, then in zip(held, before, strict=True):
        assert_array_equal(now, then)


@SOME
@given(worlds(), st.sampled_from(RULES))
def test_without_trust_or_steps_scores_stay(world, rule):
    "alpha = 0 and T = 0 change nothing, nor do many steps with beta = 0."
    A, Z, known, Y = world
    for config in (CorrectAndSmooth(rule, alpha=0, T=0), CorrectAndSmooth(rule, 0, beta=0, T=3)):
        assert_array_equal(refine(Z, marked(known, Y), operators(A, config), config), Z)


@SOME
@given(worlds(), st.sampled_from(RULES), st.sampled_from([0.0, 3.0]))
def test_without_labels_only_smoothing_is_left(world, rule, shrinkage):
    "A user without labels keeps the base scores, smoothed if T > 0."
    A, Z, known, Y = world
    none = marked(known & False, Y)
    for T in (0, 2):
        config = CorrectAndSmooth(rule, shrinkage=shrinkage, T=T)
        graph = operators(A, config)
        wanted = Z if T == 0 else np.clip(smooth(Z, graph.S, config.beta, T), 0, 1)
        assert_array_equal(refine(Z, none, graph, config), wanted)
        by_labels = CorrectAndSmooth(rule, smoothing="labels", T=T)
        assert_allclose(refine(Z, none, graph, by_labels), propagate(Z, graph.S, 0.5, T), rtol=0, atol=1e-6)


@SOME
@given(worlds(), st.sampled_from(RULES))
def test_right_scores_are_not_corrected(world, rule):
    "Where the labels are what was predicted there is nothing to correct."
    A, Z, known, _ = world
    config = CorrectAndSmooth(rule, shrinkage=0)
    assert_array_equal(refine(Z, marked(known, Z), operators(A, config), config), Z)


@SOME
@given(worlds(), CONFIGS, st.randoms(use_true_random=False))
def test_numbering_does_not_matter(world, config, random):
    "Films and users in another order get the same scores in that order."
    A, Z, known, Y = world
    film, user = (np.array(random.sample(range(o), o)) for o in Z.shape)
    there = np.ix_(film, user)
    plainly = refine(Z, marked(known, Y), operators(A, config), config)
    shuffled = marked(known[there], Y[there])
    graph = operators(sparse.csr_matrix(A[film][:, film]), config)
    assert_allclose(refine(Z[there], shuffled, graph, config), plainly[there], rtol=0, atol=1e-5)


@SOME
@given(worlds(), CONFIGS)
def test_users_do_not_touch_each_other(world, config):
    "A user's scores are the same alone and in company."
    A, Z, known, Y = world
    labels, graph = marked(known, Y), operators(A, config)
    together = refine(Z, labels, graph, config)
    for u in range(Z.shape[1]):
        alone = refine(Z[:, [u]], labels[:, [u]], graph, config)
        assert_allclose(alone[:, 0], together[:, u], rtol=0, atol=1e-6)


@SOME
@given(worlds(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_row_smoothing_keeps_constants_and_bounds(world, level, beta, T):
    "Equal scores stay as they are; others stay between their user's least and largest."
    A, Z, _, _ = world
    S = normalise(A, "row")
    same = np.full_like(Z, level)
    assert_allclose(smooth(same, S, beta, T), same, rtol=0, atol=1e-5)
    mixed = smooth(Z, S, beta, T)
    assert (mixed >= Z.min(axis=0) - 1e-5).all() and (mixed <= Z.max(axis=0) + 1e-5).all()


@SOME
@given(worlds(), CONFIGS, st.floats(-2, 2), st.floats(-2, 2))
def test_smoothing_is_linear(world, config, a, b):
    "Smoothing a sum is summing what was smoothed."
    A, Z, _, Y = world
    S, a, b = normalise(A, config.normalisation), np.float32(a), np.float32(b)
    one, other, both = (smooth(o, S, config.beta, config.T) for o in (Z, Y, a * Z + b * Y))
    assert_allclose(both, a * one + b * other, rtol=1e-4, atol=1e-4)


@SOME
@given(worlds(), st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_smoothing_steps_add_up(world, beta, first, then):
    "Some steps and then some more are as many steps at once."
    A, Z, _, _ = world
    S = normalise(A)
    at_once = smooth(Z, S, beta, first + then)
    assert_array_equal(smooth(smooth(Z, S, beta, first), S, beta, then), at_once)


@SOME
@given(worlds())
def test_residual_is_label_minus_score(world):
    "The residual is stored where a label is, and nowhere else."
    _, Z, known, Y = world
    E = residual(Z, marked(known, Y))
    assert E.nnz == known.sum()
    assert_allclose(E.toarray(), np.where(known, Y - Z, 0), rtol=0, atol=1e-7)


@SOME
@given(worlds())
def test_held_residuals_put_the_labels_in(world):
    "With a fixed scale and full trust, however far the residual is spread, labelled films score their label."
    A, Z, known, Y = world
    config = CorrectAndSmooth("diffusion", alpha=1, half_trust=0, spread=0.7, steps=4)
    found = refine(Z, marked(known, Y), operators(A, config), config)
    assert_allclose(found[known], Y[known], rtol=0, atol=1e-6)


@SOME
@given(worlds(), st.sampled_from(SCALES), st.integers(0, 4))
def test_autoscale_knows_two_sizes(world, scale, steps):
    "Autoscale moves every film by the mean error or not at all; other scales stay finite too."
    A, Z, known, Y = world
    E = residual(Z, marked(known, Y))
    R = spread_residual(E, normalise(A, "symmetric"), 0.8, steps, scale)
    assert R.shape == Z.shape and np.isfinite(R).all()
    if scale == "autoscale":
        for u in range(Z.shape[1]):
            sigma = np.abs(E[:, [u]].data).mean() if E[:, [u]].nnz else 0
            moved = np.abs(R[:, u])
            assert ((moved < sigma / 1000 + 1e-6) | np.isclose(moved, sigma, rtol=1e-4)).all()


@SOME
@given(worlds(), st.floats(0, 0.9), st.sampled_from(NORMALISATIONS))
def test_many_steps_reach_the_closed_form(world, alpha, how):
    "Without a clamp, spreading comes to rest at (1 - alpha) (I - alpha S)^-1 X0."
    A, Z, _, _ = world
    A = A.maximum(A.T)  # eigenvalues of S within 1, whatever the normalisation
    S = normalise(sparse.csr_matrix(A), how)
    rest = (1 - alpha) * np.linalg.solve(np.eye(len(Z)) - alpha * S.toarray().astype(np.float64), Z)
    assert_allclose(propagate(Z, S, alpha, 300), rest, rtol=0, atol=2e-4)


@SOME
@given(worlds(), st.floats(-2, 2), st.sampled_from(["fixed", "own", "neighbours"]))
def test_corrections_are_linear_in_the_residual(world, a, which):
    "Where nothing is clamped or rescaled, a times the residual gives a times the correction."
    A, Z, known, Y = world
    E = residual(Z, marked(known, Y))
    graph = operators(A, CorrectAndSmooth())

    def R(E):
        if which == "fixed":
            return spread_residual(E, graph.spread, 0.6, 3)
        return neighbour_residual(E, graph.near, 1.0) if which == "neighbours" else E.toarray()

    assert_allclose(R(np.float32(a) * E), np.float32(a) * R(E), rtol=1e-4, atol=1e-5)


@SOME
@given(worlds(), st.floats(0, 1), st.integers(1, 4), st.booleans())
def test_smoothing_labels_stays_in_bounds(world, beta, T, keep):
    "Label smoothing stays between 0 and 1, keeps equal scores, and kept labels are labels."
    A, Z, known, Y = world
    S = normalise(A)
    found = smooth_labels(Z, marked(known, Y), S, beta, T, keep)
    assert found.min() >= 0 and found.max() <= 1
    if keep:
        assert_array_equal(found[known], Y[known])
    same = np.full_like(Z, 0.3)
    assert_allclose(smooth_labels(same, marked(known, same), S, beta, T, keep), same, rtol=0, atol=1e-5)


@SOME
@given(st.integers(0, 1000), st.floats(0, 2), st.floats(0, 500))
def test_trust_grows_with_labels(n, alpha, half):
    "More labels, never less trust; never more than alpha; at nu labels half of it."
    found = trust(np.array([n, n + 1]), alpha, half)
    assert 0 <= found[0] <= found[1] * (1 + 1e-6) and found[1] <= alpha * (1 + 1e-6)
    if half >= 1:
        assert_allclose(trust(np.array([half]), alpha, half), alpha / 2, rtol=1e-5, atol=1e-30)


@SOME
@given(worlds())
def test_cells_are_in_the_order_of_the_data(world):
    "Dense entries at the cells are the stored data."
    _, Z, known, Y = world
    labels = marked(known, Y + 1)
    assert_array_equal(labels.toarray()[cells(labels)], labels.data)


@SOME
@given(worlds())
def test_full_trust_puts_the_labels_in(world):
    "With the own rule, alpha = 1 and T = 0, labelled films score their label, stored 0s too."
    A, Z, known, Y = world
    config = CorrectAndSmooth("own", alpha=1, half_trust=0, T=0)
    found = refine(Z, marked(known, Y), operators(A, config), config)
    assert_allclose(found, np.where(known, Y, Z), rtol=0, atol=1e-6)


def test_disliked_films_are_labels_too():
    "A stored 0 lowers the score of its film and of its neighbour, also through `Scorer`."
    A = sparse.csr_matrix(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]], np.float32))
    Y = label_matrix([1], [0], [0.0], (3, 2))
    assert Y.nnz == 1
    config = CorrectAndSmooth("neighbours", alpha=1, half_trust=0, shrinkage=1.5)
    model = Embeddings(*(np.zeros(o, np.float32) for o in ((3, 2), 3, (2, 2), 2)))
    scorer = Scorer(model, Y, operators(A, config), config)
    base, refined = scorer.pairs(np.array([1, 1, 1, 0, 0, 0]), np.array([0, 1, 2, 0, 1, 2]))
    assert_array_equal(base, np.float32(0.5))
    half_less = 0.5 - 0.5 * np.array([1 / 2.5, 0.5 / 2, 0])
    assert_allclose(refined, [*half_less, 0.5, 0.5, 0.5], rtol=0, atol=1e-6)


@SOME
@given(st.floats(0.01, 1), st.floats(-1, 1), st.floats(0, 9))
def test_one_labelled_neighbour_hands_its_residual_on(weight, error, shrinkage):
    "Unshrunk, the film beside gets exactly that residual, however weak the tie; shrunk, a share."
    near = sparse.csr_matrix(np.array([[1, 0, 0], [weight, 1, 0], [0, 0, 1]], np.float32))
    E = sparse.csc_matrix((np.array([error], np.float32), ([0], [0])), shape=(3, 1))
    plainly = neighbour_residual(E, near, 0)
    assert plainly[2, 0] == 0  # the third film has no labelled neighbour
    assert_allclose(plainly[:2, 0], np.float32(error), rtol=1e-6, atol=1e-30)
    shrunk = neighbour_residual(E, near, shrinkage)[:, 0]
    share = np.array([1 / (1 + shrinkage), weight / (weight + shrinkage), 0])
    assert_allclose(shrunk, error * share, rtol=1e-5, atol=1e-30)


@SOME
@given(worlds())
def test_correct_adds_a_share_where_stored(world):
    "Correcting moves stored cells by alpha times the residual and leaves the others."
    _, Z, known, Y = world
    E = residual(Z, marked(known, Y))
    wanted = np.where(known, Z + np.float32(0.25) * (Y - Z), Z)
    assert_allclose(correct(Z, E, 0.25), wanted, rtol=0, atol=1e-6)


@st.composite
def scorers(draw):
    "A scorer with made-up embeddings over a made-up world."
    A, Z, known, Y = draw(worlds())
    config = draw(CONFIGS)
    (n, m), k = Z.shape, draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    parts = (rng.normal(0, 2, o).astype(np.float32) for o in ((n, k), n, (m, k), m))
    return Scorer(Embeddings(*parts), marked(known, Y), operators(A, config), config)


@SOME
@given(scorers(), st.integers(1, 7), st.data())
def test_blocks_of_any_size_equal_the_whole(scorer, size, data):
    "Users asked for in any order, some twice, get what the whole matrix says."
    n, m = scorer.labels.shape
    users = np.array(data.draw(st.lists(st.integers(0, m - 1), max_size=12)), np.int64)
    Z = scorer.model.block(np.arange(m))
    whole = refine(Z, scorer.labels, scorer.graph, scorer.config)
    seen = []
    for at, base, refined in scorer.blocks(users, megabytes=4 * n * size / 2**20):
        assert base.shape[1] == len(users[at]) <= size
        assert_allclose(base, Z[:, users[at]], rtol=0, atol=1e-6)
        assert_allclose(refined, whole[:, users[at]], rtol=0, atol=1e-5)
        seen.extend(users[at])
    assert_array_equal(seen, users)


@SOME
@given(scorers(), st.integers(1, 7), st.data())
def test_pairs_equal_blocks(scorer, size, data):
    "Pairs in any order, some twice, get the scores that the blocks hold."
    n, m = scorer.labels.shape
    cells = st.lists(st.tuples(st.integers(0, m - 1), st.integers(0, n - 1)), max_size=20)
    user, item = np.array(data.draw(cells), np.int64).reshape(-1, 2).T
    base, refined = scorer.pairs(user, item, megabytes=4 * n * size / 2**20)
    whole = list(scorer.blocks(np.arange(m)))
    assert len(whole) == 1
    _, before, after = whole[0]
    assert_allclose(base, before[item, user], rtol=0, atol=1e-6)
    assert_allclose(refined, after[item, user], rtol=0, atol=1e-5)
    assert_allclose(base, scorer.model.pairs(user, item), rtol=0, atol=1e-6)


@SOME
@given(worlds(), st.sampled_from([0.0, 0.5, 6.0]))
def test_neighbour_residual_is_two_sparse_products(world, shrinkage):
    "The compiled loops against A E and A times the pattern of E, dense, whichever way edges point."
    A, Z, known, Y = world
    E, near = residual(Z, marked(known, Y)), operators(A, CorrectAndSmooth()).near
    total, weight = near.toarray() @ E.toarray(), near.toarray() @ known.astype(np.float32)
    expected = np.where(weight > 0, total / np.maximum(weight + shrinkage, 1e-9), 0)
    assert_allclose(neighbour_residual(E, near, shrinkage), expected, rtol=0, atol=1e-5)
    everywhere = sparse.csc_matrix(np.ones_like(Z))
    found = heard(everywhere, E, near)
    assert_allclose(found[0], total.T.ravel(), rtol=0, atol=1e-5)
    assert_allclose(found[1], weight.T.ravel(), rtol=0, atol=1e-5)


@SOME
@given(scorers())
def test_threads_change_nothing(scorer):
    "One thread and all of them give the same bits, in blocks and in pairs."
    n, m = scorer.labels.shape
    user, item = np.divmod(np.arange(n * m), n)
    found, threads = [], numba.get_num_threads()
    for o in (1, threads):
        numba.set_num_threads(o)
        ((_, _, refined),) = scorer.blocks(np.arange(m))
        found.append((refined, *scorer.pairs(user, item)))
    for one, many in zip(*found, strict=True):
        assert_array_equal(one, many)


@SOME
@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.01))
def test_blocks_hold_each_user_once_and_fit(n_users, n_items, megabytes):
    "Blocks follow on each other, and none but blocks of one user exceed the memory."
    found = list(user_blocks(n_users, n_items, megabytes))
    assert [u for o in found for u in range(o.start, o.stop)] == list(range(n_users))
    for o in found:
        size = o.stop - o.start
        assert size == 1 or 4 * n_items * size <= megabytes * 2**20


@pytest.mark.parametrize(
    "name, value",
    [
        ("rule", "other"),
        ("alpha", -0.1),
        ("alpha", 101),
        ("half_trust", -1),
        ("spread", 1.5),
        ("steps", 0.5),
        ("scale", "film"),
        ("smoothing", "both"),
        ("keep_labels", 2),
        ("alpha", float("nan")),
        ("shrinkage", -1),
        ("beta", 2),
        ("T", 1.5),
        ("T", -1),
        ("normalisation", "sum"),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    "A setting that cannot be is refused by name and value."
    with pytest.raises(InputError, match=f"{name} must be .*got {value!r}"):
        CorrectAndSmooth(**{name: value})
