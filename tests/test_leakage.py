"""Held-out ratings leave no trace: scrambled, they change nothing that was learned."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from correct_smooth.correct_smooth import CorrectAndSmooth
from correct_smooth.dataset import (
    TARGETS,
    by_time,
    cold_items,
    cold_users,
    holdout,
    index_ratings,
    leave_last,
    split,
)
from correct_smooth.graph import GraphConfig
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

SPLITS = {o.__name__: o for o in (holdout, leave_last, by_time, cold_items, cold_users)}
EACH_SPLIT = pytest.mark.parametrize("mark", SPLITS.values(), ids=SPLITS)


@pytest.fixture(scope="module")
def world():
    "A small made-up world."
    return synthetic_data(60, 80, 1500)


def fitted(data, target="margin", **settings):
    "A recommender that learned from these ratings, two epochs long."
    training = TrainConfig(epochs=2, target=target)
    quick = {"graph": GraphConfig(k=5), "training": training, "progress": False, **settings}
    return CorrectSmoothRecommender(**quick).fit(data)


def scrambled(data, hidden):
    "The same data, hidden ratings turned over: the best are the worst."
    ratings = data.ratings.copy()
    ratings.loc[hidden, "rating"] = (5.5 - ratings.loc[hidden, "rating"]).astype(np.float32)
    return replace(data, ratings=ratings)


def assert_same(one, two):
    "Both recommenders are the same, bit for bit: weights, graph, labels, features, what they say."
    weights, others = (nn.ModuleList(o.models_).state_dict() for o in (one, two))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[o], others[o]) for o in weights)
    X, Y = (o.features_.transform(o.data_.movies) for o in (one, two))
    sparse_pairs = [(one.A_, two.A_), (one.scorer_.labels, two.scorer_.labels), (X, Y)]
    graphs = one.scorer_.graph, two.scorer_.graph
    sparse_pairs += [(graphs[0].S, graphs[1].S), (graphs[0].with_self, graphs[1].with_self)]
    for a, b in sparse_pairs:
        for part in ("data", "indices", "indptr"):
            assert_array_equal(getattr(a, part), getattr(b, part))
    names = (o.features_.get_feature_names_out() for o in (one, two))
    assert_array_equal(*names)
    pd.testing.assert_frame_equal(one.history_, two.history_, check_exact=True)
    pd.testing.assert_frame_equal(one.recommend(), two.recommend(), check_exact=True)
    assert one.epochs_ == two.epochs_


@EACH_SPLIT
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore:user .* is unknown")  # cold users are
def test_scrambling_what_is_hidden_changes_nothing(world, mark, target):
    "Split and fitted anew, everything learned is the same bit for bit, and so are all scores."
    hidden = mark(world.ratings)
    other = scrambled(world, hidden)
    assert (other.ratings["rating"] != world.ratings["rating"])[hidden].mean() > 0.8
    assert_array_equal(mark(other.ratings), hidden)
    (train, test), (train2, test2) = (split(o, hidden) for o in (world, other))
    one, two = fitted(train, target), fitted(train2, target)
    assert_same(one, two)
    asked = test.ratings["user_id"], test.ratings["item_id"]
    said, said2 = one.predict(*asked), two.predict(*asked)
    pd.testing.assert_frame_equal(said, said2, check_exact=True)
    answers = (index_ratings(o).y for o in (test, test2))
    assert np.mean(np.not_equal(*answers)) > 0.3  # only the right answers have changed


@pytest.mark.parametrize("target", TARGETS)
def test_scrambling_what_is_learned_from_does_change_it(world, target):
    "The comparison above can fail: training ratings turned over make another model."
    hidden = holdout(world.ratings)
    one = fitted(split(world, hidden)[0], target)
    two = fitted(split(scrambled(world, ~hidden), hidden)[0], target)
    with pytest.raises(AssertionError):
        assert_same(one, two)


def test_the_leaking_rule_is_caught(world):
    "With labels='all' hidden ratings reach the labels, and the comparison says so."
    hidden = holdout(world.ratings)
    parts = [split(o, hidden, labels="all")[0] for o in (world, scrambled(world, hidden))]
    one, two = (fitted(o, "label") for o in parts)
    assert (one.scorer_.labels != two.scorer_.labels).nnz > 0
    with pytest.raises(AssertionError):
        assert_same(one, two)


def test_base_scores_do_not_depend_on_refinement(world):
    "The same model stands behind every rule: only refined scores differ."
    train, test = split(world, holdout(world.ratings))
    rules = (CorrectAndSmooth("own", T=2), CorrectAndSmooth("neighbours"))
    one, two = (fitted(train, refinement=o).evaluate(test).predictions for o in rules)
    assert_array_equal(one["base"], two["base"])
    assert (one["refined"] != two["refined"]).any()


def test_labels_stay_with_their_user(world):
    "Other labels of one user change that user's refined scores and nobody else's."
    scorer = fitted(split(world, holdout(world.ratings))[0]).scorer_
    other = scorer.labels.copy()
    other.data[: other.indptr[1]] = 1 - other.data[: other.indptr[1]]
    user = np.arange(other.shape[1])
    item = np.full(len(user), other.indices[0])  # a movie that the first user has rated
    (base, refined), (base2, refined2) = (
        replace(scorer, labels=o).pairs(user, item) for o in (scorer.labels, other)
    )
    assert_array_equal(base, base2)
    assert refined[0] != refined2[0]
    assert_array_equal(refined[1:], refined2[1:])


def test_nothing_handed_in_is_changed(world):
    "Movies and ratings are as they were after splitting, fitting, evaluating and recommending."
    train, test = split(world, holdout(world.ratings))
    frames = [world.movies, world.ratings, train.ratings, test.ratings]
    before = [o.copy(deep=True) for o in frames]
    thresholds = train.thresholds.copy()
    edges = pd.DataFrame({"source": [0, 1, 2], "target": [1, 2, 2], "weight": [1.0, 0.5, 2.0]})
    held = edges.copy()
    for recommender in (fitted(train), CorrectSmoothRecommender(progress=False)):
        recommender.training = TrainConfig(epochs=1)
        recommender.fit(train, edges)
        recommender.evaluate(test)
        recommender.recommend(n=3)
        recommender.predict(test.ratings["user_id"], test.ratings["item_id"])
    for now, then in zip(frames, before, strict=True):
        pd.testing.assert_frame_equal(now, then)
    pd.testing.assert_series_equal(train.thresholds, thresholds)
    pd.testing.assert_frame_equal(edges, held)


def test_fitting_twice_gives_the_same(world):
    "One seed, one model, whatever random numbers were drawn in between; two seeds, two."
    train, _ = split(world, holdout(world.ratings))
    one = fitted(train)
    np.random.rand(7)
    torch.rand(7)
    assert_same(one, fitted(train))
    other = fitted(train, seed=1)
    assert not torch.equal(one.models_[0].user.weight, other.models_[0].user.weight)


def test_fitting_leaves_the_random_numbers_of_others_alone(world):
    "What torch and numpy draw after a fit is what they would have drawn without it."
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    fitted(split(world, holdout(world.ratings))[0])
    assert torch.equal(torch.rand(3), wanted[0])
    assert_array_equal(np.random.rand(3), wanted[1])
