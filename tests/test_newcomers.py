"""People, movies and ratings that come after training: what is learned of them, and what they leave alone."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from correct_smooth.audience import AudienceConfig, with_audience
from correct_smooth.checkpoint import Checkpoint
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth
from correct_smooth.data import movie_data
from correct_smooth.dataset import index_ratings
from correct_smooth.diffusion import Diffusion
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ModelConfig
from correct_smooth.newcomers import add_ratings, fit_users
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig, train
from correct_smooth.tuning import Grid

QUICK = {"graph": GraphConfig(k=5), "training": TrainConfig(epochs=3), "progress": False}
SOME = tried(5, 100)


@pytest.fixture(scope="module")
def world():
    return synthetic_data(60, 80, 1_500, seed=0)


@pytest.fixture(scope="module")
def fitted(world):
    return CorrectSmoothRecommender(**QUICK, ensemble=2).fit(world)


def again(fitted):
    "A copy that may take newcomers in; nothing of the fitted one may change by it."
    return fitted.with_refinement(fitted.refinement)


def ratings(user, items, stars):
    return pd.DataFrame({"user_id": user, "item_id": items, "rating": np.asarray(stars, float)})


def new_ratings(rng, user, n):
    return ratings(user, rng.choice(80, n, replace=False), rng.integers(1, 11, n) / 2)


@pytest.mark.parametrize("n", [3, 60])
def test_a_vector_is_that_of_logistic_regression(n):
    "scikit-learn's, on hard labels: each rating twice, the bias as a column, pulled to 0."
    rng = np.random.default_rng(n)
    H, y = rng.normal(size=(n, 5)), rng.integers(0, 2, n)
    y[:2] = 0, 1
    Y = sparse.csc_matrix((y, (np.arange(n), np.zeros(n, int))), shape=(n, 1))
    U, b = fit_users(Y, H, np.zeros(n), (np.zeros(5), 0.0), 2.5)
    rows = np.column_stack([H, np.ones(n)])
    other = LogisticRegression(C=1 / 2.5, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(rows, y)
    assert_allclose(np.append(U[0], b[0]), other.coef_[0], atol=1e-4)


@SOME
@given(st.integers(0, 2**32 - 1), st.integers(1, 79), st.integers(1, 79))
def test_newcomers_do_not_depend_on_their_company(fitted, seed, n, m):
    "Two people together, one after the other, or with rows in another order: the same answers."
    rng = np.random.default_rng(seed)
    one, two = new_ratings(rng, 100, n), new_ratings(rng, 101, m)
    both = again(fitted).fold_in(pd.concat([one, two]))
    turns = again(fitted).fold_in(two).fold_in(one)
    mixed = again(fitted).fold_in(pd.concat([one, two]).sample(frac=1, random_state=0))
    for o in (100, 101):
        lists = [r.recommend([o], n=80).sort_values("item_id") for r in (both, turns, mixed)]
        for other in lists[1:]:
            assert_array_equal(lists[0]["item_id"], other["item_id"])
            assert_allclose(lists[0]["refined"], other["refined"], atol=1e-5)


def test_who_comes_back_is_known_as_well_as_if_they_had_stayed(fitted):
    "Five ratings now and fifteen later give the vector of all twenty, until a training has seen them."
    rng = np.random.default_rng(3)
    all_of_them = new_ratings(rng, 100, 20)
    at_once = again(fitted).fold_in(all_of_them)
    later = again(fitted).fold_in(all_of_them[:5]).fold_in(new_ratings(rng, 101, 9)).fold_in(all_of_them[5:])
    scores = [r.predict([100] * 80, r.items_)[["base", "refined"]] for r in (at_once, later)]
    assert_allclose(*scores, atol=1e-5)
    trained = again(later).partial_fit(epochs=1)
    before = trained.predict([100] * 80, trained.items_)["base"]
    trained.fold_in(new_ratings(rng, 100, 40))
    assert_array_equal(before, trained.predict([100] * 80, trained.items_)["base"])


def test_nobody_else_moves(fitted):
    "Weights, labels and scores of those who were there are the same to the last bit."
    before = fitted.recommend(n=80)
    parameters = [o.clone() for m in fitted.models_ for o in m.parameters()]
    more = again(fitted).fold_in(new_ratings(np.random.default_rng(1), 100, 30))
    pd.testing.assert_frame_equal(more.recommend(fitted.users_, n=80), before, check_exact=True)
    pd.testing.assert_frame_equal(fitted.recommend(n=80), before, check_exact=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(parameters, (o for m in fitted.models_ for o in m.parameters()), strict=True)
    )


@pytest.mark.parametrize("target", ["margin", "label"])
@pytest.mark.parametrize("thresholds", [True, False])
def test_labels_are_as_if_they_had_always_been_there(world, target, thresholds):
    "New people's, and those of known people who have rated more, or changed their mind."
    from dataclasses import replace

    from correct_smooth.correct_smooth import label_matrix
    from correct_smooth.dataset import targets

    data = world
    if thresholds:  # somebody's own, which stay
        data = replace(world, thresholds=index_ratings(world).thresholds - 0.5)
    quick = {**QUICK, "training": TrainConfig(epochs=1, target=target)}
    r = CorrectSmoothRecommender(**quick, ensemble=1).fit(data)
    rng = np.random.default_rng(0)
    new = pd.concat([new_ratings(rng, o, 20) for o in (3, 100, 7, 101)])
    r.fold_in(new)
    pairs = add_ratings(index_ratings(data), new)
    assert pairs.users.equals(r.users_)
    expected = label_matrix(pairs.user, pairs.item, targets(pairs, target), r.scorer_.labels.shape)
    assert (r.scorer_.labels != expected).nnz == 0 and r.scorer_.labels.nnz == len(pairs)
    assert r.users_[-2:].tolist() == [100, 101]


def test_a_twin_is_recognised(world):
    "A newcomer with exactly the ratings of somebody trained on is like that one, above all others."
    training = TrainConfig(epochs=100, weight_decay=1.0)
    r = CorrectSmoothRecommender(
        graph=GraphConfig(k=5), training=training, validation=0.0, ensemble=1, progress=False
    ).fit(world)
    r.fold_in(world.ratings.assign(user_id=world.ratings["user_id"] + 100))
    Z = logit(r.scorer_.model.block(np.arange(120)).astype(float))
    alike = np.corrcoef(Z.T)[60:, :60]
    assert_array_equal(alike.argmax(axis=1), np.arange(60))
    assert np.diag(alike).min() > 0.95


@pytest.mark.parametrize("encoder", ["mlp", "sage"])
def test_new_movies_are_embedded_as_the_same_movies_would_be(world, encoder):
    "A movie added with another's content has that movie's base scores."
    config = ModelConfig(encoder=encoder, id_embedding=encoder == "mlp", id_dropout=0.5)
    alone = AudienceConfig(axes=0)  # the twin has none
    r = CorrectSmoothRecommender(**QUICK, model=config, ensemble=1, audience=alone).fit(world)
    for model in r.models_:  # so that movies' own vectors cannot hide a difference
        if config.id_embedding:
            torch.nn.init.zeros_(model.encoder.own.weight)
    r._keep(r.state_, r.X_)  # scores of the changed weights
    twin = world.movies[3:4].rename(index={3: 1003})
    before = r.recommend(n=80, exclude_seen=False)
    r.add_movies(twin)
    assert r.items_[-1] == 1003 and r.A_.shape == (81, 81)
    if encoder == "mlp":
        both = [r.predict(r.users_, [o] * 60)["base"] for o in (3, 1003)]
        assert_allclose(*both, atol=1e-5)
    old = r.recommend(n=80, exclude_seen=False, items=r.items_[:-1])
    if encoder == "mlp":  # with sage an old movie may have a new neighbour
        key = ["user_id", "item_id"]
        assert_allclose(before.sort_values(key)["base"], old.sort_values(key)["base"], atol=1e-5)
    near = r.similar_items(1003, n=1)
    assert near["item_id"][0] == 3 and near["similarity"][0] > 0.9
    r.fold_in(ratings(5, [1003], [5.0]))  # and can be rated
    assert 1003 not in set(r.recommend([5], n=81)["item_id"])


def test_movies_and_people_that_cannot_be_taken_in(fitted, world):
    "Each error names the value, and nothing has changed after it."
    r = again(fitted)
    before = r.recommend(n=5)
    for wrong, message in (
        (ratings(100, [999], [5]), "item 999 is unknown"),
        (ratings("me", [1], [5]), "'me' is of another kind.*whole numbers, such as 60"),
        (ratings(100, ["one"], [5]), "'one' is of another kind"),
        (ratings(100, [1], [np.nan]), "row 0 is 'nan'"),
        (ratings(100, [1], [5]).drop(columns="rating"), "lack the column rating"),
        ([1, 2], "must be a pandas DataFrame"),
    ):
        with pytest.raises(InputError, match=message):
            r.fold_in(wrong)
        with pytest.raises(InputError, match=message):
            r.partial_fit(wrong)
    with pytest.raises(InputError, match="item 3 is known already"):
        r.add_movies(world.movies[3:5])
    with pytest.raises(InputError, match="epochs must be"):
        r.partial_fit(epochs=0)
    pd.testing.assert_frame_equal(r.recommend(n=5), before)
    assert len(r.fold_in(ratings(100, [1], [5])[:0]).users_) == 60


KINDS = [np.int64, np.uint64, np.int8, np.float64, "Int64", str, "category"]


@pytest.mark.parametrize("known", KINDS)
def test_ids_of_any_type_are_found_again(world, known):
    "Whatever ids were trained with, and whatever they are asked for as: the same people, the same movies."
    text = known is str
    r = world.ratings.astype({"user_id": known, "item_id": known})
    movies = world.movies.set_axis(world.movies.index.astype(known), axis=0).rename_axis("item_id")
    r = CorrectSmoothRecommender(**QUICK, ensemble=1).fit(movie_data(movies, r))
    assert r.users_.tolist() == (sorted(map(str, range(60))) if text else list(range(60)))
    users, items = np.arange(5), np.arange(20, 25)
    wanted, before = r.predict(users, items), r.explain(3, 7)
    rated = world.ratings.query("user_id == 2 and 20 <= item_id < 25").shape[0]
    for asked in KINDS:
        ids = [pd.Series(o).astype(asked) for o in (users, items)]
        assert_array_equal(r.predict(*ids)["refined"], wanted["refined"])
        lists = r.recommend(ids[0], n=3, items=ids[1])
        assert_array_equal(lists["refined"], r.recommend(users, n=3, items=items)["refined"])
        why = r.explain(ids[0][3], pd.Series([7]).astype(asked)[0])
        pd.testing.assert_frame_equal(why, before)
        new = ratings(2, items, [1, 2, 3, 4, 5]).astype({"user_id": asked, "item_id": asked})
        grown = again(r).fold_in(new)
        assert_array_equal(grown.users_, r.users_)
        assert len(grown.data_.ratings) == len(r.data_.ratings) + 5 - rated
    with pytest.warns(UserWarning, match="'007' is unknown"):
        r.recommend(["007"])


def test_edges_in_any_form_give_one_model(world, tmp_path):
    "Listed once or twice, by id or by position, in a file or not; and tuning takes them as well."
    graph = nx.path_graph(80)
    once = nx.to_pandas_edgelist(graph)
    once.to_csv(tmp_path / "edges.csv", index=False)
    twice = pd.concat([once, once.rename(columns={"source": "target", "target": "source"})])
    forms = [once, twice, graph, nx.to_scipy_sparse_array(graph), np.array(graph.edges).T]
    forms += [torch.from_numpy(forms[-1]), tmp_path / "edges.csv", str(tmp_path / "edges.csv")]
    models = [CorrectSmoothRecommender(**QUICK, ensemble=1).fit(world, o) for o in forms]
    for other in models[1:]:
        assert (other.A_ != models[0].A_).nnz == 0
        pd.testing.assert_frame_equal(other.recommend([0]), models[0].recommend([0]))
    assert models[0].A_.max() == 1  # not halved
    with pytest.raises(InputError, match="edges must be a DataFrame"):
        models[0].fit(world, [(1, 2)])
    grid = Grid(shrinkage=(6,), spread=(), alpha=(1,), half_trust=(0,), beta=(0.5,), T=(0,))
    tuned = [CorrectSmoothRecommender(**QUICK, ensemble=1).tune(world, edges=o, grid=grid) for o in forms[:3]]
    assert tuned[0].refinements.equals(tuned[1].refinements) and tuned[0].refinements.equals(
        tuned[2].refinements
    )


@pytest.mark.parametrize("n_items", [1, 2, 3, 10])
@pytest.mark.parametrize("n_users", [1, 6])
@pytest.mark.parametrize("encoder", ["mlp", "sage"])
def test_catalogues_of_a_few_movies(n_items, n_users, encoder):
    "With the defaults: fewer neighbours than asked for, which is noted, and lists as long as can be."
    movies = pd.DataFrame({"item_id": range(n_items), "genres": "Drama"})
    pairs = [(u, i, (u * i + u) % 5 + 1) for u in range(n_users) for i in range(n_items) if (u + i) % 3]
    table = pd.DataFrame([*pairs, (0, 0, 3)], columns=["user_id", "item_id", "rating"])
    r = CorrectSmoothRecommender(progress=False, ensemble=1).set_params(
        training__epochs=2, model__encoder=encoder, features__min_count=1
    )
    r.fit(movie_data(movies, table))
    noted = f"note: neighbours of each item fewer than asked for, there being {n_items} items"
    assert r.dropped_ == {noted: 21 - n_items}
    top = r.recommend([0], n=20)
    assert len(top) == n_items - table["item_id"][table["user_id"] == 0].nunique()
    assert np.isfinite(r.predict([0] * n_items, range(n_items))[["base", "refined"]]).all(axis=None)


def test_terms_that_no_movies_share(world):
    "Blocks that are left empty by it are named; where nothing is left the error says what to change."
    r = CorrectSmoothRecommender(**QUICK, ensemble=1, features=MovieFeatures(min_count=1000)).fit(world)
    assert list(r.dropped_) == [
        "note: blocks of features with no word or name that 1000 items share (overview, genres, era)"
    ]
    bare = replace(world, movies=world.movies[["genres"]])
    with pytest.raises(InputError, match="shared by 1000 items .min_count., so genres leave nothing"):
        r.fit(bare)


def test_a_head_that_is_not_convex_is_refused(world):
    r = CorrectSmoothRecommender(**QUICK, model=ModelConfig(head="mlp"), ensemble=1).fit(world)
    with pytest.raises(InputError, match="need head 'dot'"):
        r.fold_in(ratings(100, [1], [5]))


def test_training_goes_on_from_where_it_stood(fitted, world):
    "It is `train` from the weights that are there, with fresh random numbers; and new rounds differ."
    r = again(fitted).partial_fit(epochs=2)
    pairs = index_ratings(world)
    first = r.seed + 2 * fitted.epochs_
    X = with_audience(r.X_, fitted.state_.audience)
    config = TrainConfig(epochs=2, learning_rate=1e-3)  # a tenth of the first rate
    how = {"start": fitted.models_[0], "audience": r.audience}
    alone = train(X, pairs, None, r.model, config, first, False, **how).model
    for a, b in zip(alone.parameters(), r.models_[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert r.epochs_ == fitted.epochs_ + 2
    two = again(fitted).partial_fit(epochs=1).partial_fit(epochs=1)
    assert not torch.equal(two.models_[0].user.weight, r.models_[0].user.weight)


def test_a_failed_round_changes_nothing(fitted, monkeypatch):
    "New ratings are taken in together with the training, or not at all."
    r = again(fitted)
    before = r.recommend()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("correct_smooth.recommender.train", stopped)
    with pytest.raises(KeyboardInterrupt):
        r.partial_fit(ratings(100, [1, 2], [5, 1]))
    pd.testing.assert_frame_equal(r.recommend(), before)
    assert len(r.users_) == 60


@pytest.mark.parametrize(
    "config",
    [
        CorrectAndSmooth(),
        CorrectAndSmooth(half_trust=0, alpha=50),  # far beyond the bounds
        CorrectAndSmooth(T=3, beta=0.4),
        CorrectAndSmooth("own", alpha=0.8, half_trust=0, T=2),
        Diffusion(steps=2, T=2, normalisation="symmetric"),
        Diffusion(steps=4, alpha=1),
        Diffusion(steps=0, T=1, spread_normalisation="row"),
    ],
    ids=str,
)
def test_explanations_add_up(fitted, config):
    "For every movie (other rules: every fourth), rated or not, known and new users, whatever the rule."
    every = 1 if config == CorrectAndSmooth() else 4
    r = fitted.with_refinement(config).fold_in(new_ratings(np.random.default_rng(2), 100, 12))
    for user in (0, 100):
        scores = r.predict([user] * 80, r.items_)
        for item, base, refined in scores[["item_id", "base", "refined"]].to_numpy()[::every]:
            both = r.explain(user, int(item))
            watch = both.loc[both["of"] == "watch", "contribution"].sum()
            at = r.users_.get_indexer([user]), int(r.items_.get_loc(int(item)))
            assert watch == pytest.approx(r.state_.watch.block(at[0])[at[1], 0], abs=2e-5)
            told = both[both["of"] == "refined"]
            assert told["contribution"].sum() == pytest.approx(refined, abs=2e-5)
            assert told["contribution"][0] == pytest.approx(base, abs=1e-6)
            assert told["part"][0] == "base score" and set(told["part"][1:]) <= {
                "own label", "neighbour", "smoothing", "bounds",
            }  # fmt: skip


@pytest.mark.filterwarnings("ignore:user .* is unknown")
def test_explaining_a_stranger(fitted):
    "There is nothing but the base score, and what the mean of all users watches."
    told = fitted.explain("zoe", 3)
    assert told["part"].tolist() == ["base score", "mean of all users"]
    with pytest.raises(InputError, match="item 'x' is unknown"):
        fitted.explain(0, "x")


def test_blocked_movies_are_not_recommended(fitted):
    "Whatever else is allowed, and for everybody."
    some = fitted.items_[:10]
    top = fitted.recommend(n=80, block_items=some)
    assert not set(top["item_id"]) & set(some)
    assert set(fitted.recommend(n=80, items=some, block_items=some[3:])["item_id"]) <= set(some[:3])
    with pytest.raises(InputError, match="item 999 is unknown"):
        fitted.recommend(block_items=[999])


def test_similar_movies(fitted):
    "By graph the largest weights, by embedding the largest cosines; never the movie itself."
    H = fitted.scorer_.model.H
    unit = H / np.linalg.norm(H, axis=1, keepdims=True)
    for i, item in enumerate(fitted.items_[:20]):
        close = fitted.similar_items(item, n=200, by="embedding")
        assert len(close) == 79 and item not in set(close["item_id"])
        assert_allclose(close["similarity"], np.sort(np.delete(unit @ unit[i], i))[::-1], atol=1e-5)
        row = fitted.A_[i].toarray()[0]
        near = fitted.similar_items(item, n=5)
        assert_allclose(near["similarity"], np.sort(row[row > 0])[::-1][:5], atol=1e-6)


def test_a_fit_that_was_stopped_goes_on(world, tmp_path, monkeypatch):
    "Interrupted in each of its trainings in turn, it ends with the weights of an undisturbed one."
    monkeypatch.setattr("correct_smooth.checkpoint.CHECKPOINT_SECONDS", 0)
    whole = CorrectSmoothRecommender(**QUICK, ensemble=2).fit(world)
    calls = iter(range(10**6))
    from correct_smooth import train as module

    epoch = module.train_epoch

    def interrupted(*args, **named):
        if next(calls) % 2:
            raise KeyboardInterrupt
        return epoch(*args, **named)

    monkeypatch.setattr("correct_smooth.train.train_epoch", interrupted)
    r, stops = CorrectSmoothRecommender(**QUICK, ensemble=2), 0
    while True:
        try:
            r.fit(world, callbacks=[Checkpoint(tmp_path / "c")])
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    for one, two in zip(whole.models_, r.models_, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    pd.testing.assert_frame_equal(whole.recommend(), r.recommend(), check_exact=True)


@pytest.mark.parametrize("kind", ["polars", "arrow"])
def test_ratings_come_in_tables_of_any_library(kind):
    import polars as pl
    import pyarrow as pa

    data = synthetic_data(40, 60, 800, seed=3)
    one, two = (
        CorrectSmoothRecommender(training=TrainConfig(epochs=1), progress=False).fit(data) for _ in "ab"
    )
    new = pd.DataFrame({"user_id": [900, 900, 3], "item_id": [5, 6, 7], "rating": [5.0, 1.0, 4.0]})
    other = pl.from_pandas(new) if kind == "polars" else pa.Table.from_pandas(new)
    pd.testing.assert_frame_equal(
        one.fold_in(new).recommend([900, 3]), two.fold_in(other).recommend([900, 3])
    )
    with pytest.raises(InputError, match="new ratings"):
        one.fold_in([900, 5, 5.0])
