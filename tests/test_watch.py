"""Watch scores against the formulas in plain NumPy of 64 bits: weights, scores, parts, new movies."""

import numba
import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounding import rounding
from scipy import sparse
from threadpoolctl import threadpool_limits

from correct_smooth.checks import InputError
from correct_smooth.dataset import Interactions
from correct_smooth.graph import cosine_knn, normalise
from correct_smooth.watch import (
    WatchConfig,
    content_neighbours,
    few_users_weights,
    filling,
    fit_watch,
    gram,
    inverse_in_place,
    item_weights,
    largest_weights,
    list_score,
    many_users_weights,
    user_weights,
    watched,
    with_mean,
    with_movies,
)

SOME = tried(25, 400)
SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 25)
DENSITY = st.sampled_from([0, 0.05, 0.3, 1])


def some_pairs(n_items, n_users, density, seed):
    "Ratings at random; users and items without any among them, and popular items."
    rng = np.random.default_rng(seed)
    item, user = np.nonzero(rng.random((n_items, n_users)) < density * rng.random((n_items, 1)) ** 0.5)
    rating = rng.integers(1, 6, len(user)).astype(np.float32)
    liked = (rating > 3).astype(np.float32)
    ids = pd.RangeIndex(n_users, name="user_id"), pd.RangeIndex(n_items, name="item_id")
    return Interactions(user.astype(np.int32), item.astype(np.int32), rating, liked, *ids)


def plain_matrix(pairs, disliked=0.8):
    M = np.zeros((len(pairs.items), len(pairs.users)))
    M[pairs.item, pairs.user] = np.where(pairs.y == 1, 1, np.float32(disliked))
    return M


def plain_user_weights(M):
    n = (M > 0).sum(axis=0)
    d = np.where(n > 0, np.maximum(n, 1) ** -0.5, 0.0)
    return d / d[n > 0].mean() if n.any() else d


def plain_weights(M, d, penalty):
    "EASE as Steck writes it, users weighted."
    P = np.linalg.inv((M * d) @ M.T + penalty * np.eye(len(M)))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    return B


def weights_bound(M, d, penalty):
    """How far weights in 32 bits may lie from the plain ones.

    An inverse of n rows errs by n^2 eps times how badly it is conditioned (Higham, Accuracy and Stability,
    14.3), the sums that go into it and come out of it by as many eps as they have terms; none is larger than
    the condition number over the least diagonal, and a weight divides by that diagonal once.
    """
    largest = np.linalg.norm((M * d) @ M.T, 2) if M.any() else 0.0
    condition = (largest + penalty) / penalty
    terms = sum(M.shape) + min(M.shape) ** 2
    return rounding(terms, condition**2)


def whole(columns, n):
    "All columns of B side by side, each once."
    B, times = np.zeros((n, n)), np.zeros(n, int)
    for rows, at, part in columns:
        B[np.ix_(rows, at)] = part
        times[at] += 1
    assert times.max(initial=0) <= 1
    return B


@SOME
@given(SIZES, SIZES, DENSITY, st.sampled_from([0.3, 6.0, 1e6]), SEEDS)
def test_few_and_many_users_give_the_plain_weights(n_items, n_users, density, penalty, seed):
    "More users than items and fewer, users and items without ratings, nothing at all."
    pairs = some_pairs(n_items, n_users, density, seed)
    M, plain = watched(pairs), plain_matrix(pairs)
    assert_array_equal(M.toarray(), plain.astype(np.float32))
    d, users = user_weights(M)
    assert users == (plain.sum(axis=0) > 0).sum()
    assert_allclose(d, plain_user_weights(plain), rtol=1e-12)
    wanted, bound = plain_weights(plain, d, penalty), weights_bound(plain, d, penalty)
    assert_allclose(whole(few_users_weights(M, d, penalty), n_items), wanted, rtol=0, atol=bound)
    assert_allclose(whole(many_users_weights(M, d, penalty), n_items), wanted, rtol=0, atol=bound)


@SOME
@given(SIZES, SIZES, DENSITY, st.integers(1, 25), SEEDS)
def test_the_tail_is_a_ridge_regression_on_the_head(n_items, n_users, density, head, seed):
    "And draws nothing itself; the head is the most watched movies."
    pairs = some_pairs(n_items, n_users, density, seed)
    M, plain = watched(pairs), plain_matrix(pairs)
    d, _ = user_weights(M)
    count = (plain > 0).sum(axis=1)
    order = np.argsort(-count, kind="stable")
    first, rest = order[:head], order[head:]
    first, rest = first[count[first] > 0], rest[count[rest] > 0]
    wanted, H = np.zeros((n_items, n_items)), plain[first]
    wanted[np.ix_(first, first)] = plain_weights(H, d, 6.0)
    wanted[np.ix_(first, rest)] = np.linalg.solve((H * d) @ H.T + 6 * np.eye(len(H)), (H * d) @ plain[rest].T)
    found = whole(many_users_weights(M, d, 6.0, head), n_items)
    size = max(1.0, np.abs((H * d) @ plain[rest].T).max(initial=0))
    assert_allclose(found, wanted, rtol=0, atol=weights_bound(plain, d, 6.0) * size)


@SOME
@given(SIZES, SIZES, DENSITY, SEEDS)
def test_products_are_those_of_dense_matrices(n, m, density, seed):
    "Only the lower half is made; on one thread or all of them, to the last bit."
    rng = np.random.default_rng(seed)
    M, d = sparse.random(n, m, density, format="csr", rng=rng, dtype=np.float32), rng.random(m)
    wanted = (M.toarray().astype(float) * d) @ M.toarray().T
    threads, found = numba.get_num_threads(), []
    for some in (1, threads):
        numba.set_num_threads(some)
        found.append(gram(M, d))
    assert_allclose(found[0], np.tril(wanted), rtol=0, atol=rounding(m + 2, max(1.0, wanted.max())))
    assert_array_equal(*found)


@pytest.mark.parametrize("n", [1, 2, 3, 300, 2_100])
def test_inverse_lies_where_the_matrix_lay(n):
    "In blocks, the last one shorter; what the upper half holds is not read."
    some = np.random.default_rng(n).normal(size=(n, 20)).astype(np.float32)
    square = some @ some.T + 20 * np.eye(n, dtype=np.float32)
    K = np.where(np.tri(n, dtype=bool), square, np.float32(np.nan))
    found = inverse_in_place(K)
    assert np.shares_memory(found, K) and (found == found.T).all()
    condition = np.linalg.norm(some, 2) ** 2 / 20 + 1
    assert_allclose(found @ square, np.eye(n), rtol=0, atol=rounding(4 * n, condition**2))


@pytest.mark.parametrize("users", [30, 90])
def test_a_penalty_too_small_for_32_bits_is_refused(users):
    "Never a weight that is infinite, or noise: everybody has watched everything."
    M = watched(some_pairs(60, users, 1e9, 0), disliked=1.0)
    for columns in (few_users_weights, many_users_weights):
        with pytest.raises(InputError, match="raise the penalty"):
            list(columns(M, np.full(users, 1e4), 1e-4))


@SOME
@given(SIZES, SIZES, st.integers(1, 400), st.sampled_from([2, 5, 1000]), st.integers(1, 6), SEEDS)
def test_largest_weights_are_the_head_of_a_sort(n_items, n_columns, keep, levels, parts, seed):
    "Columns in parts and in any order, equal weights, zeros; never more than were asked for."
    rng = np.random.default_rng(seed)
    n = max(n_items, n_columns)
    B, count = np.zeros((n, n), np.float32), rng.integers(0, 5, n)
    rows, order = rng.permutation(n)[:n_items], rng.permutation(n)[:n_columns]
    B[np.ix_(rows, order)] = rng.integers(-levels, levels + 1, (n_items, n_columns)) / levels
    cut = np.array_split(order, parts)
    found = largest_weights(((rows, at, B[np.ix_(rows, at)]) for at in cut), count, keep)
    size = np.abs(B) * np.sqrt(count).astype(np.float32)[:, None]
    least = np.sort(size, axis=None)[::-1][min(keep, size.size) - 1]
    kept = found.toarray()
    assert_array_equal(kept[kept != 0], B[kept != 0])
    assert found.nnz == min(keep, np.count_nonzero(size)) and found.has_sorted_indices
    assert (kept[size > least] == B[size > least]).all() and not kept[size < least].any()


def test_equal_weights_do_not_fill_the_memory():
    "Everybody has watched everything: all weights are one number, and of these only so many are kept."
    pairs = some_pairs(300, 3, 1e9, 0)
    assert len(pairs) == 900
    B = item_weights(watched(pairs, disliked=1.0), WatchConfig(weights=5))
    assert B.nnz == 1_500


def scored(watch, users):
    "Scores of the formula in 64 bits, a column a user, and a bound on what 32 bits may differ by."
    M, n_users = watch.M.toarray().astype(float), watch.M.shape[1] - 1
    mine = np.where(np.diff(watch.M.indptr)[users] > 0, M[:, users], M[:, [n_users]])
    S, k, beta = watch.S.toarray().astype(float), watch.known.astype(float), watch.config.beta
    Q0 = watch.B.toarray().astype(float).T @ mine
    over, under = (1 - beta) * k[:, None] * Q0 + beta * S @ (k[:, None] * Q0), (1 - beta) * k + beta * S @ k
    Q = np.divide(over, under[:, None], out=np.zeros_like(over), where=under[:, None] > 1e-9)
    size = (abs(watch.B.toarray()).T @ mine).max(initial=0) + 1
    return Q * np.where(watch.known, 1, watch.config.unrated)[:, None], rounding(3 * len(k) + 10, size)


def some_watch(n_items, n_users, density, seed, **settings):
    rng = np.random.default_rng(seed)
    X = sparse.random(n_items, 12, 0.3, format="csr", rng=rng, dtype=np.float32)
    config = WatchConfig(**settings)
    return fit_watch(some_pairs(n_items, n_users, density, seed), content_neighbours(X, config.k), config), X


SETTINGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 5),
        "beta": st.sampled_from([0, 0.35, 1]),
        "unrated": st.sampled_from([0, 0.8, 1]),
        "disliked": st.sampled_from([0, 0.8, 1]),
        "head": st.sampled_from([1, 7, 10_000]),
        "weights": st.sampled_from([1, 3, 200]),
    }
)


@SOME
@given(SIZES, SIZES, DENSITY, SETTINGS, SEEDS)
def test_scores_are_those_of_the_formula(n_items, n_users, density, settings, seed):
    "One user at a time or all, on one thread or more; strangers have the mean of all."
    watch, _ = some_watch(n_items, n_users, density, seed, **settings)
    everybody = np.arange(n_users + 1)
    wanted, bound = scored(watch, everybody)
    threads, found = numba.get_num_threads(), []
    for some in (1, threads):
        numba.set_num_threads(some)
        found.append(watch.block(everybody))
    assert found[0].shape == (n_items, n_users + 1) and found[0].dtype == np.float32
    assert_allclose(found[0], wanted, rtol=0, atol=bound)
    assert_array_equal(*found)
    order = np.random.default_rng(seed).permutation(n_users + 1)
    assert_array_equal(watch.block(order), found[0][:, order])
    assert_array_equal(watch.block(order[:1]), found[0][:, order[:1]])
    assert watch.block(order[:0]).shape == (n_items, 0)


def test_many_users_get_the_scores_of_few():
    "More are scored side by side, the last of them alone; to the last bit."
    watch, _ = some_watch(70, 30, 0.2, 0)
    users = np.random.default_rng(0).integers(0, 31, 64 * 4 + 1)
    found = watch.block(users)
    assert_array_equal(found, watch.block(np.arange(31))[:, users])
    assert_array_equal(found[:, :64], watch.block(users[:64]))


@SOME
@given(SIZES, SIZES, DENSITY, SETTINGS, SEEDS)
def test_contributions_add_up(n_items, n_users, density, settings, seed):
    "Of what was watched and of nothing else, strangers included."
    watch, _ = some_watch(n_items, n_users, density, seed, **settings)
    user, item = seed % (n_users + 1), seed % n_items
    added = watch.contributions(user, item)
    _, bound = scored(watch, np.array([user]))
    assert_allclose(added.sum(), watch.block(np.array([user]))[item, 0], rtol=0, atol=2 * bound)
    assert set(added.indices) == set(watch.histories(np.array([user])).indices)


@SOME
@given(SIZES, SIZES, DENSITY, SEEDS)
def test_the_mean_user_is_the_weighted_mean(n_items, n_users, density, seed):
    pairs = some_pairs(n_items, n_users, density, seed)
    M = with_mean(watched(pairs))
    plain = plain_matrix(pairs)
    d = plain_user_weights(plain)
    assert_array_equal(M[:, :-1].toarray(), plain.astype(np.float32))
    wanted = plain @ d / max(d.sum(), 1)
    assert_allclose(M[:, [-1]].toarray().ravel(), wanted, rtol=0, atol=rounding(n_users + 3))


def in_parts(fit, parts):
    """What each part gets when `total` sums over all of them.

    Each sum that a part asks for needs what every part brings to it, so all parts are run again and again,
    and each time one more sum is known.
    """
    sums = []
    while True:
        brought, results = [], []
        for part in parts:
            asked = iter(range(len(sums) + 1))

            def total(array, asked=asked, brought=brought):
                turn = next(asked)
                if turn == len(sums):
                    brought.append(np.array(array))
                    raise StopAsyncIteration
                return sums[turn].copy()

            try:
                results.append(fit(part, total))
            except StopAsyncIteration:
                continue
        if results:
            assert not brought and len(results) == len(parts)
            return results
        assert len(brought) == len(parts) and len({(one.shape, one.dtype) for one in brought}) == 1
        sums.append(sum(brought[1:], brought[0].copy()))


def of_users(pairs, users):
    "The ratings of some users, who are numbered anew."
    keep = np.isin(pairs.user, users)
    place = np.full(len(pairs.users), -1, np.int32)
    place[users] = np.arange(len(users))
    arrays = (a[keep] for a in (pairs.item, pairs.rating, pairs.y))
    return Interactions(place[pairs.user[keep]], *arrays, pairs.users[users], pairs.items)


@tried(10, 100)
@given(SIZES, st.integers(2, 25), DENSITY, st.integers(2, 4), st.sampled_from([3, 10_000]), SEEDS)
def test_parts_of_the_users_learn_what_all_of_them_say(n_items, n_users, density, n_parts, head, seed):
    "A part may have no ratings, or no users; all of them ask for the same sums in the same order."
    pairs = some_pairs(n_items, n_users, density, seed)
    S = sparse.identity(n_items, np.float32, format="csr")
    config, rng = WatchConfig(head=head), np.random.default_rng(seed)
    where = rng.integers(0, n_parts, n_users)
    parts = [of_users(pairs, np.flatnonzero(where == part)) for part in range(n_parts)]
    found = in_parts(lambda part, total: fit_watch(part, S, config, total), parts)
    alone = fit_watch(pairs, S, config, total=np.asarray)
    plain = plain_matrix(pairs)
    d = plain_user_weights(plain)
    bound = weights_bound(plain, d, config.penalty * max(1.0, np.sqrt(n_users))) * max(1.0, (plain * d).sum())
    for part, watch in zip(range(n_parts), found, strict=True):
        assert_array_equal(watch.count, alone.count)
        assert_allclose(watch.B.toarray(), alone.B.toarray(), rtol=0, atol=bound)
        assert_array_equal(watch.M[:, :-1].toarray(), plain[:, where == part].astype(np.float32))
        assert_allclose(
            watch.M[:, [-1]].toarray(), alone.M[:, [-1]].toarray(), rtol=0, atol=rounding(n_users + 3)
        )
        assert (watch.B != found[0].B).nnz == 0  # the same weights everywhere, to the last bit


@SOME
@given(SIZES, SIZES, DENSITY, st.integers(0, 6), SETTINGS, SEEDS)
def test_new_movies_take_from_the_nearest(n_items, n_users, density, n_new, settings, seed):
    "Scores of the others stay to the last bit; a new movie has the mean of its neighbours that are known."
    watch, X = some_watch(n_items, n_users, density, seed, **settings)
    rng = np.random.default_rng(seed + 1)
    more = sparse.vstack(
        [X, sparse.random(n_new, 12, 0.4, format="csr", rng=rng, dtype=np.float32)], format="csr"
    )
    wider = with_movies(watch, more)
    assert len(wider.known) == n_items + n_new and not wider.known[n_items:].any()
    assert len(watch.known) == n_items == watch.M.shape[0] == watch.S.shape[0]  # it is not changed
    users = np.arange(n_users + 1)
    before, after = watch.block(users), wider.block(users)
    assert_array_equal(after[:n_items], before)
    assert_allclose(after, scored(wider, users)[0], rtol=0, atol=scored(wider, users)[1])
    twice = with_movies(with_movies(watch, more[: n_items + n_new // 2]), more)
    assert twice.block(users).shape == after.shape


@SOME
@given(st.integers(1, 25), st.integers(1, 9), st.sampled_from([0, 0.35, 1]), SEEDS)
def test_fillings_are_means_of_what_is_known(n, k, beta, seed):
    "Rows add up to 1, or to the share of unrated movies, or are empty; nothing is taken from the unknown."
    rng = np.random.default_rng(seed)
    S = normalise(cosine_knn(sparse.random(n, 6, 0.4, format="csr", rng=rng, dtype=np.float32), k))
    known = rng.random(n) < 0.5
    F = filling(S, known, WatchConfig(beta=beta, unrated=0.25))
    sums, full = np.asarray(F.sum(axis=1)).ravel(), np.where(known, 1, 0.25)
    empty = np.diff(F.indptr) == 0
    assert_allclose(sums, np.where(empty, 0, full), rtol=0, atol=rounding(n + 5))
    assert not F[:, ~known].nnz and (beta == 1 or not empty[known].any()) and (F.data > 0).all()


@SOME
@given(st.integers(1, 30), st.sampled_from([0, 0.5, 1, 3]), SEEDS)
def test_list_scores_stay_below_watch_scores(n, liking, seed):
    "And in their order where liking is as likely; with g = 0 they are the watch scores."
    rng = np.random.default_rng(seed)
    Q, P = rng.normal(size=(n, 4)).astype(np.float32), rng.random((n, 4), np.float32)
    P[0] = 0, 1, 0, 1
    score = list_score(Q, P, liking)
    assert score.dtype == np.float32 and (score <= Q).all() and ((score < 0) == (Q < 0)).all()
    if liking == 0:
        assert_array_equal(score, Q)


def test_threads_of_the_algebra_change_no_more_than_rounding():
    pairs = some_pairs(400, 300, 0.2, 0)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(item_weights(watched(pairs), WatchConfig(weights=400)).toarray())
    plain = plain_matrix(pairs)
    d = plain_user_weights(plain)
    assert_allclose(*found, rtol=0, atol=weights_bound(plain, d, 6 * np.sqrt(300)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disliked", 1.1), ("penalty", 0), ("penalty", float("nan")), ("k", 0), ("k", 2.5), ("beta", -0.1),
        ("unrated", 2), ("liking", -1), ("liking", True), ("head", 46_341), ("weights", 0),
    ],
)  # fmt: skip
def test_settings_are_checked(name, value):
    with pytest.raises(InputError, match=name):
        WatchConfig(**{name: value})
