"""Metrics against scikit-learn and brute force, and comparisons that must come out one way."""

from itertools import combinations

import numba
import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from scipy.special import gammaln
from scipy.stats import bootstrap
from sklearn import metrics as sk

from correct_smooth.checks import InputError
from correct_smooth.evaluate import (
    BOOTSTRAP_USERS,
    METRICS,
    compare,
    diversity,
    gain_by_history,
    mean_interval,
    user_metrics,
)
from correct_smooth.plots import plot_calibration, plot_diversity

SOME = tried(20, 300)
ORDER = ["roc_auc", "average_precision", "ndcg_at_10", "hr_at_10"]
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)  # ties are frequent


@st.composite
def pairs(draw, score=SCORES, n_users=4):
    "Users, labels and scores of up to forty pairs; some users have one class, one movie or none."
    busy = draw(st.integers(0, n_users - 1))  # with one user for all pairs, lists are long
    row = st.tuples(st.integers(0, busy), st.integers(0, 1), score)
    rows = draw(st.lists(row, min_size=draw(st.sampled_from([0, 25])), max_size=40))
    user, y, z = (np.array([o[k] for o in rows]) for k in range(3))
    return user.astype(np.int64), y.astype(np.int64), z.astype(np.float64), n_users


def hit_chance(y, z, k=10):
    "Share of the ways to break the tie at the kth place that bring a liked movie into the first k."
    if len(y) <= k:
        return float(y.any())
    line = np.sort(z)[::-1][k - 1]
    above, tied = y[z > line], y[z == line]
    ways = list(combinations(tied, k - len(above)))
    return float(np.mean([any(above) or any(way) for way in ways]))


def by_scikit_learn(y, z):
    "The metrics of one user with both labels, by scikit-learn and brute force."
    p = z >= 0.5
    return [
        sk.roc_auc_score(y, z),
        sk.average_precision_score(y, z),
        sk.accuracy_score(y, p),
        sk.precision_score(y, p, zero_division=0),
        sk.recall_score(y, p, zero_division=0),
        sk.f1_score(y, p, zero_division=0),
        sk.log_loss(y, z, labels=[0, 1]),
        sk.ndcg_score([y], [z], k=10),
        hit_chance(y, z),
    ]


def by_sums_over_ties(user, y, z, n_users):
    "The metrics of all users without a kernel: one sort of all pairs, then sums of one number a tie."
    z, y = np.asarray(z, np.float64), y.astype(np.float64)
    order = np.lexsort((-z, user))
    u, s, label = user[order], z[order], y[order]
    start = np.flatnonzero(np.append(True, (np.diff(u) != 0) | (np.diff(s) != 0)))
    owner, size, liked = u[start], np.diff(np.append(start, len(u))), np.add.reduceat(label, start)
    begin = np.append(0, np.cumsum(np.bincount(user, minlength=n_users)))[owner]
    above, before = start - begin, np.cumsum(label) - label
    liked_above = before[start] - before[begin]
    discount = np.append(0, np.cumsum(1 / np.log2(np.arange(2, 12))))
    shared = discount[np.minimum(above + size, 10)] - discount[np.minimum(above, 10)]
    room = np.clip(10 - above, 0, size)

    def total(value, by=user):
        return np.bincount(by, value, n_users)

    def log_choose(n, m):
        return gammaln(np.maximum(n, m) + 1) - gammaln(m + 1) - gammaln(np.maximum(n, m) - m + 1)

    called, tiny = (z >= 0.5).astype(float), np.finfo(np.float64).eps
    n, n_liked, n_called, hits = total(np.ones_like(y)), total(y), total(called), total(y * called)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.exp(log_choose(size - liked, room) - log_choose(size, room))
        missed = np.log(np.where(room <= size - liked, chance, 0))
        auc = total((size - liked) * (liked_above + liked / 2), owner) / (n_liked * (n - n_liked))
        precision = total(liked * (liked_above + liked) / (above + size), owner) / n_liked
        surprise = -np.log(np.clip(np.where(y == 1, z, 1 - z), tiny, 1 - tiny))
        found = [
            auc,
            precision,
            total(y == called) / n,
            np.where(n_called > 0, hits / n_called, 0),
            hits / n_liked,
            2 * hits / (n_liked + n_called),
            total(surprise) / n,
            total(liked / size * shared, owner) / discount[np.minimum(n_liked, 10).astype(int)],
            1 - np.exp(total(missed, owner)),
        ]
    table = pd.DataFrame(dict(zip(METRICS, found, strict=True)))
    table.loc[(n_liked == 0) | (n_liked == n)] = np.nan
    return table


def many_pairs(seed, n_users=3000, decimals=2):
    "Shuffled pairs of many users, a few of them with hundreds of movies, some with one class or none."
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), rng.lognormal(2, 1.3, n_users).astype(int))
    user = rng.permutation(user)
    y = rng.random(len(user)) < rng.random(n_users)[user]
    z = np.round(np.clip(rng.normal(0.45 + 0.15 * y, 0.25), 0, 1), decimals)
    return user, y.astype(np.int64), z, n_users


def frame(rng, n, gone=0):
    "Made-up metrics of n users, the first few of whom cannot be evaluated."
    table = pd.DataFrame(rng.random((n, len(METRICS))), columns=list(METRICS))
    table.iloc[:gone] = np.nan
    return table


@SOME
@given(pairs())
def test_equals_scikit_learn_user_by_user(rows):
    "Each user's row is scikit-learn's answer, or nan where the user lacks one of the labels."
    user, y, z, n_users = rows
    found = user_metrics(user, y, z, n_users)
    assert list(found.columns) == list(METRICS) and len(found) == n_users
    for u in range(n_users):
        own = user == u
        if len(set(y[own])) < 2:
            assert found.iloc[u].isna().all()
        else:
            wanted = by_scikit_learn(y[own], z[own])
            assert_allclose(found.iloc[u], wanted, rtol=0, atol=1e-9, err_msg=f"user {u}")


@SOME
@given(pairs(), st.sampled_from([np.float64, np.float32]), st.sampled_from([np.int64, np.float32, bool]))
def test_equals_sums_over_ties(rows, of_scores, of_labels):
    "A walk over each user's movies gives what sums over all users' ties give, whatever the types."
    user, y, z, n_users = rows
    if not len(user):
        assert user_metrics(user, y, z, n_users).isna().all(axis=None)
        return
    y, z = y.astype(of_labels), z.astype(of_scores)
    found, wanted = user_metrics(user, y, z, n_users), by_sums_over_ties(user, y, z, n_users)
    assert_frame_equal(found, wanted, check_exact=False, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_users", [1, 3000])
@pytest.mark.parametrize("decimals", [1, 17])
def test_one_user_and_many(n_users, decimals):
    "Some users have hundreds of movies, with ties and without; or one user has them all."
    user, y, z, _ = many_pairs(0, decimals=decimals)
    user = user % n_users
    found, wanted = user_metrics(user, y, z, n_users), by_sums_over_ties(user, y, z, n_users)
    assert found.notna().any(axis=None)
    assert_frame_equal(found, wanted, check_exact=False, rtol=0, atol=1e-9)


def test_scores_that_differ_by_little_are_no_ties():
    "Tiny scores of a user with a large number keep their order."
    found = user_metrics([200_000] * 3, [0, 1, 0], [1e-12, 2e-12, 3e-12], 200_001)
    assert found["roc_auc"].iloc[-1] == 0.5 and found["average_precision"].iloc[-1] == 0.5


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_number_of_threads_does_not_matter():
    "The same to the last bit."
    before, tables = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            tables.append(user_metrics(*many_pairs(1)))
    finally:
        numba.set_num_threads(before)
    assert_frame_equal(*tables, check_exact=True)


LEVEL, RARE = st.integers(0, 4), st.sampled_from([0] * 8 + [1])
SHORT = st.lists(st.tuples(st.integers(0, 1), LEVEL), min_size=2, max_size=16)
LONG = st.lists(st.tuples(RARE, LEVEL), min_size=11, max_size=16)


@SOME
@given(SHORT | LONG)
def test_hit_rate_counts_every_way_to_break_ties(movies):
    "hr_at_10 is the expectation over all orders of movies with equal scores."
    y, z = np.array([o[0] for o in movies]), np.array([o[1] / 4 for o in movies])
    found = user_metrics(np.zeros(len(y), int), y, z, 1).loc[0, "hr_at_10"]
    if 0 < y.sum() < len(y):
        assert found == pytest.approx(hit_chance(y, z), abs=1e-12)
    else:
        assert np.isnan(found)


@pytest.mark.parametrize(
    "scores, liked, chance",
    [
        pytest.param([0.7] * 12, 3, 10 / 12, id="all equal"),
        pytest.param(np.arange(12) / 12, 2, 1, id="tenth place"),
        pytest.param(np.arange(12) / 12, 1, 0, id="eleventh place"),
        pytest.param([0.1] * 3 + [0.9] * 9, 0, 1 / 3, id="one place for three"),
    ],
)
def test_hit_rate_by_hand(scores, liked, chance):
    "One liked movie among twelve stands in the first ten surely, never, or with a chance."
    y = np.eye(12, dtype=int)[liked]
    found = user_metrics(np.zeros(12, int), y, np.array(scores), 1).loc[0, "hr_at_10"]
    assert found == pytest.approx(chance, abs=1e-12)


@SOME
@given(pairs(), st.randoms(use_true_random=False))
def test_order_of_pairs_does_not_matter(rows, random):
    "Shuffled pairs give the same metrics."
    user, y, z, n_users = rows
    order = random.sample(range(len(user)), len(user))
    shuffled = user_metrics(user[order], y[order], z[order], n_users)
    assert_allclose(shuffled, user_metrics(user, y, z, n_users), rtol=0, atol=1e-12)


def test_order_of_many_pairs_does_not_matter():
    "Pairs sorted by user, by score, or not at all."
    user, y, z, n_users = many_pairs(2)
    wanted = user_metrics(user, y, z, n_users)
    for order in (np.argsort(user, kind="stable"), np.argsort(z), np.lexsort((y, z, -user))):
        found = user_metrics(user[order], y[order], z[order], n_users)
        assert_frame_equal(found, wanted, check_exact=False, rtol=0, atol=1e-12)


@SOME
@given(pairs(), st.permutations(range(4)))
def test_new_numbers_for_users_move_their_rows(rows, number):
    "A user's metrics follow the user to another position."
    user, y, z, n_users = rows
    number = np.array(number)
    moved = user_metrics(number[user], y, z, n_users)
    assert_allclose(moved.iloc[number], user_metrics(user, y, z, n_users), rtol=0, atol=1e-12)


@SOME
@given(
    pairs(score=st.integers(0, 20).map(lambda o: o / 20)),
    st.sampled_from([np.sqrt, np.square, lambda z: z / 3, lambda z: 0.9 + z / 10]),
)
def test_rising_transforms_leave_the_order_metrics(rows, rising):
    "Metrics of the order do not change when scores are bent without changing their order."
    user, y, z, n_users = rows
    before, after = (user_metrics(user, y, o, n_users)[ORDER] for o in (z, rising(z)))
    assert_allclose(after, before, rtol=0, atol=1e-12)


@SOME
@given(pairs())
def test_turning_scores_over_turns_the_auc_over(rows):
    "ROC AUC of 1 - z is 1 - ROC AUC of z."
    user, y, z, n_users = rows
    z = np.round(z, 3)  # so that 1 - z keeps different scores different
    there, back = (user_metrics(user, y, o, n_users)["roc_auc"] for o in (z, 1 - z))
    assert_allclose(back, 1 - there, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_scores_outside_the_unit_interval_are_named(bad):
    "The message says which pair has which score."
    with pytest.raises(InputError, match=f"score of pair 1 is {bad}"):
        user_metrics([0, 0, 0], [0, 1, 1], [0.5, bad, 0.5], 1)


@pytest.mark.parametrize(
    "pairs, said",
    [
        (([0, 2], [0, 1], [0.5, 0.5]), "user of pair 1 is 2; positions are whole numbers from 0 to 1"),
        (([0, -1], [0, 1], [0.5, 0.5]), "user of pair 1 is -1"),
        (([0.5, 1], [0, 1], [0.5, 0.5]), "user of pair 0 is 0.5"),
        (([0, 1], [2, 1], [0.5, 0.5]), "label of pair 0 is 2; labels must be 0 or 1"),
        (([0, 1], [0, np.nan], [0.5, 0.5]), "label of pair 1 is nan"),
        (([0, 1], [0, 1], [0.5]), "2 users, 2 labels and 1 scores"),
    ],
)
def test_pairs_that_make_no_sense_are_named(pairs, said):
    "Users who are not there, labels that are none, lists of different lengths."
    with pytest.raises(InputError, match=said):
        user_metrics(*pairs, 2)


@SOME
@given(st.integers(0, 99), st.integers(1, 8), st.integers(0, 3))
def test_nothing_differs_from_itself(seed, n, gone):
    "Compared with itself every difference is 0, and so is its interval."
    x = frame(np.random.default_rng(seed), n + gone, gone)
    found = compare(x, x, resamples=20)
    assert (found[["delta", "better", "worse"]] == 0).all(axis=None)
    assert (found[["same", "p_value"]] == 1).all(axis=None)
    assert_allclose(found["base"], x.dropna().mean())
    intervals = found[["low", "high"]]
    assert intervals.isna().all(axis=None) if n == 1 else (intervals == 0).all(axis=None)


@SOME
@given(st.integers(0, 99), st.integers(2, 8), st.integers(0, 3))
def test_swapping_turns_the_comparison_over(seed, n, gone):
    "Base and refined exchanged: the difference and its interval change sign."
    rng = np.random.default_rng(seed)
    x, y = frame(rng, n + gone, gone), frame(rng, n + gone, gone)
    there, back = compare(x, y, resamples=50), compare(y, x, resamples=50)
    assert_allclose(there["delta"], (y - x).mean(), atol=1e-12)
    assert (there["low"] <= there["high"]).all()
    turned = {"delta": "delta", "low": "high", "high": "low"}
    for one, other in turned.items():
        assert_allclose(back[one], -there[other], rtol=0, atol=1e-12)
    for one, other in {"better": "worse", "same": "same", "p_value": "p_value"}.items():
        assert_allclose(back[one], there[other], rtol=0, atol=1e-12)


def test_an_equal_change_for_everybody_has_no_width():
    "All users gain 0.25: so does the mean, and every resample."
    x = pd.DataFrame(0.5, range(20), list(METRICS))
    found = compare(x, x + 0.25, resamples=50)
    assert_allclose(found[["delta", "low", "high"]], 0.25)
    gained = found.index != "log_loss"  # where more is worse
    assert (found["better"] == gained).all() and (found["worse"] == ~gained).all()
    assert (found["p_value"] < 0.001).all()


def test_few_users_have_the_percentile_bootstrap():
    "The ends are SciPy's, to the last bit."
    rng = np.random.default_rng(3)
    x, y = frame(rng, 300), frame(rng, 300)
    drawn = bootstrap(
        ((y - x).to_numpy(),), np.mean, n_resamples=100, method="percentile", rng=np.random.default_rng(5)
    )
    found = compare(x, y, resamples=100, seed=5)
    assert (found[["low", "high"]].to_numpy().T == drawn.confidence_interval).all()


def test_many_users_have_the_interval_that_the_bootstrap_approaches():
    "One user more than `BOOTSTRAP_USERS`: mean ± 1.96 standard errors, close to what resampling gives."
    rng = np.random.default_rng(4)
    x = frame(rng, BOOTSTRAP_USERS + 1)
    y = x + rng.exponential(1, x.shape) * (rng.random(x.shape) < 0.2) - 0.1  # far from normal
    few, many = compare(x[:-1], y[:-1]), compare(x, y)
    half = 1.96 * (y - x).sem()
    assert_allclose(many["low"], (y - x).mean() - half, rtol=1e-9)
    assert_allclose(many["high"], (y - x).mean() + half, rtol=1e-9)
    for end in ("low", "high"):
        assert ((few[end] - many[end]).abs() < 2 * half / 20).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1])
def test_too_few_users_have_no_interval(n):
    assert np.isnan(mean_interval(np.ones((n, 3)))).all()


def test_comparing_needs_the_same_users():
    "Metrics of other users, or of none, are refused."
    x = frame(np.random.default_rng(0), 5)
    for other in (x.iloc[1:], x * np.nan):
        with pytest.raises(InputError, match="users can be evaluated"):
            compare(x, other)
    with pytest.raises(InputError, match="0 users can be evaluated"):
        compare(x * np.nan, x * np.nan)


@SOME
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(-8, 8)), min_size=2, max_size=30))
def test_groups_of_users_hold_every_user_once(users):
    "Groups by history leave nobody out, and their mean gains average to the mean gain."
    n = np.array([o[0] for o in users])
    assume(len(set(n)) > 1)  # histories all of one length: see below
    gain = pd.Series([o[1] / 16 for o in users])
    found = gain_by_history(gain * 0, gain, n, groups=3)
    assert found["users"].sum() == len(n)
    assert (found["users"] * found["delta"]).sum() == pytest.approx(gain.sum())
    assert (found["fewest"].iloc[1:].to_numpy() > found["most"].iloc[:-1].to_numpy()).all()


def test_users_with_equally_long_histories_are_one_group():
    "Where all users have as many ratings there is one group, not none."
    gain = pd.Series([0.1, 0.2, 0.3])
    found = gain_by_history(gain * 0, gain, np.array([5, 5, 5]))
    assert found[["fewest", "most", "users"]].to_numpy().tolist() == [[5, 5, 3]]
    assert found["delta"].tolist() == pytest.approx([0.2])


@st.composite
def movie_lists(draw):
    "Lists of up to five users over up to eight movies, some short or empty, and ratings of each movie."
    n_items, m, n = draw(st.integers(1, 8)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    lists = np.full((m, n), -1)
    for own in lists:
        movies = draw(st.lists(st.integers(0, n_items - 1), unique=True, max_size=n))
        own[draw(st.permutations(range(n)))[: len(movies)]] = movies  # empty places may come first
    assume((lists >= 0).any())
    return lists, np.array(draw(st.lists(st.integers(0, 3), min_size=n_items, max_size=n_items)))


@SOME
@given(movie_lists())
def test_diversity_is_what_its_words_say(case):
    "Every fact, from sets of movies and pairs of users."
    lists, p = case
    own = [o for o in ({int(i) for i in row if i >= 0} for row in lists) if o]
    movies = [i for o in own for i in o]
    found = diversity(lists, p, n_users=3)
    assert found["coverage"] == pytest.approx(len(set(movies)) / len(p))
    assert found["popularity"] == pytest.approx(np.mean([p[i] for i in movies]))
    assert found["catalogue"] == pytest.approx(p.mean())
    below = [np.mean([1 if o < p[i] else 0.5 if o == p[i] else 0 for o in p]) for i in movies]
    assert found["percentile"] == pytest.approx(np.mean(below))
    assert found["unrated"] == pytest.approx(np.mean([p[i] == 0 for i in movies]))
    assert found["novelty"] == pytest.approx(np.mean([-np.log2((p[i] + 1) / 4) for i in movies]))
    shared = [len(a & b) / len(a) for j, a in enumerate(own) for k, b in enumerate(own) if j != k]
    if shared:
        assert found["overlap"] == pytest.approx(np.mean(shared), abs=1e-12)
    else:
        assert np.isnan(found["overlap"])


def test_novelty_is_looked_at_where_users_are_counted():
    "A movie that all have rated has no news, one that nobody has rated log2(n + 1) bits."
    rated, new = (diversity(np.array([[i]]), np.array([7, 0]), n_users=7)["novelty"] for i in (0, 1))
    assert (rated, new) == (0, 3) and "novelty" not in diversity(np.array([[0]]), np.array([7, 0]))


@SOME
@given(movie_lists(), st.randoms(use_true_random=False))
def test_order_of_users_movies_and_places_does_not_matter(case, random):
    "Facts are about sets of movies; numbers of movies and of users are names."
    lists, p = case
    number = np.array(random.sample(range(len(p)), len(p)))
    moved = np.where(lists < 0, -1, number[lists])
    moved = moved[random.sample(range(len(lists)), len(lists)), ::-1]
    ratings = np.empty_like(p)
    ratings[number] = p
    there, back = diversity(lists, p), diversity(moved, ratings)
    assert_allclose(list(back.values()), list(there.values()), rtol=0, atol=1e-12)


@SOME
@given(movie_lists())
def test_area_below_the_curve_is_the_percentile(case):
    "The picture and the number say the same, ties and movies without ratings included."
    lists, p = case
    ax = Figure().subplots()
    plot_diversity({"some": lists}, p, ax)
    (curve,) = (o for o in ax.get_lines() if o.get_label() == "some")
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert area == pytest.approx(diversity(lists, p)["percentile"])


def test_many_lists_need_no_pairs():
    "Two hundred thousand users: their pairs could not be gone through."
    lists = np.random.default_rng(0).integers(0, 100, (200_000, 1)) + 100 * np.arange(10)
    found = diversity(lists, np.ones(1000))
    assert found["coverage"] == 1 and found["percentile"] == 0.5
    assert found["overlap"] == pytest.approx(1 / 100, rel=0.01)


@pytest.mark.parametrize(
    "lists, popularity, said",
    [
        ([[0, 2]], [1, 1], "list 0 holds item 2; items are numbered 0 to 1"),
        ([[0, 1], [-2, 1]], [1, 1], "list 1 holds item -2"),
        ([[0, 1], [1, 1]], [1, 1], "list 1 holds item 1 twice"),
        ([[0]], [1, np.nan], "item 1 has nan ratings"),
        ([[0]], [-1.0, 1], r"item 0 has -1\.0 ratings"),
        ([[-1], [-1]], [1, 1], "no recommendation"),
        (np.empty((0, 3), int), [1, 1], "no recommendation"),
        ([[0.0]], [1, 1], r"got float64 of shape \(1, 1\)"),
        ([0], [1, 1], r"got int64 of shape \(1,\)"),
        ([[0]], [[1, 1]], r"popularity of shape \(1, 2\)"),
    ],
)
def test_lists_that_make_no_sense_are_named(lists, popularity, said):
    "Movies that are not there or there twice, ratings that cannot be, no lists."
    with pytest.raises(InputError, match=said):
        diversity(np.array(lists), np.array(popularity))
    with pytest.raises(InputError, match=said):
        plot_diversity({"some": np.array(lists)}, np.array(popularity), Figure().subplots())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 3, 25])
def test_few_pairs_are_calibrated_without_gaps(n):
    "No bin is empty, however few the pairs; their points hold all of them."
    ax = Figure().subplots()
    plot_calibration(np.arange(n) % 2, {"base": np.linspace(0.1, 0.9, n)}, ax)
    x, y = ax.lines[1].get_data()
    assert len(x) == min(n, 10) and np.isfinite([x, y]).all()
