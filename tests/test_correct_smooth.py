"""Correcting and smoothing against a plain loop over users, and laws that must hold."""

from dataclasses import dataclass

import numba
import numpy as np
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import (
    RULES,
    CorrectAndSmooth,
    Operators,
    Refinement,
    Scorer,
    cells,
    correct,
    label_matrix,
    neighbour_residual,
    neighbour_sums,
    refine,
    residual,
    smooth,
    trust,
    user_blocks,
)
from correct_smooth.diffusion import (
    SCALES,
    SMOOTHINGS,
    Diffusion,
    propagate,
    smooth_labels,
    spread_back,
    spread_residual,
)
from correct_smooth.embeddings import Embeddings
from correct_smooth.explain import parts
from correct_smooth.graph import NORMALISATIONS, normalise
from correct_smooth.topn import Ranking, top_blocks

SOME = tried(20, 300)


@st.composite
def worlds(draw):
    "A graph A, scores Z, and labels as known marks and values; some movies stand alone."
    n, m = draw(st.integers(2, 25)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    A = rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < draw(st.sampled_from([0, 0.1, 0.4, 1])))
    A = np.maximum(A, A.T) if draw(st.booleans()) else A
    np.fill_diagonal(A, 0)
    alone = rng.random(n) < draw(st.sampled_from([0, 0.2, 0.6]))
    A[alone] = 0
    if draw(st.booleans()):
        A[:, alone] = 0  # else others still point at the movies that point nowhere
    known = rng.random((n, m)) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    kinds = {"labels": rng.integers(0, 2, (n, m)), "targets": rng.random((n, m))}
    Y = kinds[draw(st.sampled_from(sorted(kinds)))]
    Z = rng.random((n, m), np.float32)
    return sparse.csr_matrix(A.astype(np.float32)), Z, known, Y.astype(np.float32)


COMMON = {
    "alpha": st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.5]),
    "half_trust": st.sampled_from([0.0, 2.0]),
    "beta": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    "T": st.integers(0, 3),
}
LOCAL = st.builds(
    CorrectAndSmooth, rule=st.sampled_from(RULES), shrinkage=st.sampled_from([0.0, 0.5, 3.0]), **COMMON
)
DIFFUSION = st.builds(
    Diffusion,
    spread=st.sampled_from([0.0, 0.5, 1.0]),
    steps=st.integers(0, 3),
    scale=st.sampled_from(("fixed", "user")),  # autoscale has jumps at 0 and 1/1000: see below and test_pyg
    spread_normalisation=st.sampled_from(NORMALISATIONS),
    smoothing=st.sampled_from(SMOOTHINGS),
    keep_labels=st.booleans(),
    normalisation=st.sampled_from(NORMALISATIONS),
    **COMMON,
)
CONFIGS = st.one_of(LOCAL, DIFFUSION)
EVERY_RULE = st.sampled_from([*RULES, "diffusion"])


def made(rule, shrinkage=6.0, **settings):
    "A refinement by the name of its rule."
    if rule == "diffusion":
        return Diffusion(**settings)
    return CorrectAndSmooth(rule, shrinkage=shrinkage, **settings)


def marked(known, Y):
    "Labels as a sparse matrix, zeros stored where they are known."
    item, user = np.nonzero(known)
    return label_matrix(user, item, Y[item, user], known.shape)


def dense_normalise(A, how):
    "S by its definition: movies that point nowhere point to themselves."
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
    "One user, one movie after the other, in float64."
    z, n, S = z.astype(np.float64), len(z), dense_normalise(A, config.normalisation)
    error, with_self, moved = y - z, A + np.eye(n), z.copy()
    labels = known.sum()
    alpha = config.alpha * labels / (labels + config.half_trust) if labels else 0
    for i in range(n):
        if config.rule == "own" and known[i]:
            moved[i] += alpha * error[i]
        if config.rule == "neighbours" and (total := with_self[i, known].sum()) > 0:
            moved[i] += alpha * with_self[i, known] @ error[known] / (config.shrinkage + total)
    if config.rule == "diffusion":
        moved += alpha * plain_diffusion(A, error, known, config)
    start = np.where(known, y, moved)
    by_labels = getattr(config, "smoothing", "scores") == "labels"
    if by_labels and config.T:
        moved = start.copy()
    for _ in range(config.T):
        if not by_labels:
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
    found = refine(Z, marked(known, Y), Operators(A), config)
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
    found = refine(Z, marked(known, Y), Operators(A), config)
    assert found.shape == Z.shape and np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1


@SOME
@given(worlds(), CONFIGS)
def test_nothing_handed_in_is_changed(world, config):
    "Scores, labels and graph are the same after refining."
    A, Z, known, Y = world
    labels, graph = marked(known, Y), Operators(A)
    held = [Z, A.data, A.indices, labels.data, labels.indices]
    held += [graph.with_self.data, *(graph.normalised(how).data for how in NORMALISATIONS)]
    before = [array.copy() for array in held]
    refine(Z, labels, graph, config)
    for now, then in zip(held, before, strict=True):
        assert_array_equal(now, then)


@SOME
@given(worlds(), EVERY_RULE)
def test_without_trust_or_steps_scores_stay(world, rule):
    "alpha = 0 and T = 0 change nothing, nor do many steps with beta = 0."
    A, Z, known, Y = world
    for config in (made(rule, alpha=0, T=0), made(rule, alpha=0, beta=0, T=3)):
        assert_array_equal(refine(Z, marked(known, Y), Operators(A), config), Z)


@SOME
@given(worlds(), EVERY_RULE, st.sampled_from([0.0, 3.0]))
def test_without_labels_only_smoothing_is_left(world, rule, shrinkage):
    "A user without labels keeps the base scores, smoothed if T > 0."
    A, Z, known, Y = world
    none = marked(known & False, Y)
    for T in (0, 2):
        config = made(rule, shrinkage, T=T)
        graph = Operators(A)
        wanted = Z if T == 0 else np.clip(smooth(Z, graph.S, config.beta, T), 0, 1)
        assert_array_equal(refine(Z, none, graph, config), wanted)
        by_labels = Diffusion(smoothing="labels", T=T)
        assert_allclose(refine(Z, none, graph, by_labels), propagate(Z, graph.S, 0.5, T), rtol=0, atol=1e-6)


@SOME
@given(worlds(), EVERY_RULE)
def test_right_scores_are_not_corrected(world, rule):
    "Where the labels are what was predicted there is nothing to correct."
    A, Z, known, _ = world
    config = made(rule, shrinkage=0)
    assert_array_equal(refine(Z, marked(known, Z), Operators(A), config), Z)


@SOME
@given(worlds(), CONFIGS, st.randoms(use_true_random=False))
def test_numbering_does_not_matter(world, config, random):
    "Movies and users in another order get the same scores in that order."
    A, Z, known, Y = world
    movie, user = (np.array(random.sample(range(o), o)) for o in Z.shape)
    there = np.ix_(movie, user)
    plainly = refine(Z, marked(known, Y), Operators(A), config)
    shuffled = marked(known[there], Y[there])
    graph = Operators(sparse.csr_matrix(A[movie][:, movie]))
    assert_allclose(refine(Z[there], shuffled, graph, config), plainly[there], rtol=0, atol=1e-5)


@SOME
@given(worlds(), CONFIGS)
def test_users_do_not_touch_each_other(world, config):
    "A user's scores are the same alone and in company."
    A, Z, known, Y = world
    labels, graph = marked(known, Y), Operators(A)
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
    "With a fixed scale and full trust, labelled movies score their label, however far residuals are spread."
    A, Z, known, Y = world
    config = Diffusion(alpha=1, half_trust=0, spread=0.7, steps=4)
    found = refine(Z, marked(known, Y), Operators(A), config)
    assert_allclose(found[known], Y[known], rtol=0, atol=1e-6)


@SOME
@given(worlds(), st.sampled_from(SCALES), st.integers(0, 4))
def test_autoscale_knows_two_sizes(world, scale, steps):
    "Autoscale moves every movie by the mean error or not at all; other scales stay finite too."
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
    graph = Operators(A)

    def R(E):
        if which == "fixed":
            return spread_residual(E, graph.normalised("symmetric"), 0.6, 3)
        return neighbour_residual(E, graph.with_self, 1.0) if which == "neighbours" else E.toarray()

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
    "With the own rule, alpha = 1 and T = 0, labelled movies score their label, stored 0s too."
    A, Z, known, Y = world
    config = CorrectAndSmooth("own", alpha=1, half_trust=0, T=0)
    found = refine(Z, marked(known, Y), Operators(A), config)
    assert_allclose(found, np.where(known, Y, Z), rtol=0, atol=1e-6)


def test_disliked_movies_are_labels_too():
    "A stored 0 lowers the score of its movie and of its neighbour, also through `Scorer`."
    A = sparse.csr_matrix(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]], np.float32))
    Y = label_matrix(np.array([1]), np.array([0]), np.zeros(1), (3, 2))
    assert Y.nnz == 1
    config = CorrectAndSmooth("neighbours", alpha=1, half_trust=0, shrinkage=1.5)
    model = Embeddings(*(np.zeros(o, np.float32) for o in ((3, 2), 3, (2, 2), 2)))
    scorer = Scorer(model, Y, Operators(A), config)
    base, refined = scorer.pairs(np.array([1, 1, 1, 0, 0, 0]), np.array([0, 1, 2, 0, 1, 2]))
    assert_array_equal(base, np.float32(0.5))
    half_less = 0.5 - 0.5 * np.array([1 / 2.5, 0.5 / 2, 0])
    assert_allclose(refined, [*half_less, 0.5, 0.5, 0.5], rtol=0, atol=1e-6)


@SOME
@given(st.floats(0.01, 1), st.floats(-1, 1), st.floats(0, 9))
def test_one_labelled_neighbour_hands_its_residual_on(weight, error, shrinkage):
    "Unshrunk, the movie beside gets exactly that residual, however weak the tie; shrunk, a share."
    weights = sparse.csr_matrix(np.array([[1, 0, 0], [weight, 1, 0], [0, 0, 1]], np.float32))
    E = sparse.csc_matrix((np.array([error], np.float32), ([0], [0])), shape=(3, 1))
    plainly = neighbour_residual(E, weights, 0)
    assert plainly[2, 0] == 0  # the third movie has no labelled neighbour
    assert_allclose(plainly[:2, 0], np.float32(error), rtol=1e-6, atol=1e-30)
    shrunk = neighbour_residual(E, weights, shrinkage)[:, 0]
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
    return Scorer(Embeddings(*parts), marked(known, Y), Operators(A), config)


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
    E, weights = residual(Z, marked(known, Y)), Operators(A).with_self
    total, weight = weights.toarray() @ E.toarray(), weights.toarray() @ known.astype(np.float32)
    expected = np.where(weight > 0, total / np.maximum(weight + shrinkage, 1e-9), 0)
    assert_allclose(neighbour_residual(E, weights, shrinkage), expected, rtol=0, atol=1e-5)
    everywhere = sparse.csc_matrix(np.ones_like(Z))
    found = neighbour_sums(everywhere, E, weights)
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
    "kind, name, value",
    [
        (CorrectAndSmooth, "rule", "other"),
        (CorrectAndSmooth, "rule", "diffusion"),
        (CorrectAndSmooth, "shrinkage", -1),
        (Diffusion, "spread", 1.5),
        (Diffusion, "steps", 0.5),
        (Diffusion, "scale", "movie"),
        (Diffusion, "smoothing", "both"),
        (Diffusion, "keep_labels", 2),
        (Diffusion, "normalisation", "sum"),
        (Diffusion, "spread_normalisation", "sum"),
        *(
            (kind, *setting)
            for kind in (CorrectAndSmooth, Diffusion)
            for setting in [
                ("alpha", -0.1),
                ("alpha", 101),
                ("alpha", float("nan")),
                ("half_trust", -1),
                ("beta", 2),
                ("T", 1.5),
                ("T", -1),
            ]
        ),
    ],
)
def test_settings_out_of_range_are_named(kind, name, value):
    "A setting that cannot be is refused by name and value."
    with pytest.raises(InputError, match=f"{name} must be .*got {value!r}"):
        kind(**{name: value})


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_that_nobody_smooths_over_is_never_normalised(rule, monkeypatch):
    "Scores of pairs and of blocks, top tens and explanations by the default rule need A alone."
    made = []

    def counted(A, how):
        made.append(how)
        return normalise(A, how)

    monkeypatch.setattr("correct_smooth.correct_smooth.normalise", counted)
    rng = np.random.default_rng(0)
    arrays = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((30, 3), 30, (8, 3), 8))
    model, known = Embeddings(*arrays), rng.random((30, 8)) < 0.3
    labels, A = marked(known, np.ones(known.shape)), sparse.random(30, 30, 0.2, "csr", np.float32, rng=rng)
    for T, wanted in ((0, []), (1, ["row"])):
        scorer = Scorer(model, labels, Operators(A), CorrectAndSmooth(rule, T=T))
        users, item = np.arange(8), np.arange(8)
        scorer.pairs(users, item)
        assert len(list(scorer.blocks(users))) == 1
        assert len(list(top_blocks(Ranking(scorer), users, 3, np.zeros(30, bool), progress=False))) == 1
        z = model.block(users[:1])[:, 0]
        parts(0, lambda at, z=z: z[at], labels[:, [0]], scorer.graph, scorer.config)
        assert made == wanted  # once, whoever asks


@SOME
@given(worlds(), CONFIGS, st.integers(0, 24))
def test_parts_add_up_to_the_refined_score(world, config, item):
    "For every rule that is linear, taken apart by its own way back."
    A, Z, known, Y = world
    if isinstance(config, Diffusion) and (config.scale != "fixed" or config.smoothing == "labels"):
        config = Diffusion(config.alpha, config.half_trust, config.spread, config.steps, T=config.T)
    item, labels, graph = item % len(Z), marked(known, Y), Operators(A)
    whole = refine(Z, labels, graph, config)
    for u in range(Z.shape[1]):
        found = parts(item, lambda at, u=u: Z[at, u], labels[:, [u]], graph, config)
        assert abs(found.refined - whole[item, u]) < 1e-4


@SOME
@given(worlds(), st.sampled_from(NORMALISATIONS), st.floats(0, 1), st.integers(0, 4))
def test_spreading_back_is_the_adjoint_of_spreading(world, how, spread, steps):
    "Weights walked back to the labels give the sums that spreading the residuals forward gives."
    A, Z, known, Y = world
    E, S, s = residual(Z, marked(known, Y)), normalise(A, how), np.linspace(0, 1, len(Z))
    forward = s @ spread_residual(E, S, spread, steps)
    for u in range(Z.shape[1]):
        column = E[:, [u]]
        back = spread_back(s, S, column.indices, spread, steps) @ column.data
        assert_allclose(back, forward[u], rtol=1e-4, atol=1e-4)


def test_a_rule_of_your_own_goes_through_everything():
    "One that says no more than `neighbourhood` is scored in pairs and blocks and taken apart."

    @dataclass(frozen=True)
    class Strong(Refinement):
        alpha: float = 1.0
        half_trust: float = 2.0
        beta: float = 0.3
        T: int = 1

        def neighbourhood(self, graph):
            return graph.with_self.multiply(graph.with_self >= 0.5).tocsr(), 1.0

    rng = np.random.default_rng(0)
    arrays = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((30, 3), 30, (8, 3), 8))
    model, known = Embeddings(*arrays), rng.random((30, 8)) < 0.3
    labels, A = marked(known, rng.random(known.shape)), sparse.random(30, 30, 0.4, "csr", np.float32, rng=rng)
    for T in (0, 1, 2):
        scorer = Scorer(model, labels, Operators(A), Strong(T=T))
        ((_, base, whole),) = scorer.blocks(np.arange(8))
        user, item = np.divmod(np.arange(8 * 30), 30)
        assert_allclose(scorer.pairs(user, item)[1], whole[item, user], rtol=0, atol=1e-5)
        for i in range(30):
            found = parts(i, lambda at, base=base: base[at, 0], labels[:, [0]], scorer.graph, scorer.config)
            assert abs(found.refined - whole[i, 0]) < 1e-5
    with pytest.raises(InputError, match="beta must be a number from 0 to 1, got 2"):
        Strong(beta=2)
