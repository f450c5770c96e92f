"""Several ranks do what one process does: the same gradients, graphs, results; checkpoints outlive them."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import rank_jobs as jobs
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounding import rounding
from torch.nn.functional import binary_cross_entropy_with_logits

from correct_smooth import ranks
from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.dataset import holdout, split, targets
from correct_smooth.evaluate import evaluation, user_table
from correct_smooth.files import MARKER, check_target
from correct_smooth.lists import list_result
from correct_smooth.model import ItemUserModel
from correct_smooth.partition import partition, read_own
from correct_smooth.ranks import holder, user_hash
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import USER_HASH, load_data, write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import USER_TABLES, Batch, batch_logits, make_optimizer
from correct_smooth.tuning import best


@pytest.fixture(scope="module")
def server():
    context = jobs.server()
    yield context
    jobs.forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A folder with a small made-up world: as it is, partitioned, and with text for user ids."
    folder = tmp_path_factory.mktemp("ranks")
    world = synthetic_data(60, 80, 1500)
    write_tables(world, folder / "plain")
    names = ("é" + world.ratings["user_id"].astype(str)).astype(object)
    write_tables(movie_data(world.movies, world.ratings.assign(user_id=names)), folder / "words")
    for name in ("plain", "words"):
        partition(folder / name, folder / f"{name}-dealt")
    return folder


def start(server, folder, n, job, *args):
    return jobs.well(jobs.on_ranks(server, folder, n, job, *args))


# --- what ranks say to each other


@pytest.mark.parametrize("n", [2, 3])
def test_everything_that_ranks_can_say(server, tmp_path, n):
    assert [int(o["done"]) for o in start(server, tmp_path / "talk", n, jobs.talk)] == [n] * n


# --- gradients


def one_process(job, *args):
    "The same job where there are no ranks."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return job(*args)
    finally:
        torch.set_num_threads(threads)


def by_user(found, name):
    "Rows of a user table of all ranks, in the order of users."
    users = np.concatenate([o["users"] for o in found])
    return np.concatenate([o[name] for o in found])[np.argsort(users)]


def near(one, other, terms):
    "Equal to the rounding of sums over so many ratings; one rating left out would move them by 1 / terms."
    assert one.shape == other.shape and np.isfinite(one).all()
    off, most = np.abs(one - other).max(), np.abs(other).max()
    assert most > 0 and off <= rounding(terms, most), (off, most)


@pytest.mark.parametrize("n", [2, 3])
def test_first_gradients_are_those_of_one_process(server, base, tmp_path, n):
    "All ratings in a step, no dropout: weights to the last bit, gradients to the rounding of sums."
    folder = base / "plain-dealt"
    found = start(server, tmp_path / "step", n, jobs.first_step, folder, jobs.WHOLE)
    alone = one_process(jobs.first_step, folder, jobs.WHOLE)
    assert_array_equal(np.sort(np.concatenate([o["users"] for o in found])), alone["users"])
    assert all(len(o["users"]) for o in found)
    names, n_ratings = [o for o in alone if ".grad." in o], alone["plain.rows"].shape[1]
    assert len(names) > 2 * 5
    for name in names:
        weight = name.replace(".grad.", ".weight.")
        if ".users." in name:
            assert_array_equal(by_user(found, weight), alone[weight])
            near(by_user(found, name), alone[name], n_ratings)
        else:
            for o in found:
                assert_array_equal(o[weight], alone[weight])
                assert_array_equal(o[name], found[0][name])
            near(found[0][name], alone[name], n_ratings)


def test_gradient_of_a_batch_is_that_of_the_ranks_ratings_together(server, base, tmp_path):
    "A batch of 300: the plain gradient of one process on those very ratings."
    folder = base / "plain-dealt"
    found = start(server, tmp_path / "step", 2, jobs.first_step, folder, jobs.PARTS)
    X, pairs, _, S = one_process(jobs.made, folder, False)
    at = pd.MultiIndex.from_arrays([pairs.user, pairs.item])
    for kind, config in jobs.MODELS.items():
        own = [o[f"{kind}.rows"] for o in found]
        rows = [
            (pairs.users.get_indexer(o["users"])[user], item)
            for o, (user, item) in zip(found, own, strict=True)
        ]
        rows = np.sort(np.concatenate([at.get_indexer(pd.MultiIndex.from_arrays(o)) for o in rows]))
        assert len(np.unique(rows)) == 300 and rows.min() >= 0 and all(len(o[0]) > 50 for o in own)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = ItemUserModel(X.shape[1], len(pairs.users), X.shape[0], config)
        optimizer = make_optimizer(model, jobs.PARTS, len(pairs))
        which, movies = pd.factorize(pairs.item[rows])
        logits = batch_logits(model, X, pairs, Batch(rows, movies, which, len(rows)), "cpu", S)
        aim = torch.from_numpy(targets(pairs, "margin")[rows])
        binary_cross_entropy_with_logits(logits, aim).backward()
        for group, weights in zip(("shared", "users"), optimizer.param_groups, strict=True):
            for n, o in enumerate(weights["params"]):
                name = f"{kind}.grad.{group}.{n}"
                near(by_user(found, name) if group == "users" else found[0][name], o.grad.numpy(), 300)


# --- training


def is_shared(name):
    return name.startswith("model.") and name.removeprefix("model.") not in USER_TABLES


def test_training_ends_alike_on_all_ranks(server, base, tmp_path):
    "Shared weights to the last bit, the same losses, the same best epoch; dropout is each rank's own."
    found = start(server, tmp_path / "train", 3, jobs.train_on, base / "plain-dealt")
    shared = [o for o in found[0] if is_shared(o)]
    assert len(shared) > 5
    for o in found[1:]:
        assert all(o[name].tobytes() == found[0][name].tobytes() for name in shared)
        assert o["history"].tobytes() == found[0]["history"].tobytes() and o["epochs"] == found[0]["epochs"]
        assert (o["first.random.cpu"] != found[0]["first.random.cpu"]).any()
        assert (o["first.rng"].tobytes()) != found[0]["first.rng"].tobytes()
    assert np.isfinite(found[0]["history"]).all() and len(found[0]["history"]) == jobs.PARTS.epochs


def test_whole_steps_lose_what_one_process_loses(server, base, tmp_path):
    "Six epochs of one step each, without dropout: losses of training and validation stay together."
    args = (base / "plain-dealt", None, None, None, jobs.CALM, jobs.WHOLE)
    found = start(server, tmp_path / "train", 2, jobs.train_on, *args)
    alone = one_process(jobs.train_on, *args)
    n_weights = sum(o.size for k, o in alone.items() if k.startswith("model."))
    noise = rounding(1500, 1e-3)  # of gradients, which are of that size
    # Adam moves a weight by at most noise / gradient of its rate, and the loss by gradient times that
    apart = n_weights * jobs.WHOLE.learning_rate * noise * jobs.WHOLE.epochs
    assert_allclose(found[0]["history"], alone["history"], rtol=0, atol=apart)
    assert alone["history"][-1, 0] < alone["history"][0, 0]


def test_movie_graphs_are_those_of_one_process(server, base, tmp_path):
    "To the last bit, those by co-rating included."
    found = start(server, tmp_path / "graph", 3, jobs.graphs, base / "plain-dealt")
    alone = jobs.graphs(base / "plain-dealt")
    assert len(alone) == 3 * len(jobs.GRAPHS)
    for o in found:
        assert o.keys() == alone.keys()
        assert all(o[k].tobytes() == alone[k].tobytes() for k in alone)


# --- held-out ratings


@pytest.mark.parametrize("source", ["plain", "plain-dealt", "words", "words-dealt"])
@pytest.mark.parametrize("labels", ["train", "all"])
def test_held_out_are_those_of_one_process(server, base, tmp_path, source, labels):
    "With the same standards, whether each rank reads its own ratings or all of them."
    found = start(
        server, tmp_path / "split", 3 if labels == "all" else 2, jobs.parts_of, base / source, labels
    )
    data = load_data(base / source)
    parts = split(data, holdout(data.ratings, 0.2, 5), labels)
    lengths = [len(o["train.rating"]) + len(o["test.rating"]) for o in found]
    assert [int(o["before"]) for o in found] == (
        [0, *np.cumsum(lengths)[:-1]] if "dealt" in source else [0] * len(found)
    )
    for name, part in zip(("train", "test"), parts, strict=True):
        columns = ["user_id", "item_id", "rating"]
        theirs = pd.concat([pd.DataFrame({c: o[f"{name}.{c}"] for c in columns}) for o in found])
        theirs = theirs.astype({"user_id": data.ratings["user_id"].dtype})
        for one, other in zip(
            *(o.sort_values(columns[:2])[columns].to_numpy().T for o in (theirs, part.ratings)), strict=True
        ):
            assert_array_equal(one, other)
        lines = np.sort(np.concatenate([o[f"{name}.line"] for o in found]))
        assert_array_equal(lines, np.sort(part.thresholds.to_numpy()))


# --- whole runs


@pytest.fixture(scope="module", params=["plain-dealt", "words-dealt", "words"])
def done(request, server, base, tmp_path_factory):
    "A run of two ranks: where its data are, where its results, what its trainings had; text is tuned, too."
    folder, name = tmp_path_factory.mktemp("run"), request.param
    tune = name == "words-dealt"
    found = start(server, folder / "ranks", 2, jobs.run_on, base / name, folder / "out", tune)
    return base / name, folder / "out", found, tune


def ordered(table, *by):
    return table.sort_values(list(by), kind="stable", ignore_index=True)


def test_a_run_leaves_results_and_nothing_else(done):
    _, out, _, tune = done
    assert sorted(o.name for o in out.parent.iterdir()) == ["out", "ranks"]
    wanted = {
        MARKER,
        "summary.json",
        "report.html",
        "per_user_metrics.csv",
        "predictions.parquet",
        "figures",
        "model",
    }
    wanted |= {"recommendations.csv", "per_user_metrics.parquet", "recommendations.parquet"}
    assert {o.name for o in out.iterdir()} == wanted | ({"tuning.csv", "tuning_lists.csv"} if tune else set())
    assert check_target(out, "results") == out.resolve()  # the next run may replace it, model and parts
    for name in ("predictions", "per_user_metrics", "recommendations"):
        parts = sorted((out / f"{name}.parquet").iterdir())
        assert [o.name for o in parts] == ["part-00000.parquet", "part-00001.parquet"]
        for at, part in enumerate(parts):
            users = pd.read_parquet(part)["user_id"]
            assert len(users) and (holder(user_hash(users), 2) == at).all()


def test_trainings_had_the_ratings_they_have_in_one_process(done):
    "The watched one, and two on all that is not held out; of partitioned data the same to stop by, too."
    source, _, found, tune = done
    first = 3 if tune else 0  # trainings for tuning come before
    data = load_data(source)
    known, _ = split(data, holdout(data.ratings, 0.2, 5))
    inner, valid = split(known, holdout(known.ratings, 0.1, 5))

    def pairs(name):
        rows = [(o[f"{name}.user"], o[f"{name}.item"]) for o in found]
        return sorted(pair for o in rows for pair in zip(*(c.tolist() for c in o), strict=True))

    def of(part):
        return sorted(zip(part.ratings["user_id"].tolist(), part.ratings["item_id"].tolist(), strict=True))

    assert pairs(f"pairs.{first + 1}") == pairs(f"pairs.{first + 2}") == of(known)
    assert f"pairs.{first + 3}.user" not in found[0]
    assert sorted(pairs(f"pairs.{first}") + pairs(f"valid.{first}")) == of(known)
    if source.name.endswith("dealt"):
        assert pairs(f"pairs.{first}") == of(inner) and pairs(f"valid.{first}") == of(valid)


def test_what_two_ranks_tell_is_what_their_model_tells_in_one_process(done):
    "To rounding: matrix products of other users beside them add up in another order."
    source, out, _, _ = done
    model = CorrectSmoothRecommender.load(out / "model")
    told = pd.read_parquet(out / "predictions.parquet")
    data = load_data(source)
    known, held = split(data, holdout(data.ratings, 0.2, 5))
    columns = ["user_id", "item_id", "rating"]
    pd.testing.assert_frame_equal(
        ordered(told, "user_id", "item_id")[columns], ordered(held.ratings, "user_id", "item_id")[columns]
    )
    H, U = (np.abs(o).max(axis=0) for o in (model.scorer_.model.H, model.scorer_.model.U))
    apart = rounding(len(H) + 2, H @ U + 2)  # of logits: products, and two biases below 1; scores move less
    apart *= 1 + model.refinement.alpha  # a correction is at most alpha times a mean of such errors
    again = model.predict(told["user_id"], told["item_id"])
    for name in ("base", "refined"):
        assert_allclose(told[name], again[name], rtol=0, atol=apart)
    theirs = pd.read_parquet(out / "recommendations.parquet")
    ours = model.recommend(n=10)
    theirs, ours = (ordered(o, "user_id", "rank") for o in (theirs, ours))
    again = model.predict(theirs["user_id"], theirs["item_id"])
    for name in ("base", "refined"):
        assert_allclose(theirs[name], again[name], rtol=0, atol=apart)
    assert_array_equal(theirs[["user_id", "rank"]], ours[["user_id", "rank"]])
    assert_allclose(theirs["refined"], ours["refined"], rtol=0, atol=apart)  # so nothing better was left out
    assert not theirs.duplicated(["user_id", "item_id"]).any()
    listed = ordered(pd.read_csv(out / "recommendations.csv", keep_default_na=False), "user_id", "rank")
    for name in ("user_id", "rank", "item_id", "title"):
        assert listed[name].tolist() == theirs[name].tolist()
    assert_allclose(listed["refined"], theirs["refined"], rtol=5e-6)  # six digits
    seen = set(zip(known.ratings["user_id"], known.ratings["item_id"], strict=True))
    assert not seen & set(zip(theirs["user_id"], theirs["item_id"], strict=True))
    assert model.users_.tolist() == sorted(data.ratings["user_id"].unique()) and model.state_.trained == 60


def test_summary_is_that_of_the_written_predictions(done):
    source, out, _, _ = done
    told = json.loads((out / "summary.json").read_text())
    model = CorrectSmoothRecommender.load(out / "model")
    data = load_data(source)
    known, held = split(data, holdout(data.ratings, 0.2, 5))
    predictions = ordered(pd.read_parquet(out / "predictions.parquet"), "user_id")
    counted = user_table(predictions, known.ratings.groupby("user_id").size())
    judged = evaluation(predictions, counted, 5)
    for name in ("base", "refined", "delta"):
        assert told[name].keys() == set(judged.result.index)
        for metric, value in told[name].items():
            assert value == pytest.approx(judged.result.loc[metric, name], abs=1e-9, rel=0)
    for metric, interval in told["ci95"].items():
        assert interval == pytest.approx(judged.result.loc[metric, ["low", "high"]].tolist(), abs=1e-9, rel=0)
    assert told["users_evaluated"] == len(judged.users) > 20 and told["users_skipped"] == judged.skipped
    history = judged.by_history().to_dict("records")
    assert len(told["by_history"]) == len(history) > 1
    for one, other in zip(told["by_history"], history, strict=True):
        assert one == pytest.approx(other, abs=1e-9, rel=0)
    assert told["data"]["users"] == 60 and told["data"]["ratings"] == 1500 and told["data"]["items"] == 80
    alone = model.set_params(seed=5).evaluate(held)
    assert told["lists"] == list_result(alone, told["config"]["seed"])
    assert_array_equal(alone.users["user_id"], judged.users["user_id"])


def test_metrics_of_users_are_those_of_the_parts(done):
    _, out, _, _ = done
    table = pd.read_csv(out / "per_user_metrics.csv")
    parts = ordered(pd.read_parquet(out / "per_user_metrics.parquet"), "user_id")
    assert table["user_id"].tolist() == parts["user_id"].tolist() and list(table) == list(parts)
    for name in table.columns[1:]:
        assert_array_equal(table[name], parts[name])


def test_ranks_agree_on_what_tuning_chose(done):
    "The choice that the table gives, in the settings of each part."
    _, out, _, tune = done
    abouts = [json.loads((out / "model" / f"part-0000{o}" / "model.json").read_text()) for o in (0, 1)]
    stages = ("graph", "model", "training", "refinement")
    one, other = ({o: about["settings"][o] for o in stages} for about in abouts)
    assert one == other
    config = json.loads((out / "summary.json").read_text())["config"]
    kind = one["refinement"].pop("kind")
    assert {o: config[o] for o in stages} == one
    assert kind == type(CorrectSmoothRecommender.load(out / "model").refinement).__name__
    if tune:
        table = pd.read_csv(out / "tuning.csv")
        graph, refinement = best(table)
        model = CorrectSmoothRecommender.load(out / "model")
        assert table["graph"].nunique() == 3 and str(model.graph) == graph
        assert model.refinement == refinement


# --- partitioned data


SOURCES = st.tuples(st.integers(5, 40), st.booleans(), st.integers(0, 99), st.sampled_from([7, 100, 10**6]))
FEW = tried(6, 60)


@FEW
@given(SOURCES, st.integers(1, 7))
def test_each_rating_is_some_ranks_exactly_once(tmp_path_factory, source, n):
    "In the order of the file, whatever ids are, however small the buckets; the later of two counts."
    n_users, text, seed, bucket = source
    folder = tmp_path_factory.mktemp("deal")
    world = synthetic_data(n_users, 30, 8 * n_users, seed=seed)
    given = pd.concat([world.ratings, world.ratings[::7].assign(rating=5.0)], ignore_index=True)
    if text:
        given["user_id"] = "ñ" + given["user_id"].astype(str)
    wanted = movie_data(world.movies, given).ratings
    (folder / "in").mkdir()
    world.movies.reset_index(names="item_id").to_parquet(folder / "in" / "movies.parquet")
    given.to_parquet(folder / "in" / "ratings.parquet", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("correct_smooth.partition.BUCKET", bucket)
        patch.setattr("correct_smooth.partition.GROUP", 50)
        told = partition(folder / "in", folder / "out")
    assert told == {
        "users": n_users, "items": 30, "ratings": len(wanted),
        "dropped": movie_data(world.movies, given).dropped,
    }  # fmt: skip
    whole = load_data(folder / "out")
    assert whole.dropped == {} and list(whole.ratings) == list(wanted)
    pd.testing.assert_frame_equal(
        ordered(whole.ratings, "user_id", "item_id"), ordered(wanted, "user_id", "item_id")
    )
    hashes = user_hash(whole.ratings["user_id"])
    assert (np.diff(hashes) >= 0).all() and (
        whole.ratings["user_id"].ne(whole.ratings["user_id"].shift()).sum()
    ) == n_users
    at = 0
    for rank in range(n):
        mine = whole.ratings[holder(hashes, n) == rank].reset_index(drop=True)
        if not len(mine):
            with pytest.raises(InputError, match=f"rank {rank} of {n} has no ratings.*use fewer ranks"):
                read_own(folder / "out", rank, n)
            continue
        own, before = read_own(folder / "out", rank, n)
        assert before == at and own.dropped == {}
        pd.testing.assert_frame_equal(own.ratings, mine)
        pd.testing.assert_frame_equal(own.movies, whole.movies)
        at += len(mine)
    assert at == len(wanted)


@pytest.mark.parametrize("movies", ["i8", "str"])
@pytest.mark.parametrize("when", ["plain", "text", "unread", "gaps"])
def test_what_no_block_can_decide_is_decided_by_all(tmp_path, monkeypatch, movies, when):
    "One movie whose id is no number, far behind; times as text, or one that nobody can read."
    world = synthetic_data(20, 30, 160)
    stars = world.ratings.astype({"item_id": str})
    stars.loc[len(stars)] = [19, "tt1", 3.0, 0]
    times = {
        "plain": stars["timestamp"],
        "text": pd.to_datetime(stars["timestamp"], unit="s").astype(str),
        "unread": stars["timestamp"].astype(str).where(stars.index != 150, "soon"),
        "gaps": stars["timestamp"].astype("Int64").where(stars.index != 150),
    }
    (tmp_path / "in").mkdir()
    table = world.movies.reset_index().astype({"item_id": movies})
    table.to_parquet(tmp_path / "in" / "movies.parquet", index=False)
    stars = stars.assign(timestamp=times[when])
    stars.to_parquet(tmp_path / "in" / "ratings.parquet", index=False, row_group_size=20)
    monkeypatch.setattr("correct_smooth.partition.BUCKET", 40)
    told, wanted = partition(tmp_path / "in", tmp_path / "out"), load_data(tmp_path / "in")
    assert told["dropped"] == wanted.dropped and told["ratings"] == 160
    assert wanted.movies.index[0] == "0" and ("timestamp" in wanted.ratings) == (when in ("plain", "text"))
    found = load_data(tmp_path / "out").ratings
    pd.testing.assert_frame_equal(
        ordered(found, "user_id", "item_id"), ordered(wanted.ratings, "user_id", "item_id")
    )


def test_only_own_row_groups_are_read(tmp_path, monkeypatch):
    "Of 60 row groups a rank of six reads its ten, and one at most that it shares."
    write_tables(synthetic_data(200, 100, 6000), tmp_path / "in")
    monkeypatch.setattr("correct_smooth.partition.GROUP", 100)
    partition(tmp_path / "in", tmp_path / "out")
    (file,) = ds.dataset(tmp_path / "out" / "ratings.parquet").get_fragments()
    assert file.num_row_groups == 60
    for rank in range(6):
        low, high = (-(-o * 2**32 // 6) for o in (rank, rank + 1))
        met = file.split_by_row_group((ds.field(USER_HASH) >= low) & (ds.field(USER_HASH) < high))
        own, _ = read_own(tmp_path / "out", rank, 6)
        assert len(own.ratings) <= 100 * len(met) < len(own.ratings) + 200 < 2000


def test_a_rank_without_ratings_says_so_on_all(server, tmp_path):
    "Two users on three ranks."
    world = synthetic_data(5, 30, 40)
    few = movie_data(world.movies, world.ratings[world.ratings["user_id"] < 2])
    write_tables(few, tmp_path / "in")
    partition(tmp_path / "in", tmp_path / "out")
    found = jobs.on_ranks(server, tmp_path / "ranks", 3, jobs.parts_of, tmp_path / "out", "train")
    assert {"InputError"} <= {o.get("kind") for o in found}
    assert any("use fewer ranks" in o.get("error", "") for o in found)


# --- other data on one of the ranks


@pytest.fixture(scope="module")
def others(base, tmp_path_factory):
    "The same world with something changed, as it is and dealt out."
    folder, world = tmp_path_factory.mktemp("others"), synthetic_data(60, 80, 1500)
    r, movies = world.ratings, world.movies
    changed = {
        "title": replace(world, movies=movies.assign(title=["Another", *movies["title"][1:]])),
        "rating": replace(world, ratings=r.assign(rating=[5.5 - r["rating"][0], *r["rating"][1:]])),
        "order": replace(world, ratings=r[::-1].reset_index(drop=True)),
        "fewer": replace(world, ratings=r[:-1]),
    }
    for name, data in changed.items():
        write_tables(data, folder / name)
        partition(folder / name, folder / f"{name}-dealt")
    return folder


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("title", "movies"),
        ("rating", "ratings"),
        ("order", "ratings"),
        ("title-dealt", "movies"),
        ("fewer-dealt", "ratings"),
        ("plain-dealt", "ratings"),
    ],
)
def test_one_rank_with_other_data_is_refused_by_all(server, base, others, tmp_path, other, what):
    "Before anything is made of them."
    own = base / ("plain-dealt" if other not in ("title", "rating", "order", "plain-dealt") else "plain")
    theirs = base / other if other.startswith("plain") else others / other
    found = jobs.on_ranks(server, tmp_path / "ranks", 2, jobs.each_its_own, [own, theirs])
    told = f"ranks 0 and 1 differ in their {what}; give all ranks the same files and settings"
    assert [(o.get("kind"), o.get("error")) for o in found] == [("InputError", told)] * 2


def test_one_rank_with_another_graph_is_refused_by_all(server, base, tmp_path):
    folders = [base / "plain-dealt"] * 3
    found = jobs.on_ranks(server, tmp_path / "ranks", 3, jobs.each_its_own, folders, [2, 2, 3])
    told = "ranks 0 and 2 differ in their graph; give all ranks the same files and settings"
    assert [(o.get("kind"), o.get("error")) for o in found] == [("InputError", told)] * 3


# --- checkpoints


def files_of(folder):
    return sorted(o.name.partition("-")[2] or o.suffix for o in folder.iterdir())


def kept_by(n, epoch):
    return (
        sorted([".json", *(f"{epoch}-{o}-of-{n}.safetensors" for o in range(n))])
        if n > 1
        else [".safetensors"]
    )


@pytest.fixture(scope="module")
def training_on(server, base):
    "Trains on n ranks; for one, in this process."

    def run_it(folder, n, *args):
        if n == 1:
            return [one_process(jobs.train_on, base / "plain-dealt", *args)]
        return start(server, folder, n, jobs.train_on, base / "plain-dealt", *args)

    return run_it


@pytest.fixture(scope="module")
def broken_off(training_on, tmp_path_factory):
    "By number of ranks, what a training was when it was broken off after three epochs, and its checkpoint."
    folder = tmp_path_factory.mktemp("broken")
    found = {
        n: (training_on(folder / str(n), n, folder / f"kept-{n}", 3), folder / f"kept-{n}") for n in (1, 2)
    }
    for n, (_, kept) in found.items():
        assert files_of(kept) == kept_by(n, 3)
    return found


@pytest.fixture
def kept(broken_off, tmp_path):
    "A copy of such a checkpoint."

    def copied(n):
        folder = tmp_path / f"copy-{n}"
        folder.mkdir()
        for file in broken_off[n][1].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return broken_off[n][0], folder

    return copied


def all_of(found, prefix):
    "A state of all ranks: users' rows in the order of their ids, and the rest, which is the same on each."
    names = [
        o for o in found[0] if o.startswith(f"{prefix}.") and ".random." not in o and not o.endswith(".rng")
    ]
    last = max(int(o.split(".")[2]) for o in names if ".adam." in o)
    whole = {}
    for name in names:
        inner = name.removeprefix(f"{prefix}.").partition(".")[2]
        moment = ".adam." in name and int(inner.split(".")[0]) > last - 2 and not inner.endswith(".step")
        if inner in USER_TABLES or moment:
            whole[name.removeprefix(prefix)] = by_user(found, name)
            assert len(whole[name.removeprefix(prefix)]) == 60
        else:
            assert all(o[name].tobytes() == found[0][name].tobytes() for o in found)
            whole[name.removeprefix(prefix)] = found[0][name]
    return whole


def test_resumed_by_as_many_ranks_ends_as_if_nothing_had_been(training_on, kept, tmp_path):
    "To the last bit, random numbers included; one state is kept."
    quiet = training_on(tmp_path / "quiet", 2, tmp_path / "kept")
    _, folder = kept(2)
    resumed = training_on(tmp_path / "again", 2, folder)
    assert files_of(folder) == files_of(tmp_path / "kept") == kept_by(2, 6)
    for one, other in zip(resumed, quiet, strict=True):
        ends = [o for o in one if not o.startswith("first.")]
        assert len(ends) > 10
        assert all(one[name].tobytes() == other[name].tobytes() for name in ends)
        assert len(one["first.history"]) == 3 and len(other["first.history"]) == 0


@pytest.mark.parametrize(("before", "after"), [(2, 3), (2, 1), (1, 2)])
def test_resumed_by_other_ranks_goes_on_from_there(training_on, kept, tmp_path, before, after):
    "With every weight and moment of every user; other random numbers from there on."
    old, folder = kept(before)
    new = training_on(tmp_path / "again", after, folder)
    one, other = all_of(old, "last"), all_of(new, "first")
    assert one.keys() == other.keys() and {o.split(".")[1] for o in one} == {
        "model",
        "best",
        "adam",
        "history",
    }
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    history = new[0]["history"]
    assert len(history) == 6 and len(old[0]["last.history"]) == 3
    assert_array_equal(history[:3], old[0]["last.history"])
    assert np.isfinite(history).all() and history[-1, 0] < history[0, 0]
    assert files_of(folder) == kept_by(after, 6)


def spoilt(folder, how):
    (file,) = folder.glob("*-1-of-2.safetensors")
    if how == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(bytes(content))
    return file.name


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_file_of_the_list_is_not_as_it_should_be(server, base, kept, tmp_path, how, n):
    "Whoever reads it says so, with the way out; nobody trains."
    _, folder = kept(2)
    name = spoilt(folder, how)
    before = files_of(folder)
    if n == 1:
        with pytest.raises(InputError, match=f"{name}.*. To train from the beginning, delete that file"):
            one_process(jobs.train_on, base / "plain-dealt", folder)
    else:
        found = jobs.on_ranks(server, tmp_path / "ranks", n, jobs.train_on, base / "plain-dealt", folder)
        assert found[0].get("kind") in ("InputError", "RankLost")
        told = [o for o in found if o.get("kind") == "InputError"]
        assert len(told) == (1 if n == 2 else 3)
        for o in told:
            assert name in o["error"] and o["error"].endswith("To train from the beginning, delete that file")
    assert files_of(folder) == before


def test_a_state_that_one_rank_did_not_write_does_not_count(server, base, kept, training_on, tmp_path):
    "Rank 1 ends where it should write epoch 5: the fourth stays in use, and the half one goes later."
    _, folder = kept(2)
    found = jobs.on_ranks(server, tmp_path / "half", 2, jobs.train_on, base / "plain-dealt", folder, None, 5)
    assert [o.get("kind") for o in found] == ["RankLost", "Enough"] and found[0]["error"] == ranks.LOST
    assert files_of(folder) == sorted([*kept_by(2, 4), "5-0-of-2.safetensors"])
    resumed = training_on(tmp_path / "again", 2, folder)
    quiet = training_on(tmp_path / "quiet", 2)
    assert [len(o["first.history"]) for o in resumed] == [4, 4]
    for one, other in zip(resumed, quiet, strict=True):
        ends = [o for o in other if not o.startswith("first.")]
        assert all(one[name].tobytes() == other[name].tobytes() for name in ends)
    assert files_of(folder) == kept_by(2, 6)


# --- torchrun

TWO = ("--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def undisturbed(server, base, tmp_path_factory):
    "Figures of a run that nothing happens to."
    folder = tmp_path_factory.mktemp("undisturbed")
    start(server, folder / "ranks", 2, jobs.undisturbed, base / "plain-dealt", folder / "out")
    return figures_of(folder / "out")


def test_a_rank_may_have_nobody_to_judge(server, tmp_path):
    "Users of one rating each have none held out; the others' figures are there all the same."
    world = synthetic_data(60, 80, 1500)
    r = world.ratings
    lonely = r[holder(user_hash(r["user_id"]), 2) == 1].drop_duplicates("user_id")
    write_tables(
        movie_data(world.movies, pd.concat([r[holder(user_hash(r["user_id"]), 2) == 0], lonely])),
        tmp_path / "w",
    )
    partition(tmp_path / "w", tmp_path / "dealt", progress=False)
    start(server, tmp_path / "ranks", 2, jobs.undisturbed, tmp_path / "dealt", tmp_path / "out")
    told = figures_of(tmp_path / "out")
    others = r["user_id"].nunique() - len(lonely)
    assert told["users_evaluated"] + told["users_skipped"] == others > 0 < len(lonely)
    tops = pd.read_csv(tmp_path / "out" / "recommendations.csv")
    assert tops["user_id"].nunique() == r["user_id"].nunique()


def figures_of(out):
    told = json.loads((out / "summary.json").read_text())
    return {k: o for k, o in told.items() if k not in ("seconds", "versions")}


def beside(folder):
    "What lies in the folder of a command, but for what was there or its log."
    return sorted(o.name for o in folder.iterdir() if o.name not in ("job.py", "log"))


def epochs_of(folder):
    "Epochs that rank 0 began, life by life."
    lines = [o.split() for o in (folder / "log").read_text().splitlines()]
    return {
        life: [int(e) for v, r, e in lines if (v, r) == (life, "0")] for life in sorted({o[0] for o in lines})
    }


def test_without_a_rank_the_job_ends_and_can_be_started_again(base, tmp_path, undisturbed):
    """One rank is killed: one line from the other, no results. The next job goes on from the checkpoint; when
    it loses a rank, torchrun starts all of them again, and the figures are those of an undisturbed run.
    """
    folder, data = tmp_path / "job", base / "plain-dealt"
    job = jobs.by_torchrun(folder, data, *TWO, DIE="0 1 3")
    _, said = jobs.ended(job)
    assert job.returncode not in (0, None)
    assert (
        said.count(f"cs_run: {ranks.LOST}\n") == 1
        and 'Traceback (most recent call last):\n  File "job.py' not in said
    )
    assert beside(folder) == ["out.checkpoint"]
    reached = epochs_of(folder)["0"]
    assert reached == list(range(len(reached))) and 3 <= len(reached) <= 4
    (folder / "log").unlink()
    job = jobs.by_torchrun(folder, data, *TWO, "--max-restarts", "1", DIE="0 1 5")
    said = jobs.ended(job)
    assert job.returncode == 0, said[1]
    first, second = epochs_of(folder).values()
    assert 3 <= first[0] <= reached[-1] + 1 and first[: 5 - first[0]] == list(range(first[0], 5))
    assert second[0] == 5
    assert beside(folder) == ["out"] and figures_of(folder / "out") == undisturbed


def test_two_machines(base, tmp_path):
    "As two agents of torchrun on addresses of this machine, a rank each: one summary, two parts."
    folder, data, port = tmp_path / "job", base / "plain-dealt", str(jobs.free_port())
    flags = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.2", "--master-port", port)
    agents = [
        jobs.by_torchrun(folder, data, *flags, "--node-rank", str(o), "--local-addr", f"127.0.0.{o + 2}")
        for o in (0, 1)
    ]
    said = [jobs.ended(o) for o in agents]
    assert [o.returncode for o in agents] == [0, 0], said
    assert beside(folder) == ["out"]
    assert "1,500 ratings" in said[0][0] and said[1][0] == ""
    for name in ("predictions", "recommendations", "per_user_metrics"):
        assert len(list((folder / "out" / f"{name}.parquet").iterdir())) == 2
    model = CorrectSmoothRecommender.load(folder / "out" / "model")
    assert len(model.users_) == 60 == figures_of(folder / "out")["data"]["users"]


def test_a_wrong_setting_is_said_once(base, tmp_path):
    job = jobs.by_torchrun(tmp_path / "job", base / "plain-dealt", *TWO, settings="nonsense=1")
    _, said = jobs.ended(job)
    assert job.returncode == 1
    assert said.count("there is no setting 'nonsense'") == 1 and "cs_run: there is no setting" in said
    assert "rank 1: " not in said and beside(tmp_path / "job") == []


def test_a_mistake_of_one_rank_is_said_by_that_rank(base, tmp_path):
    "And nobody else says anything."
    job = jobs.by_torchrun(tmp_path / "job", base / "plain-dealt", *TWO, WRONG="1")
    _, said = jobs.ended(job)
    assert job.returncode == 1
    assert said.count("there is no setting 'nonsense'") == 1 and "cs_run: rank 1: there is no" in said
    assert said.count("cs_run: ") == 1 and beside(tmp_path / "job") == []
