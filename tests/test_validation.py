"""Folds against plain loops, cross-validation against doing it by hand, and what it must not see."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold, KFold, TimeSeriesSplit

from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.dataset import index_ratings, split
from correct_smooth.experiment import run
from correct_smooth.own_metrics import own_metrics
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.tracking import LogEpochs, epoch_metrics
from correct_smooth.train import Callback, TrainConfig
from correct_smooth.validation import SPLITS, cross_validate, folds_of, hold_back, k_folds, latest

SOME = tried(25, 300)
QUICK = dict(training=TrainConfig(epochs=2), ensemble=1, validation=0.0, progress=False)


@pytest.fixture(scope="module")
def world():
    return index_ratings(synthetic_data(50, 90, 1_200, seed=2))


@st.composite
def ratings(draw):
    "A few ratings of a few users, with times that may be equal."
    pairs = draw(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=2, max_size=40, unique=True)
    )
    user, item = np.array(pairs).T
    when = draw(st.lists(st.integers(0, 5), min_size=len(user), max_size=len(user)))
    stars = draw(st.lists(st.sampled_from([1.0, 2.5, 4.0, 5.0]), min_size=len(user), max_size=len(user)))
    table = pd.DataFrame({"user_id": user, "item_id": item, "rating": stars, "timestamp": when})
    movies = pd.DataFrame({"item_id": range(10), "title": [f"item {k}" for k in range(10)]})
    return index_ratings(movie_data(movies, table, no_opinion="keep"))


@SOME
@given(ratings(), st.integers(2, 7), st.integers(0, 2**32))
def test_folds_are_dealt_evenly(data, k, seed):
    marks = k_folds(data, k, seed)
    assert (marks.sum(axis=0) == 1).all()
    assert np.ptp(marks.sum(axis=1)) <= 1
    for user in range(len(data.users)):
        assert np.ptp(marks[:, data.user == user].sum(axis=1)) <= 1
    np.testing.assert_array_equal(marks, k_folds(data, k, seed))


@SOME
@given(ratings(), st.floats(0.01, 0.99))
def test_the_latest_are_the_latest(data, share):
    hidden = latest(data, share)
    for user in range(len(data.users)):
        rows = np.flatnonzero(data.user == user)
        wanted = min(max(round(share * len(rows)), 1), len(rows) - 1)
        by_time = sorted(rows, key=lambda row: (data.timestamp[row], row))
        assert set(rows[hidden[rows]]) == set(by_time[len(rows) - wanted :])


def test_every_way_holds_something_back_and_leaves_something(world):
    for how in SPLITS:
        hidden = hold_back(world, how, 0.2, 3)
        assert 0 < hidden.sum() < len(world)
        np.testing.assert_array_equal(hidden, hold_back(world, how, 0.2, 3))
    user, item = (hold_back(world, how, 0.2, 3) for how in ("cold-users", "cold-items"))
    assert not set(world.user[user]) & set(world.user[~user])
    assert not set(world.item[item]) & set(world.item[~item])


def test_splitters_of_scikit_learn(world):
    rows = np.arange(len(world))
    splitters = [(KFold(4, shuffle=True, random_state=1), None), (GroupKFold(3), world.user)]
    for splitter, groups in [*splitters, (TimeSeriesSplit(3), None)]:
        pairs = list(splitter.split(rows, groups=groups))
        for (data, hidden), (known, test) in zip(folds_of(world, pairs), pairs, strict=True):
            assert len(data) == len(known) + len(test)
            np.testing.assert_array_equal(data.item[hidden], world.item[np.sort(test)])
            np.testing.assert_array_equal(data.user[~hidden], world.user[np.sort(known)])


@pytest.mark.parametrize(
    "folds, message",
    [
        (1, "folds must be a whole number from 2"),
        (0, "folds must be"),
        (True, "got True"),
        ("random", "got 'random'"),
        (None, "got None"),
        (2.5, "got 2.5"),
        ([], "no folds"),
        ([[True]], "must mark each of"),
        ([np.ones(3)], "must mark each of"),
        ([(np.array([0]), np.array([-1]))], "must hold positions"),
        ([(np.array([0.5]), np.array([1]))], "must hold positions"),
    ],
)
def test_what_are_no_folds(world, folds, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        folds_of(world, folds)


def test_cross_validation_is_what_one_would_do_by_hand(world):
    plain, marks = CorrectSmoothRecommender(**QUICK), k_folds(world, 3)
    found = cross_validate(plain, world, marks, [{}, {"refinement__T": 1}, {"model__emb_dim": 8}])
    assert found.names == ["as set", "refinement__T=1", "model__emb_dim=8"] and len(found.folds) == 9
    for name, changes in (
        ("refinement__T=1", {"refinement__T": 1}),
        ("model__emb_dim=8", {"model__emb_dim": 8}),
    ):
        tables = []
        for fold, hidden in enumerate(marks):
            known, held = split(world, hidden)
            judged = clone(plain).set_params(**changes).fit(known).evaluate(held)
            row = found.folds[(found.folds["settings"] == name) & (found.folds["fold"] == fold)].iloc[0]
            assert row["users"] == len(judged.users) and row["skipped"] == judged.skipped
            assert row["refined_roc_auc"] == pytest.approx(judged.result.loc["roc_auc", "refined"], abs=1e-12)
            tables.append(judged.users.set_index("user_id")["refined_roc_auc"])
        mean = pd.concat(tables).groupby(level=0).mean()
        pd.testing.assert_series_equal(found.of(name)["refined_roc_auc"].sort_index(), mean)
    assert not hasattr(plain, "state_")  # what was handed in is as it was


@pytest.mark.parametrize("how", SPLITS)
def test_a_run_can_be_split_in_every_way(how, tmp_path):
    data = synthetic_data(50, 90, 1_200, seed=2)
    write_tables(data, tmp_path / "world")
    told = run(tmp_path / "world", tmp_path / "out", 1, CorrectSmoothRecommender(**QUICK), split=how)
    hidden = hold_back(data, how, 0.2, 1)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert told["users_evaluated"] > 0 and len(predictions) == hidden.sum()
    assert predictions["rating"].sum() == data.ratings["rating"][hidden].sum()
    with pytest.raises(InputError, match="split must be one of"):
        run(tmp_path / "world", tmp_path / "out", split="by time")


def test_held_out_ratings_are_not_learned_from(world):
    "Whatever is in the held-out part, scores stay the same."
    hidden = k_folds(world, 3)[0]
    other = np.where(hidden, 5.5 - world.rating, world.rating).astype(np.float32)
    one, two = (
        cross_validate(CorrectSmoothRecommender(**QUICK), data, [hidden], [{}, {"refinement__alpha": 1.0}])
        for data in (world, index_ratings(replace(world, rating=other)))
    )
    pd.testing.assert_series_equal(one.folds["epochs"], two.folds["epochs"])
    scores = []
    for data in (world, replace(world, rating=other)):
        known, held = split(data, hidden)
        scores.append(CorrectSmoothRecommender(**QUICK).fit(known).evaluate(held).predictions)
    for column in ("base", "refined"):
        np.testing.assert_array_equal(scores[0][column], scores[1][column])


def test_own_metrics_agree_with_scikit_learn(world):
    known, held = split(world, k_folds(world, 4)[0])
    judged = CorrectSmoothRecommender(**QUICK).fit(known).evaluate(held, {"ap": average_precision_score})
    for which in ("base", "refined"):
        np.testing.assert_allclose(
            judged.metric(which, "ap"), judged.metric(which, "average_precision"), rtol=1e-12
        )
    assert judged.result.loc["ap", "delta"] == pytest.approx(judged.result.loc["average_precision", "delta"])
    assert "low" in judged.result and np.isfinite(judged.result.loc["ap", "low"])
    with pytest.raises(InputError, match="'roc_auc' already"):
        CorrectSmoothRecommender(**QUICK).fit(known).evaluate(held, {"roc_auc": average_precision_score})


@SOME
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.floats(0, 1)), max_size=30))
def test_own_metrics_see_each_user_once_in_order(pairs):
    user = np.array([pair[0] for pair in pairs], int)
    y, z = (np.array([pair[k] for pair in pairs], float) for k in (1, 2))
    calls = []
    found = own_metrics(user, y, z, 6, {"n": lambda y, z: calls.append((list(y), list(z))) or float(len(y))})
    wanted = [
        (list(y[user == u]), list(z[user == u]))
        for u in range(6)
        if 0 < y[user == u].sum() < (user == u).sum()
    ]
    assert calls == wanted and found["n"].notna().sum() == len(wanted)


def test_a_log_has_a_line_an_epoch(world, caplog):
    caplog.set_level(logging.INFO, "correct_smooth")
    CorrectSmoothRecommender(**QUICK).fit(world, callbacks=[LogEpochs()])
    assert [record.getMessage()[:28] for record in caplog.records] == [
        f"seed 0, watched 0, epoch {epoch}, " for epoch in (1, 2)
    ]


def test_looking_does_not_change_a_training(world):
    class Look(Callback):
        def on_epoch_end(self, training):
            epoch_metrics(training)

    settings = {**QUICK, "validation": 0.2}
    one, two = (CorrectSmoothRecommender(**settings).fit(world, callbacks=some) for some in ([], [Look()]))
    pd.testing.assert_frame_equal(one.history_, two.history_)
    pd.testing.assert_frame_equal(one.recommend([world.users[0]]), two.recommend([world.users[0]]))
