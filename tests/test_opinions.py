"""What ratings say: in whatever units, by whatever standard, and nothing where they say nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from correct_smooth import CorrectSmoothRecommender, GraphConfig, InputError, ModelConfig, TrainConfig
from correct_smooth.data import movie_data, without_opinion
from correct_smooth.dataset import holdout, index_ratings, split, user_thresholds
from correct_smooth.experiment import run
from correct_smooth.graph import corating_knn
from correct_smooth.newcomers import add_ratings
from correct_smooth.partition import load_shard, partition
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data

QUICK = {
    "graph": GraphConfig(k=5, corating_k=20),
    "model": ModelConfig(emb_dim=6, hidden_dim=10),
    "training": TrainConfig(epochs=6, batch_size=400),
    "ensemble": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def world():
    return synthetic_data(60, 80, 1_500, seed=0)


def in_units(data, factor, more):
    "The same opinions, told in other numbers."
    rating = (data.ratings["rating"].astype(np.float64) * factor + more).astype(np.float32)
    return replace(data, ratings=data.ratings.assign(rating=rating))


@tried(30, 500)
@given(st.integers(0, 1_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_change_no_label(world, seed, factor, more):
    "Multiplied, and something added: labels are equal, targets and graph are up to rounding."
    rng = np.random.default_rng(seed)
    world = replace(world, ratings=world.ratings[world.ratings["user_id"].isin(rng.integers(0, 60, 12))])
    hidden = holdout(world.ratings, 0.3, seed)
    (a, b), (c, d) = (split(o, hidden) for o in (world, in_units(world, factor, more)))
    one, other = index_ratings(a), index_ratings(c)
    assert_array_equal(one.y, other.y)
    assert_array_equal(b.y, d.y)
    # ratings are stored to 2**-24 of their size, as are their means and spreads; the density is below 0.4
    size = np.abs(other.rating).max() / (factor * min(o for o in _spreads(one)))
    assert_allclose(other.margins, one.margins, rtol=0, atol=4 * 2.0**-24 * (size + 20))
    C, K = (corating_knn(o, 79, n_threads=1).toarray() for o in (one, other))
    raters = np.bincount(one.item).max()  # terms of a sum; each movie's length is 1 at most
    assert_allclose(K, C, rtol=0, atol=raters * 4 * 2.0**-24 * (size + 1))


def _spreads(pairs):
    by_user = pd.Series(pairs.rating.astype(float)).groupby(pairs.user)
    n = by_user.size()
    return np.sqrt((by_user.var().fillna(0) * (n - 1) + pairs.people.spread**2) / n)


@pytest.mark.parametrize("factor, more", [(2, 0), (0.25, 0), (4, 1), (1, -3)])
def test_units_change_no_list(world, factor, more):
    "Scores and lists are the same, to the last bit where 32 bits hold the new numbers exactly."
    lists = [
        CorrectSmoothRecommender(**QUICK).fit(o).recommend(n=10)
        for o in (world, in_units(world, factor, more))
    ]
    pd.testing.assert_frame_equal(*lists)


def test_thumbs_are_a_scale_like_any_other(world):
    "0 and 1, 1 and 5, -1 and 1: the same labels, none of them taken for `seen, not rated`."
    up = (world.ratings["rating"] >= 3.5).astype(float)
    found = []
    for low, high in ((0, 1), (1, 5), (-1, 1)):
        data = movie_data(world.movies, world.ratings.assign(rating=low + (high - low) * up))
        assert data.no_opinion is None and not data.dropped
        found.append(index_ratings(data))
    for o in found[1:]:
        assert_array_equal(o.y, found[0].y)
        assert_allclose(o.margins, found[0].margins, rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("target", ["margin", "label"])
@pytest.mark.parametrize("near", [False, True])
def test_a_fan_and_a_hater_get_different_lists(world, target, near):
    "Six fives are not six ones, nor are they with one of them half a star off."
    model = CorrectSmoothRecommender(**{**QUICK, "training": TrainConfig(epochs=30, target=target)}).fit(
        world
    )
    stars = {"fan": [5.0] * 6, "hater": [1.0] * 6}
    if near and target == "label":
        pytest.skip("labels follow the plain mean wherever ratings differ")
    movies = world.movies.index[:6]
    for name, given_ in stars.items():
        given_[0] -= 0.5 * near
        rows = pd.DataFrame({"user_id": len(name) + 1_000, "item_id": movies, "rating": given_})
        model = model.fold_in(rows)
    fan, hater = (model.predict([len(o) + 1_000] * 6, movies) for o in stars)
    assert (fan["refined"][1:] > hater["refined"][1:]).all()
    tops = [model.recommend([len(o) + 1_000], n=10, by="like")["item_id"].tolist() for o in stars]
    assert tops[0] != tops[1]


def given_lines(data):
    "A line for each user that no rule would draw."
    users = np.unique(data.ratings["user_id"])
    return pd.Series(2.25 + np.arange(len(users)) % 3, pd.Index(users, name="user_id"))


@pytest.mark.parametrize("how", ["thresholds", "liked of data", "liked of split", "liked of recommender"])
def test_a_line_of_ones_own_stays(world, how, tmp_path):
    "Through split, the split for early stopping, fitting, new ratings, more training, saving and loading."
    line = given_lines(world) if how == "thresholds" else pd.Series(4.0, given_lines(world).index)
    data = {
        "thresholds": replace(world, thresholds=line),
        "liked of data": movie_data(world.movies, world.ratings, liked=4),
    }.get(how, world)
    train_part, test = split(data, holdout(data.ratings), liked=4 if how == "liked of split" else None)
    r = CorrectSmoothRecommender(**QUICK, liked=4 if how == "liked of recommender" else None)
    seen = []

    def spy(self, X, block, data, A, graph, callbacks):
        kept, held = split(data, holdout(data.ratings, 0.1))
        seen.extend([kept, held])
        return train_it(self, X, block, data, A, graph, callbacks)

    train_it = CorrectSmoothRecommender._train_all
    with pytest.MonkeyPatch.context() as m:
        m.setattr(CorrectSmoothRecommender, "_train_all", spy)
        r.fit(train_part)
    newcomer = pd.DataFrame({"user_id": 1_000, "item_id": world.movies.index[:4], "rating": [5.0, 4, 3, 4.5]})
    r.fold_in(newcomer).partial_fit()
    r.save(tmp_path / "model")
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    for o in (*seen, r.data_, back.data_):
        lines = line.reindex(np.unique(o.ratings["user_id"])).fillna(line.mean())
        wanted = o.ratings["rating"].to_numpy() >= lines[o.ratings["user_id"]].to_numpy()
        assert_array_equal(index_ratings(o).y == 1, wanted)
    label = r.evaluate(test).predictions["label"]
    assert_array_equal(label == 1, test.ratings["rating"] >= test.ratings["user_id"].map(line))


def test_a_line_of_ones_own_is_what_margins_are_measured_from(world):
    "Half a step below: a target above 1/2 is a movie that is liked."
    for data in (replace(world, thresholds=given_lines(world)), replace(world, liked=3.5)):
        pairs = index_ratings(data)
        assert_array_equal(pairs.margins > 0.5, pairs.y == 1)


@pytest.mark.parametrize("value, share", [(-1, 0.05), (-1, 0.7), (0, 0.5)])
def test_seen_but_not_rated_flips_no_label(world, value, share):
    "Ratings of -1, or many of 0, are as if they were not there, but the movies are known to be seen."
    rng = np.random.default_rng(0)
    silent = rng.random(len(world.ratings)) < share
    stars = np.clip(world.ratings["rating"] * 2, 1, 10).round()
    rows = world.ratings.assign(rating=np.where(silent, value, stars))
    data = movie_data(world.movies, rows)
    alone = movie_data(world.movies, rows[~silent])
    assert data.no_opinion == value and len(data.seen) == silent.sum()
    pd.testing.assert_frame_equal(data.ratings, alone.ratings)
    (reason,) = data.dropped
    assert f"ratings of {value}" in reason and data.dropped[reason] == silent.sum()
    one, other = (CorrectSmoothRecommender(**QUICK).fit(o) for o in (data, alone))
    users, items = one.users_[[0, 1, 2]], one.items_[[3, 4, 5]]
    pd.testing.assert_frame_equal(one.predict(users, items), other.predict(users, items))
    told = one.recommend(n=80)[["user_id", "item_id"]]
    everything = pd.concat([data.ratings, data.seen])[["user_id", "item_id"]]
    assert not len(told.merge(everything)) and len(told.merge(everything, how="outer")) == len(
        everything
    ) + len(told)
    kept = movie_data(world.movies, rows, no_opinion="keep")
    assert len(kept.ratings) == len(rows) and kept.seen is None
    again = without_opinion(kept, value)
    pd.testing.assert_frame_equal(again.seen, data.seen)


@pytest.mark.parametrize("parted", [False, True], ids=["csv", "partitioned"])
@pytest.mark.parametrize("no_opinion, silent", [("find", -1), ("keep", None), (5.0, 5)])
def test_whoever_runs_it_says_what_is_no_opinion(world, tmp_path, parted, no_opinion, silent):
    "The setting reaches the readers that a run uses, and `partition` decides nothing before."
    rows = world.ratings.assign(rating=world.ratings["rating"].where(world.ratings.index % 5 > 0, -1))
    rows.to_csv(tmp_path / "ratings.csv", index=False)
    world.movies[["title"]].reset_index().to_csv(tmp_path / "movies.csv", index=False)
    folder = tmp_path / "parted" if parted else tmp_path
    if parted:
        partition(tmp_path, folder, progress=False)
    data, _ = load_shard(folder, no_opinion)
    assert len(data.ratings) == (rows["rating"] != silent).sum()
    assert len(data.ratings) + (0 if data.seen is None else len(data.seen)) == len(rows)


@pytest.mark.parametrize("flag, value", [("find", 0), ("keep", None), (2, 2)])
def test_the_flag_for_no_opinion_reaches_the_data(world, flag, value, tmp_path):
    "Of `run`, and so of the command; everything left out is one remark."
    stars = world.ratings["rating"].round().where(world.ratings["item_id"] % 2 > 0, 0)
    rows = world.ratings.assign(rating=stars)
    write_tables(replace(world, ratings=rows), tmp_path / "tables")
    data, _ = load_shard(tmp_path / "tables", flag)
    assert data.no_opinion == value and len(data.ratings) == (stars != value).sum()
    nothing = without_opinion(replace(world, ratings=rows.assign(rating=2.0)), 2)
    assert list(nothing.dropped) == ["ratings of 2, 'seen, not rated' beside no others (see no_opinion)"]


def test_a_newcomer_may_have_no_opinion_too(world):
    "A rating of -1 that comes later is a movie seen, as it was in training."
    rows = world.ratings.assign(rating=world.ratings["rating"].where(world.ratings["item_id"] % 7 > 0, -1))
    r = CorrectSmoothRecommender(**QUICK).fit(movie_data(world.movies, rows))
    mine = pd.DataFrame({"user_id": 1_000, "item_id": [1, 2, 3, 4], "rating": [5, -1, 2, 4]})
    grown = add_ratings(r.data_, mine)
    assert grown.ratings["rating"].min() > 0
    r.fold_in(mine)
    assert not set(r.recommend([1_000], n=80)["item_id"]) & {1, 2, 3, 4}
    alone = (
        CorrectSmoothRecommender(**QUICK)
        .fit(movie_data(world.movies, rows))
        .fold_in(mine[mine["rating"] > 0])
    )
    assert_array_equal(r.predict([1_000], [9])["refined"], alone.predict([1_000], [9])["refined"])


def test_views_are_no_ratings(world, tmp_path):
    "All ratings equal: remarked by the door, refused by fit and run."
    rows = world.ratings.assign(rating=1.0)
    data = movie_data(world.movies, rows)
    assert data.dropped == {"note: ratings that are all 1: views or purchases, no opinions": len(rows)}
    with pytest.raises(InputError, match="all ratings are 1: views or purchases"):
        CorrectSmoothRecommender(**QUICK).fit(data)
    rows.to_csv(tmp_path / "ratings.csv", index=False)
    world.movies[["title"]].reset_index().to_csv(tmp_path / "movies.csv", index=False)
    with pytest.raises(InputError, match="all ratings are 1: views or purchases"):
        run(tmp_path, tmp_path / "out", recommender=CorrectSmoothRecommender(**QUICK))
    assert not (tmp_path / "out").exists()


def test_lists_for_use_hold_nothing_that_was_rated(world, tmp_path):
    "Held-out movies are known to the lists, to the saved model and to the page, and to nothing that learns."
    write_tables(world, tmp_path / "world")
    told = run(tmp_path / "world", tmp_path / "out", recommender=CorrectSmoothRecommender(**QUICK))
    known = world.ratings[["user_id", "item_id"]]
    listed = pd.read_csv(tmp_path / "out" / "recommendations.csv")
    assert not len(listed.merge(known)) and len(listed) == 10 * told["data"]["users"]
    model = CorrectSmoothRecommender.load(tmp_path / "out" / "model").set_params(progress=False)
    assert not len(model.recommend(n=30).merge(known))
    blind = replace(model.data_, seen=None)
    again = CorrectSmoothRecommender(**QUICK).fit(blind)
    users, items = model.users_.repeat(3), np.tile(model.items_[:3], len(model.users_))
    assert_array_equal(again.predict(users, items)["refined"], model.predict(users, items)["refined"])


def test_what_may_be_said_of_liking():
    "A number or `mean`; anything else is named."
    table = np.array([1, 1]), np.float32([1, 4]), 2
    assert user_thresholds(*table, 4)[1] == 4 and user_thresholds(*table)[1] == 2.5
    for wrong in ("median", None, True, float("nan"), [4]):
        with pytest.raises(InputError, match="liked"):
            user_thresholds(*table, wrong)
