"""Choices made on validation ratings: the fast way against the long way; and the test stays out."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounding import rounding
from scipy import sparse

from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth, Operators, label_matrix, refine
from correct_smooth.dataset import holdout, index_ratings, split
from correct_smooth.diffusion import Diffusion
from correct_smooth.embeddings import Embeddings
from correct_smooth.evaluate import user_metrics
from correct_smooth.experiment import run
from correct_smooth.graph import NORMALISATIONS, GraphConfig
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig
from correct_smooth.tuning import Grid, best, judge, mixing, trials, user_auc

SOME = tried(15, 200)
SMALL = Grid(shrinkage=(1, 6), alpha=(0.5, 2), half_trust=(0, 5), beta=(0.3,), T=(0, 1, 2), scale=("user",))
GRAPHS = (GraphConfig(k=5, corating=0), GraphConfig(k=5))


def tune(*args, **how):
    "What was tried, judged."
    return judge(*trials(*args, **how))


def quick(**more):
    "A recommender that is fitted in a moment."
    return CorrectSmoothRecommender(
        training=TrainConfig(epochs=3), graph=GraphConfig(k=5), ensemble=1, progress=False, **more
    )


@SOME
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_auc_of_many_columns_equals_the_metric_of_each(seed, n_users, columns, ties):
    "Many scorings judged at once are judged as each alone."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    user, y = rng.integers(0, n_users, n), rng.integers(0, 2, n).astype(np.float32)
    z = rng.random((columns, n), np.float32)
    z = np.round(z * 4) / 4 if ties else z
    found = user_auc(user, y, z, n_users)
    for s in range(columns):
        assert_allclose(found[s], user_metrics(user, y, z[s], n_users)["roc_auc"], rtol=0, atol=1e-9)


@SOME
@given(st.floats(0, 1), st.integers(0, 6), st.integers(0, 3))
def test_mixing_sums_to_one(beta, T, more):
    "Powers of a row-normalised graph are mixed with weights that sum to one."
    weights = mixing(beta, T, T + more)
    assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-9


def world(seed, n_items=30, n_users=12):
    "A model, labels, a graph, and validation ratings elsewhere than the labels."
    rng = np.random.default_rng(seed)
    parts = (rng.normal(0, 1, o).astype(np.float32) for o in ((n_items, 3), n_items, (n_users, 3), n_users))
    where = rng.random((n_items, n_users))
    item, user = np.nonzero(where < 0.3)
    labels = label_matrix(user, item, rng.random(len(user)), where.shape)
    A = sparse.random(n_items, n_items, 0.2, "csr", np.float32, rng=rng)
    A.setdiag(0)
    ratings = pd.DataFrame(np.argwhere(where > 0.6)[:, ::-1], columns=["user_id", "item_id"])
    data = synthetic_data(n_users, n_items, 200, seed=0)
    ratings["rating"] = rng.integers(1, 11, len(ratings)) / 2
    data = replace(data, movies=data.movies.set_axis(range(n_items)), ratings=ratings)
    return Embeddings(*parts), labels, sparse.csr_matrix(A), index_ratings(data)


@dataclass
class Asked:
    "Validation ratings, as far as `trials` reads them."

    user: np.ndarray
    item: np.ndarray
    y: np.ndarray


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_what_refine_gives(seed):
    "The linear shortcut agrees with refining each setting by itself."
    model, labels, A, valid = world(seed)
    table = tune(model, labels, {"one": A}, valid, SMALL)
    assert len(table) == 4 * 12
    Z = model.block(np.arange(labels.shape[1]))
    for row in table.to_dict("records"):
        config = best(pd.DataFrame([row]))[1]
        after = refine(Z, labels, Operators(A), config)[valid.item, valid.user]
        # more than rounding, where no bound was met: all near ties fall one way, or all the other
        nudge = 1e-5 * (2 * valid.y - 1) * ((after > 0) & (after < 1))
        low, high = (np.clip(after + change, 0, 1) for change in (-nudge, nudge))
        low, high = user_auc(valid.user, valid.y, np.array([low, high]), labels.shape[1]).mean(axis=1)
        slack = rounding(labels.shape[1], dtype=np.float64)
        assert low - slack <= row["roc_auc"] <= high + slack and high - low < 0.1
    best_row = table.loc[table["low"].idxmax()]
    name, config = best(table)
    assert name == "one" and config.alpha == best_row["alpha"] and config.rule == best_row["rule"]


def test_fewer_users_are_drawn_from_a_seed():
    "A sample of users is the same for one seed and enough to judge."
    model, labels, A, valid = world(0)
    one, two, other = (
        tune(model, labels, {"a": A}, valid, SMALL, max_users=5, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, two)
    assert (one["roc_auc"] != other["roc_auc"]).any()


def test_columns_of_users_may_come_from_anywhere():
    "Users tried apart and put together are judged to the last digit as at once, whatever their order."
    model, labels, A, valid = world(0)
    settings, auc, base = trials(model, labels, {"one": A}, valid, SMALL)
    assert auc.shape == (len(settings), len(base)) == (48, 12)
    at_once = tune(model, labels, {"one": A}, valid, SMALL)
    pd.testing.assert_frame_equal(judge(settings, auc, base), at_once, check_exact=True)
    tables, columns, before = [], [], []
    for start in (0, 6):
        own = slice(start, start + 6)
        mine = (valid.user >= own.start) & (valid.user < own.stop)
        part = Asked(valid.user[mine] - start, valid.item[mine], valid.y[mine])
        some = Embeddings(model.H, model.c, model.U[own], model.b[own])
        table, found, untouched = trials(some, labels[:, own], {"one": A}, part, SMALL)
        for kept, value in ((tables, table), (columns, found), (before, untouched)):
            kept.append(value)
    pd.testing.assert_frame_equal(*tables)
    whole = judge(tables[0], np.hstack(columns), np.concatenate(before))
    pd.testing.assert_frame_equal(whole, at_once, check_exact=True)


def test_a_part_without_users_is_tried_as_well():
    "No users, no columns: the same table of settings, and nothing to judge."
    model, labels, A, valid = world(0)
    nobody = Asked(valid.user[:0], valid.item[:0], valid.y[:0])
    settings, auc, base = trials(model, labels, {"one": A}, nobody, SMALL)
    pd.testing.assert_frame_equal(settings, trials(model, labels, {"one": A}, valid, SMALL)[0])
    assert auc.shape == (48, 0) and base.shape == (0,)
    with pytest.raises(InputError, match="no user has both a liked and another item"):
        judge(settings, auc, base)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_diffusion_is_tuned_over_its_own_graphs(normalisation):
    "What the grid does not name stays, and each rule is smoothed over the graph that it would smooth over."
    model, labels, A, valid = world(1)
    usual = Diffusion(steps=2, spread_normalisation="row", normalisation=normalisation, smoothing="labels")
    table = tune(model, labels, {"one": A}, valid, SMALL, usual)
    plain = tune(model, labels, {"one": A}, valid, SMALL)
    other = table["rule"] == "diffusion"
    pd.testing.assert_frame_equal(table[~other], plain[~other], check_exact=True)
    assert (table["gain"] != plain["gain"])[other].any()
    for row in np.flatnonzero(other):
        _, config = best(table.iloc[[row]], usual)
        named = {name: table[name][row] for name in ("alpha", "half_trust", "spread", "scale", "beta", "T")}
        assert config == replace(usual, smoothing="scores", **named)
        Z = model.block(np.arange(labels.shape[1]))
        after = refine(Z, labels, Operators(A), config)[valid.item, valid.user]
        found = user_auc(valid.user, valid.y, after[None], labels.shape[1]).mean()
        assert abs(found - table["roc_auc"][row]) < 0.1  # near ties fall one way or the other


def test_columns_that_say_nothing_are_empty():
    "Shrinkage belongs to the neighbours' rule, spread and scale to diffusion."
    model, labels, A, valid = world(0)
    table = tune(model, labels, {"one": A}, valid, SMALL)
    names = ["rule", "shrinkage", "spread", "scale", "alpha", "half_trust", "beta", "T"]
    assert list(table.columns) == [*names, "roc_auc", "gain", "se", "low", "graph"]
    filled = (
        table.set_index("rule")[["shrinkage", "spread", "scale"]].notna().groupby("rule").agg(["min", "max"])
    )
    wanted = {"neighbours": (True, False, False), "own": (False,) * 3, "diffusion": (False, True, True)}
    for rule, values in wanted.items():
        assert list(filled.loc[rule]) == [value for value in values for _ in range(2)]


def scrambled(data, hidden):
    "The same data with other values for hidden ratings."
    ratings = data.ratings.copy()
    ratings.loc[hidden, "rating"] = np.random.default_rng(1).choice([0.5, 5.0], hidden.sum())
    return replace(data, ratings=ratings)


def test_choices_never_see_the_test():
    "No test rating is handed to any fit while tuning, and other test ratings lead to the same choices."
    data = synthetic_data(60, 80, 1_500, seed=0)
    hidden = holdout(data.ratings, 0.2, seed=0)
    given = []

    class Spy(CorrectSmoothRecommender):
        def fit(self, part, edges=None):
            given.append(part.ratings)
            return super().fit(part, edges)

    found = []
    models = ({}, {"model__emb_dim": 8})
    for source in (data, scrambled(data, hidden)):
        spy = Spy(**quick().get_params(deep=False))
        tuning = spy.tune(split(source, hidden)[0], models, GRAPHS, SMALL)
        found.append((spy.get_params(deep=False), tuning))
    secret = data.ratings.loc[hidden, ["user_id", "item_id"]]
    assert len(given) == 4
    for ratings in given:
        assert not len(secret.merge(ratings[["user_id", "item_id"]]))
    (one, first), (two, second) = found
    assert all(one[o] == two[o] for o in ("graph", "model", "refinement"))
    pd.testing.assert_frame_equal(first.models, second.models)
    pd.testing.assert_frame_equal(first.refinements, second.refinements)


def test_the_choice_becomes_the_settings():
    "After tuning, the recommender holds the best model, graph and refinement, and is not fitted."
    data = synthetic_data(60, 80, 1_500, seed=0)
    r = quick()
    tuning = r.tune(data, ({}, {"model__emb_dim": 4}), GRAPHS, SMALL)
    name, refinement = best(tuning.refinements)
    assert (str(r.graph), r.refinement) == (name, refinement)
    assert r.model.emb_dim == (64, 4)[int(tuning.models["roc_auc"].argmax())]
    assert tuning.models["difference"][0] == 0 and tuning.models["settings"][0] == "as set"
    assert not hasattr(r, "data_")


def test_your_own_graph_is_tuned_too(tmp_path):
    "With edges there is one graph, and it stays the user's; the table is written with the results."
    data = synthetic_data(60, 80, 1_500, seed=0)
    movies = data.movies.index.to_numpy()
    edges = pd.DataFrame({"source": movies[:-1], "target": movies[1:]})
    r = quick()
    tuning = r.tune(data, grid=SMALL, edges=edges)
    assert set(tuning.refinements["graph"]) == {"edges"} and r.graph == quick().graph
    edges.to_csv(tmp_path / "edges.csv", index=False)
    data_folder = tmp_path / "data"
    from correct_smooth.sources import write_tables

    write_tables(data, data_folder)
    told = run(data_folder, tmp_path / "out", recommender=quick(), edges=tmp_path / "edges.csv", tune=True)
    assert "tune" in told["seconds"]
    assert set(pd.read_csv(tmp_path / "out" / "tuning.csv")["graph"]) == {"edges"}


def test_another_refinement_leaves_the_first_alone():
    "with_refinement shares the model and changes only what is refined."
    data = synthetic_data(60, 80, 1_500, seed=0)
    r = quick().fit(data)
    before = r.recommend()
    other = r.with_refinement(CorrectAndSmooth(alpha=0))
    pd.testing.assert_frame_equal(r.recommend(), before)
    user, item = data.ratings["user_id"][:50], data.ratings["item_id"][:50]
    found = other.predict(user, item)
    assert_array_equal(found["base"], found["refined"])
    assert_array_equal(found["base"], r.predict(user, item)["base"])
    empty = sparse.csr_matrix(r.A_.shape, dtype=np.float32)
    alone = r.with_refinement(CorrectAndSmooth("neighbours"), empty).recommend(exclude_seen=True)
    assert_array_equal(alone["base"], alone["refined"])  # no neighbours, and nothing seen among them


def test_nothing_to_judge_by_is_an_error():
    "Validation ratings that are all liked, or none, settle nothing."
    model, labels, A, valid = world(0)
    same = replace(valid, y=np.ones_like(valid.y))
    with pytest.raises(InputError, match="no user has both a liked and another item"):
        tune(model, labels, {"one": A}, same, SMALL)


@pytest.mark.parametrize(
    "change",
    [{"refinement__alpha": 0.1}, {"model__emb_dim": 3}, {"ensemble": 2}, {"training__target": "label"}],
    ids=str,
)
def test_what_is_saved_is_what_was_fitted(change, tmp_path):
    "Settings changed after fit wait for the next fit; saving and loading gives the fitted model."
    data = synthetic_data(60, 80, 1_500, seed=0)
    r = quick().fit(data)
    before = r.recommend()
    r.set_params(**change)
    r.save(tmp_path / "model")
    pd.testing.assert_frame_equal(CorrectSmoothRecommender.load(tmp_path / "model").recommend(), before)
    other = r.with_refinement(CorrectAndSmooth(alpha=0.2))
    other.save(tmp_path / "other")
    back = CorrectSmoothRecommender.load(tmp_path / "other")
    pd.testing.assert_frame_equal(back.recommend(), other.recommend())


def test_what_the_grid_does_not_name_stays_as_set():
    "The user's own graph and the other settings of refinement survive tuning."
    data = synthetic_data(60, 80, 1_500, seed=0)
    r = quick().set_params(graph=GraphConfig(k=3, symmetrise=False), refinement=Diffusion(steps=4))
    r.set_params(refinement__normalisation="symmetric")
    tuning = r.tune(data, grid=replace(SMALL, shrinkage=(), own=False))
    assert r.graph.k == 3 and not r.graph.symmetrise and len(set(tuning.refinements["graph"])) == 3
    assert (r.refinement.steps, r.refinement.normalisation) == (4, "symmetric")
    asked = (GraphConfig(k=5), GraphConfig(k=5, symmetrise=False))
    assert len(set(quick().tune(data, graphs=asked, grid=SMALL).refinements["graph"])) == 2


def test_a_sage_model_keeps_the_graph_it_was_judged_over():
    "An encoder that reads the graph is judged over the one that it will be fitted with."
    r = quick().set_params(model__encoder="sage")
    tuning = r.tune(synthetic_data(60, 80, 1_500, seed=0), graphs=GRAPHS, grid=SMALL)
    assert set(tuning.refinements["graph"]) == {str(GraphConfig(k=5))} and r.graph == GraphConfig(k=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"T": 1}, "T of the grid must be a list of values, got 1"),
        ({"T": (1.5,)}, "T must be a whole number"),
        ({"T": (10**9,)}, "T must be a whole number from 0 to 1000"),
        ({"alpha": ()}, "the grid is empty"),
        ({"shrinkage": (), "own": False, "spread": ()}, "the grid is empty"),
        ({"scale": ()}, "the grid is empty"),
        ({"own": 5}, "own must be one of True, False"),
        ({"scale": ("auto",)}, "scale must be one of"),
    ],
)
def test_a_grid_checks_itself(settings, message):
    with pytest.raises(InputError, match=message):
        Grid(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ()}, "at least one model"),
        ({"models": (5,)}, "a model to try is a dict of settings, got 5"),
        ({"models": ({"graph__k": 7},)}, "graph__k is no setting of the model"),
        ({"models": ({"model__depth": 7},)}, "no setting 'depth'"),
        ({"graphs": ()}, "one GraphConfig"),
        ({"graphs": ("content",)}, "one GraphConfig"),
        ({"share": 0.001}, "nothing can be measured"),
    ],
)
def test_tune_refuses_before_any_fit(settings, message, monkeypatch):
    monkeypatch.setattr(CorrectSmoothRecommender, "fit", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(InputError, match=message):
        quick().tune(synthetic_data(60, 80, 1_500, seed=0), **settings)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda A: A[:10, :10], "80 x 80; got one of shape"),
        (lambda A: A.toarray(), "got 'ndarray'"),
        (lambda A: -A, "numbers from 0 to"),
        (lambda A: A * np.nan, "numbers from 0 to"),
    ],
)
def test_another_graph_must_fit(broken, message):
    r = quick().fit(synthetic_data(60, 80, 1_500, seed=0))
    with pytest.raises(InputError, match=message):
        r.with_refinement(CorrectAndSmooth(), broken(r.A_))
    with pytest.raises(InputError, match="refinement must be a .*, got 'own'"):
        r.with_refinement("own")


def test_numbers_of_numpy_are_saved_like_others(tmp_path):
    "Settings that came out of an array do not stop a model from being saved."
    r = quick().set_params(refinement__alpha=np.float32(0.5), refinement__T=np.int64(1), seed=np.int64(3))
    r.fit(synthetic_data(60, 80, 1_500, seed=0)).save(tmp_path / "model")
    assert CorrectSmoothRecommender.load(tmp_path / "model").refinement == CorrectAndSmooth(alpha=0.5, T=1)
