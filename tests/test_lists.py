"""Lists against scikit-learn and a slow second implementation; tables that add up; paired differences."""

import json
from dataclasses import dataclass, replace

import numba
import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from pandas.testing import assert_frame_equal
from scipy import sparse
from scipy.special import expit
from sklearn.metrics import ndcg_score

from correct_smooth.best import best_liked
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import (
    CorrectAndSmooth,
    NeighbourMeans,
    Operators,
    Refinement,
    Scorer,
    label_matrix,
    neighbour_residual,
)
from correct_smooth.embeddings import Embeddings
from correct_smooth.encoders import MLPHeadArrays
from correct_smooth.evaluate import BOOTSTRAP_USERS, Evaluation, compare, diversity
from correct_smooth.lists import (
    LIST_METRICS,
    list_metrics,
    list_result,
    list_summary,
    list_table,
    orderings_of,
    popular_lists,
)
from correct_smooth.plots import plot_diversity, plot_lists
from correct_smooth.topn import Ranking, top_blocks, top_n
from correct_smooth.watch import discounted

SOME = tried(20, 300)
ORDERINGS = ["popular", "base", "like", "watch", "both"]


def slow_metrics(own, relevant):
    "NDCG, recall and hit of one list, place by place."
    if not relevant:
        return [np.nan] * 3
    gain = best = found = 0
    for place, item in enumerate(own, start=1):
        if item in relevant:
            gain, found = gain + 1 / np.log2(place + 1), found + 1
        if place <= len(relevant):
            best += 1 / np.log2(place + 1)
    return [gain / best, found / len(relevant), float(found > 0)]


def slow_table(lists, users, user, item, y):
    "The same as `list_table`, user by user."
    rows = []
    for u, who in enumerate(users):
        held = [(i, liked) for other, i, liked in zip(user, item, y, strict=True) if other == who]
        relevant = {"liked": {i for i, liked in held if liked}, "watched": {i for i, _ in held}}
        row = {"user_id": who, **{f"n_{what}": len(those) for what, those in relevant.items()}}
        for name, table in lists.items():
            for what, those in relevant.items():
                for metric, value in zip(
                    ("ndcg", "recall", "hit"), slow_metrics(table[u], those), strict=True
                ):
                    row[f"{name}_{metric}_{what}"] = value
        rows.append(row)
    return pd.DataFrame(rows)


@st.composite
def judged_lists(draw, n_items=9):
    "Lists of some users by two orderings, some short or empty, and held-out ratings, also of other users."
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    users = np.array(draw(st.permutations(range(6)))[:m])
    lists = {}
    for name in ("popular", "like"):
        lists[name] = np.full((m, n), -1)
        for own in lists[name]:
            items = draw(st.lists(st.integers(0, n_items - 1), unique=True, max_size=n))
            own[draw(st.permutations(range(n)))[: len(items)]] = items  # empty places may come first
    cell = st.tuples(st.integers(0, 5), st.integers(0, n_items - 1))
    pairs = draw(st.lists(cell, unique=True, max_size=25))
    y = draw(st.lists(st.integers(0, 1), min_size=len(pairs), max_size=len(pairs)))
    user, item = (np.array([pair[k] for pair in pairs], np.int64) for k in range(2))
    return lists, users, user, item, np.array(y, np.int64)


def world(seed=0, m=120, n_items=60, n=10, names=ORDERINGS):
    "Lists that find more the later their name comes, and what they are judged by."
    rng = np.random.default_rng(seed)
    taste = rng.gumbel(size=(m, n_items))
    held = np.argsort(-taste - rng.gumbel(size=taste.shape), axis=1)[:, : n + 5]
    user, item = np.repeat(np.arange(m), n + 5), held.ravel()
    weight = np.linspace(0, 1, len(names))
    lists = {
        o: np.argsort(-(w * taste + rng.gumbel(size=taste.shape)))[:, :n]
        for o, w in zip(names, weight, strict=True)
    }
    return lists, np.arange(m), user, item, rng.integers(0, 2, len(user)), n_items


def evaluation_of(seed=0, **how):
    "An evaluation that knows nothing but lists."
    lists, *rest = world(seed, **how)
    empty, popularity = pd.DataFrame(), np.arange(rest[-1])[::-1]
    return Evaluation(empty, empty, empty, 0, lists, popularity, list_table(lists, *rest), n_users=500)


@SOME
@given(judged_lists())
def test_equals_the_slow_way(case):
    "Every metric of every user, whatever is empty."
    found = list_table(*case, n_items=9)
    assert_frame_equal(found[slow_table(*case).columns], slow_table(*case), check_dtype=False, rtol=1e-12)
    assert orderings_of(found) == ["popular", "like"]


@SOME
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(seed, n_items, n):
    "Of full scores, cut at the length of the list."
    rng = np.random.default_rng(seed)
    scores, relevant = rng.random((5, n_items)), rng.random((5, n_items)) < 0.4
    lists = np.argsort(-scores)[:, :n]
    found = list_metrics(lists, sparse.csr_array(relevant))
    for u in range(5):
        if not relevant[u].any():
            assert found.loc[u].isna().all()
        elif n_items > 1:
            assert found["ndcg"][u] == pytest.approx(ndcg_score([relevant[u]], [scores[u]], k=n), abs=1e-12)


@SOME
@given(judged_lists(), st.randoms(use_true_random=False))
def test_order_of_ratings_and_users_does_not_matter(case, random):
    "Nor whether users have numbers or names."
    lists, users, user, item, y = case
    found = list_table(*case, n_items=9)
    rows, names = random.sample(range(len(user)), len(user)), np.array(list("abcdef"), object)
    named = list_table(lists, names[users], names[user[rows]], item[rows], y[rows], 9)
    assert_frame_equal(named.drop(columns="user_id"), found.drop(columns="user_id"))
    assert named["user_id"].tolist() == names[users].tolist()
    order = random.sample(range(len(users)), len(users))
    moved = list_table({o: table[order] for o, table in lists.items()}, users[order], user, item, y, 9)
    assert_frame_equal(moved, found.loc[order].reset_index(drop=True))


@SOME
@given(judged_lists(), st.data())
def test_tables_of_parts_are_the_table_of_all(case, data):
    "A row a user concatenates, also where a part holds nobody."
    lists, users, *held = case
    cut = data.draw(st.integers(0, len(users)))
    parts = [
        list_table({o: table[at] for o, table in lists.items()}, users[at], *held, 9)
        for at in (slice(0, cut), slice(cut, None))
    ]
    whole = list_table(*case, n_items=9)
    assert_frame_equal(pd.concat(parts, ignore_index=True), whole, check_dtype=False)


def test_by_hand():
    "A hit at the second place and one past the end of a list of three, an empty place, a like and a dislike."
    lists = {"like": np.array([[4, 0, -1]])}
    found = list_table(lists, [7], [7, 7, 7, 1], [0, 5, 3, 4], [1, 1, 0, 1], 6).loc[0]
    gain = 1 / np.log2(3)
    assert found["like_ndcg_liked"] == pytest.approx(gain / (1 + gain))
    assert found["like_ndcg_watched"] == pytest.approx(gain / (1 + gain + 1 / 2))
    assert (found["like_recall_liked"], found["like_recall_watched"]) == (1 / 2, 1 / 3)
    assert (found["n_liked"], found["n_watched"], found["like_hit_liked"]) == (2, 3, 1)


def test_recall_is_a_share_of_all_that_is_relevant():
    "A full list of hits has NDCG 1, and the recall that its length allows."
    held = np.arange(40)
    found = list_table({"best": held[None, :10]}, [0], 0 * held, held, 0 * held + 1, 40)
    assert found.loc[0, ["best_ndcg_liked", "best_recall_liked"]].tolist() == [1, 1 / 4]


@SOME
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6))
def test_popular_lists_are_the_most_popular_unseen(seed, n_items, n):
    rng = np.random.default_rng(seed)
    popularity, seen = rng.integers(0, 5, n_items), rng.random((n_items, 4)) < 0.5
    found = popular_lists(popularity, sparse.csc_matrix(seen.astype(np.float32)), n)
    assert found.shape == (4, min(n, n_items))
    order = np.argsort(-popularity, kind="stable")
    for u in range(4):
        wanted = [i for i in order if not seen[i, u]][:n]
        assert found[u][: len(wanted)].tolist() == wanted and (found[u][len(wanted) :] == -1).all()


def test_popular_lists_of_many_users_are_made_in_blocks():
    "So many that they do not fit into one block; a user alone gets the same list."
    seen = sparse.random_array((3000, 3000), density=0.003, format="csc", dtype=np.float32, rng=0)
    seen, popularity = sparse.csc_matrix(seen), np.arange(3000)[::-1]
    found = popular_lists(popularity, seen)
    for u in (0, 1332, 1333, 1334, 2999):
        assert_array_equal(found[[u]], popular_lists(popularity, seen[:, [u]]))


def test_differences_are_paired():
    "As `compare` has them, to the same resamples."
    table = list_table(*world())
    found = list_summary(table, seed=3)
    for metric in LIST_METRICS:
        before, after = (table[[f"{o}_{metric}"]].set_axis(["x"], axis=1) for o in ("popular", "both"))
        wanted = compare(before, after, seed=3).loc["x"]
        row = found.loc[("both", metric)]
        assert_allclose(
            row[["over_popular", "over_popular_low", "over_popular_high"]], wanted[["delta", "low", "high"]]
        )
        assert row["mean"] == pytest.approx(wanted["refined"]) and row["low"] <= row["mean"] <= row["high"]
    assert found.loc[("both", "ndcg_liked"), "over_popular_low"] > 0
    assert_frame_equal(found, list_summary(table, seed=3))
    assert not found.equals(list_summary(table, seed=4))


def test_nothing_differs_from_itself():
    lists, *rest = world()
    same = list_summary(list_table({"popular": lists["both"], "both": lists["both"]}, *rest))
    assert (same.filter(like="over_") == 0).all(axis=None)
    assert not any("like" in column for column in same)


def test_shuffled_lists_lose_what_was_theirs():
    "Control: everybody with somebody else's list finds what chance finds."
    lists, users, *held = world(m=2000, names=["popular", "both"])
    lists["both"] = np.roll(lists["both"], 1, axis=0)
    found = list_summary(list_table(lists, users, *held)).loc[("both", "recall_watched")]
    assert found["low"] < 10 / 60 < found["high"]


def test_users_without_a_relevant_movie_are_counted():
    lists, users, user, item, y, n_items = world(m=50)
    y[user < 8] = 0
    found = list_summary(list_table(lists, users, user, item, y, n_items))
    assert (found.xs("ndcg_liked", level="metric")[["users", "skipped"]] == [42, 8]).all(axis=None)
    assert (found.xs("recall_watched", level="metric")[["users", "skipped"]] == [50, 0]).all(axis=None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_judged", [0, 1])
def test_too_few_users_have_no_interval(n_judged):
    lists, users, user, item, y, n_items = world(m=5)
    y = (user < n_judged).astype(int)
    found = list_summary(list_table(lists, users, user, item, y, n_items)).loc[("both", "ndcg_liked")]
    assert found[["low", "high", "over_popular_low"]].isna().all()
    assert np.isnan(found["mean"]) == (n_judged == 0) and found["users"] == n_judged


@pytest.mark.parametrize("names", [ORDERINGS, ORDERINGS[:3], ["base", "refined"]])
def test_all_that_is_known_is_plain(names):
    "With a watch score, without one, and by whatever names: the same numbers, ready for JSON."
    judged = evaluation_of(names=names)
    told, found = list_result(judged, seed=2), list_summary(judged.list_users, seed=2)
    assert json.loads(json.dumps(told, allow_nan=False)) == told and list(told) == names
    last = told[names[-1]]
    assert last["ci95"]["ndcg_liked"] == found.loc[(names[-1], "ndcg_liked"), ["low", "high"]].tolist()
    assert ("over_popular" in last) == ("popular" in names) and "over_popular" not in told[names[0]]
    facts = diversity(judged.lists[names[-1]], judged.popularity, 500)
    assert facts.items() <= last.items() and set(LIST_METRICS) <= set(last)


def test_lists_that_were_not_judged_have_facts_only():
    judged = evaluation_of()
    lists, popularity = judged.lists, judged.popularity
    told = list_result(Evaluation(judged.users, judged.users, judged.result, 0, lists, popularity))
    assert list(told) == ORDERINGS
    assert set(told["both"]) == {"coverage", "popularity", "catalogue", "percentile", "overlap", "unrated"}
    assert list_result(Evaluation(judged.users, judged.users, judged.result, 0)) == {}


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(lists={"both": np.array([[0, 6]])}), "list 0 holds item 6; items are numbered 0 to 5"),
        (dict(lists={"both": np.array([[1, 1]])}), "list 0 holds item 1 twice"),
        (dict(lists={"both": np.array([[0.0, 1]])}), "got float64"),
        (dict(lists={"both": np.array([[0], [1]])}), "2 lists for 1 users"),
        (dict(users=["a", "a"], lists={"both": np.array([[0], [1]])}), "user 'a' has two lists"),
        (dict(item=[6]), "held-out rating 0 is of item 6; items are numbered 0 to 5"),
        (dict(item=[-1]), "held-out rating 0 is of item -1"),
        (dict(y=[1, 0]), "1 users, 1 items and 2 labels"),
        (dict(y=[0.5]), "label of held-out rating 0 is 0.5"),
    ],
)
def test_what_makes_no_sense_is_named(change, said):
    case = dict(lists={"both": np.array([[0, 1]])}, users=["a"], user=["a"], item=[2], y=[1]) | change
    with pytest.raises(InputError, match=said):
        list_table(**case, n_items=6)


def test_many_users_take_no_loop():
    "A hundred thousand lists of three orderings, two million held-out ratings, the normal interval."
    rng = np.random.default_rng(0)
    m, n_items = 100_000, 2000
    start = rng.integers(0, n_items, (3, m, 1))
    lists = dict(zip(ORDERINGS, (start + np.arange(10)) % n_items, strict=False))
    user = np.repeat(np.arange(m), 20)
    item = (rng.integers(0, n_items, (m, 1)) + 7 * np.arange(20)).ravel() % n_items
    table = list_table(lists, np.arange(m), user, item, rng.integers(0, 2, len(user)), n_items)
    found = list_summary(table)
    assert m > BOOTSTRAP_USERS
    row = found.loc[("like", "recall_watched")]
    assert row["low"] < 10 / n_items < row["high"] and row["high"] - row["low"] < 3e-4


def test_the_picture_shows_every_ordering():
    "One point each, where the numbers say, with its name."
    judged = evaluation_of()
    found, ax = list_summary(judged.list_users), Figure().subplots()
    plot_lists(found, judged.diversity(), ax)
    assert {text.get_text() for text in ax.texts} == set(ORDERINGS)
    x, y = np.asarray(ax.collections[-1].get_offsets()).T
    means = found["mean"].xs("ndcg_liked", level="metric")
    assert_allclose(x, means)
    assert_allclose(y, 2 ** -judged.diversity()["novelty"].loc[means.index])
    assert len(ax.get_yticks()) >= 1


def test_the_picture_of_the_catalogue_tells_orderings_apart():
    judged, ax = evaluation_of(), Figure().subplots()
    plot_diversity(judged.lists, judged.popularity, ax)
    colours = [line.get_color() for line in ax.lines if line.get_label() in ORDERINGS]
    assert len(set(colours)) == 5


@dataclass(frozen=True)
class OnlyStrong(Refinement):
    "Means over strong edges, the kind of rule that a user of the package writes."

    alpha: float = 1.0
    half_trust: float = 2.0
    beta: float = 0.5
    T: int = 0

    def neighbourhood(self, graph):
        return graph.with_self.multiply(graph.with_self >= 0.5).tocsr(), 0.5


@dataclass(frozen=True)
class Doubled(CorrectAndSmooth):
    "A rule with a correction of its own."

    def correction(self, E, graph):
        return 2 * super().correction(E, graph)


RULES = st.sampled_from(
    [CorrectAndSmooth(), CorrectAndSmooth("own"), CorrectAndSmooth(alpha=90, shrinkage=0), OnlyStrong()]
)
FACTORS = st.sampled_from(["none", "at most 1", "some above 1", "zeros"])


def refinement_world(n_items, m, seed, density=0.1):
    "A graph, labels, and movies that nobody should get."
    rng = np.random.default_rng(seed)
    A = sparse.random(n_items, n_items, density, "csr", np.float32, rng=rng)
    item, user = np.nonzero(rng.random((n_items, m)) < rng.choice([0, 0.05, 0.5, 1]))
    Y = label_matrix(user, item, rng.random(len(user)).astype(np.float32), (n_items, m))
    return rng, Operators(A), Y, rng.random(n_items) < 0.2


def some_factors(kind, n_items, rng):
    "What scores are multiplied by."
    by = rng.random(n_items).astype(np.float32)
    return {"none": None, "at most 1": by, "some above 1": 3 * by, "zeros": by * (by > 0.5)}[kind]


@SOME
@given(
    st.sampled_from([1, 2, 63, 64, 65, 300]), st.integers(1, 4), st.integers(1, 30), RULES, FACTORS,
    st.sampled_from([0.1, 2, 10, 300]), st.integers(0, 10**6),
)  # fmt: skip
def test_one_pass_finds_the_head_of_a_sort(n_items, m, n, config, kind, spread, seed):
    "With ties and scores of 0 and 1, whatever is left out; on one thread or all of them, to the last bit."
    rng, graph, Y, excluded = refinement_world(n_items, m, seed)
    X = (np.round(4 * rng.normal(size=(n_items, m))) * spread / 4).astype(np.float32)
    alpha, by = rng.choice([0, 0.5, 2], m).astype(np.float32), some_factors(kind, n_items, rng)
    seen = Y if seed % 2 else refinement_world(n_items, m, seed + 1)[2]
    base = expit(X.astype(float)).astype(np.float32)
    at = Y.indices, np.repeat(np.arange(m), np.diff(Y.indptr))
    E = sparse.csc_matrix((Y.data - base[at], Y.indices, Y.indptr), Y.shape)
    refined = np.clip(base + alpha * neighbour_residual(E, *config.neighbourhood(graph)), 0, 1)
    score = discounted(refined, by)
    wanted, means = top_n(score, n, excluded, seen), NeighbourMeans.of(config, graph)
    threads, found = numba.get_num_threads(), []
    for some in (1, threads):
        numba.set_num_threads(some)
        found.append(best_liked(X, Y, means, alpha, n, excluded, seen, by))
    for item, kept in found:
        assert_array_equal(item, wanted)
        column, place = np.nonzero(item >= 0)
        at = item[column, place], column
        assert_array_equal(kept[:, column, place], [score[at], base[at], refined[at]])


@SOME
@given(
    st.sampled_from([3, 70, 300]), st.integers(1, 12),
    st.one_of(RULES, st.sampled_from([CorrectAndSmooth(T=1), Doubled()])),
    FACTORS, st.booleans(), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_lists_by_liking_are_those_of_whole_blocks(n_items, n, config, kind, head, exclude_seen, seed):
    "By rules that one pass knows and by others, with a head or without."
    rng, graph, Y, excluded = refinement_world(n_items, 5, seed)
    arrays = [rng.normal(size=o).astype(np.float32) for o in ((n_items, 8), n_items, (5, 8), 5)]
    units = (rng.normal(size=o).astype(np.float32) for o in ((n_items, 3), (5, 3), 3))
    scorer = Scorer(Embeddings(*arrays, MLPHeadArrays(*units) if head else None), Y, graph, config)
    by, users = some_factors(kind, n_items, rng), rng.permutation(5)
    ((_, base, refined),) = scorer.blocks(users)
    score = discounted(refined, by)
    ranking = Ranking(scorer, discount=by)
    assert (ranking.means is None) == (config.T > 0 or isinstance(config, Doubled))
    found = pd.concat(top_blocks(ranking, users, n, excluded, exclude_seen, progress=False))
    wanted = top_n(score, n, excluded, Y[:, users] if exclude_seen else None)
    at = found["item"].to_numpy(), found["place"].to_numpy()
    column, place = np.nonzero(wanted >= 0)
    assert_array_equal(at[1], column)
    for name, values in (("base", base), ("refined", refined), ("score", score)):
        assert_allclose(found[name], values[at], rtol=0, atol=3e-4)  # alpha = 90 times rounding
    assert_allclose(found["score"], score[wanted[column, place], column], rtol=0, atol=3e-4)
    assert not excluded[at[0]].any() and (not exclude_seen or not Y[:, users][at].sum())


@pytest.mark.parametrize("config", [CorrectAndSmooth(), CorrectAndSmooth(T=1)])
def test_scores_that_are_nan_are_refused(config):
    "Whoever has them, and also for a movie that nobody gets."
    rng, graph, Y, _ = refinement_world(80, 5, 0)
    arrays = [rng.normal(size=o).astype(np.float32) for o in ((80, 8), 80, (5, 8), 5)]
    arrays[0][70] = np.nan
    scorer = Scorer(Embeddings(*arrays), Y, graph, config)
    with pytest.raises(InputError, match="are nan"):
        list(top_blocks(Ranking(scorer), np.arange(5), 3, np.arange(80) == 70, progress=False))
    finite = replace(scorer, model=replace(scorer.model, H=np.nan_to_num(scorer.model.H)))
    assert len(list(top_blocks(Ranking(finite), np.arange(5), 3, np.arange(80) == 70, progress=False))) == 1
