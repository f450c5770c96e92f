"""One person at a time: answers as for all at once, in threads and other processes; and those who leave."""

import itertools
import os
import pickle
import subprocess
import sys
import threading
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from rounding import rounding

from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth
from correct_smooth.diffusion import Diffusion
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ModelConfig
from correct_smooth.ready import forget_saved
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

QUICK = dict(graph=GraphConfig(k=5), training=TrainConfig(epochs=3), ensemble=2, progress=False)
WATCH = ("both", "watch", 0.1, 0.5, 0.7, 0.99)
REFINEMENTS = (
    CorrectAndSmooth(), CorrectAndSmooth(T=1), CorrectAndSmooth("own", T=2), Diffusion(),
    CorrectAndSmooth(alpha=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return synthetic_data(60, 80, 1_500, seed=0)


@pytest.fixture(scope="module")
def model(world):
    return CorrectSmoothRecommender(**QUICK).fit(world)


@pytest.fixture(scope="module")
def headed(world):
    "A model whose scores are no dot product alone."
    return CorrectSmoothRecommender(**QUICK, model=ModelConfig(head="mlp", emb_dim=8)).fit(world)


def bound(model, *tables):
    "What rounding may change in a score: sums over vectors, labels and weights between items."
    terms = model.scorer_.model.H.shape[1] + len(model.items_) * 4
    scores = [table[["base", "refined", "watch", "score"]].abs().to_numpy() for table in tables]
    return rounding(terms, np.nanmax([np.nanmax(s, initial=1) for s in scores]), np.float32)


def assert_alike(model, ours, theirs):
    "The same lists, where scores are not closer together than rounding can tell."
    allowed = bound(model, ours, theirs)
    assert ours["rank"].tolist() == theirs["rank"].tolist()
    assert_allclose(ours["score"], theirs["score"], atol=allowed, rtol=0)
    apart = np.abs(np.diff(theirs["score"], append=-np.inf)) > 2 * allowed
    sure = apart & np.append(True, apart[:-1])  # neither like the one before nor like the one behind
    sure[-1:] = False  # nor like one that has just not come in
    assert ours["item_id"][sure].tolist() == theirs["item_id"][sure].tolist()
    same = (ours["item_id"] == theirs["item_id"]).to_numpy()
    for name in ("base", "refined", "watch"):
        assert_allclose(ours[name][same], theirs[name][same], atol=allowed, rtol=0)


by = st.sampled_from([*WATCH, "like", 0, 1])
ratings_of_one = st.dictionaries(st.integers(0, 79), st.sampled_from([0.5, 1, 2.5, 4, 4.5, 5]), max_size=25)


# --- one is as all


@tried(40, 2_000)
@given(st.integers(0, 60), by, st.sampled_from(REFINEMENTS), st.booleans(), st.integers(1, 90), st.data())
def test_one_user_gets_what_a_block_gives(model, user, by, refinement, exclude_seen, n, data):
    one = model.with_refinement(refinement)
    how = dict(n=n, by=by, exclude_seen=exclude_seen, min_ratings=data.draw(st.integers(0, 25)))
    how["block_items"] = data.draw(st.none() | st.lists(st.integers(0, 79), max_size=60))
    how["items"] = data.draw(st.none() | st.lists(st.integers(0, 79), min_size=1, max_size=60))
    how["novelty"] = data.draw(st.none() | st.floats(0, 1))
    ours = one.recommend([model.users_[user] if user < 60 else -1], **how)
    both = one.recommend([model.users_[user] if user < 60 else -1, model.users_[0]], **how)
    theirs = both[both["user_id"] == (model.users_[user] if user < 60 else -1)]
    if user == 0:
        theirs = theirs.iloc[: len(theirs) // 2]
    assert_alike(model, ours, theirs.reset_index(drop=True))


@pytest.mark.filterwarnings("ignore:user")
def test_one_user_of_a_model_with_a_head_gets_what_a_block_gives(headed):
    for user, how in itertools.product([0, 7, 59], ["both", "like", 0.8]):
        ids = headed.users_[[user, (user + 1) % 60]]
        ours, both = headed.recommend(ids[:1], by=how), headed.recommend(ids, by=how)
        assert_alike(headed, ours, both[both["user_id"] == ids[0]].reset_index(drop=True))
        why = headed.explain(ids[0], ours["item_id"][0])
        refined = why.loc[why["of"] == "refined", "contribution"].sum()
        assert_allclose(refined, ours["refined"][0], atol=1e-4)
    with pytest.raises(InputError, match="fold_in and recommend_for need head 'dot'"):
        headed.recommend_for({3: 5})


@tried(40, 2_000)
@given(ratings_of_one, by, st.sampled_from(REFINEMENTS[:3]), st.integers(1, 30))
def test_a_visitor_gets_what_a_newcomer_gets(model, ratings, by, refinement, n):
    "The oracle: fold_in on a copy, then recommend and explain."
    one = copy(model.with_refinement(refinement))
    before = one.ready_
    ours = one.recommend_for(ratings, n=n, by=by)
    assert one.ready_ is before
    if not ratings:
        theirs = one.recommend([-1], n=n, by=by) if ratings else None
        return
    table = pd.DataFrame({"user_id": 99, "item_id": [*ratings], "rating": [*ratings.values()]})
    whole = copy(one).fold_in(table)
    theirs = whole.recommend([99], n=n, by=by)
    assert_alike(model, ours, theirs)
    why, because = one.explain_for(ratings, 5), whole.explain(99, 5)
    for of in ("refined", "watch"):
        sums = [t.loc[t["of"] == of, "contribution"].sum() for t in (why, because)]
        assert_allclose(*sums, atol=bound(model, ours, theirs))
    assert set(zip(why["part"], why["item_id"], strict=True)) == set(
        zip(because["part"], because["item_id"], strict=True)
    )


@pytest.mark.filterwarnings("ignore:user")
def test_a_visitor_without_ratings_is_a_stranger(model):
    for how in ("both", "like", "watch", 0.7):
        assert_alike(model, model.recommend_for({}, by=how), model.recommend([-1], by=how))
    why, because = model.explain_for({}, 3), model.explain(-1, 3)
    assert why["part"].tolist() == because["part"].tolist()


def test_ratings_that_say_seen_only_leave_their_item_out(world):
    data = replace(world, no_opinion=-1.0)
    model = CorrectSmoothRecommender(**QUICK).fit(data)
    first = model.recommend_for({3: 5.0, 8: 1.0})
    gone = first["item_id"][0]
    second = model.recommend_for({3: 5.0, 8: 1.0, gone: -1.0})
    assert second["item_id"].tolist()[:9] == first["item_id"].tolist()[1:]
    table = pd.DataFrame({"user_id": 99, "item_id": [3, 8, gone], "rating": [5.0, 1.0, -1.0]})
    assert_alike(model, second, copy(model).fold_in(table).recommend([99]))


@pytest.mark.parametrize("liked", [None, 4.0])
def test_a_visitor_is_judged_as_a_newcomer_is(world, liked):
    model = CorrectSmoothRecommender(**QUICK, liked=liked).set_params(training__target="label").fit(world)
    ratings = {3: 3.5, 8: 3.5, 12: 4.0, 20: 2.0}
    table = pd.DataFrame({"user_id": 99, "item_id": [*ratings], "rating": [*ratings.values()]})
    theirs = copy(model).fold_in(table).recommend([99], by="like")
    assert_alike(model, model.recommend_for(ratings, by="like"), theirs)


# --- lists of some


def test_filters_by_user(model):
    some = model.users_[:3].tolist()
    top = model.recommend(some, n=80, items={some[0]: [1, 2, 3]}, block_items={some[1]: range(40)})
    lists = {user: set(rows["item_id"]) for user, rows in top.groupby("user_id")}
    rated = {user: set(model.data_.ratings.query("user_id == @user")["item_id"]) for user in some}
    assert lists[some[0]] == {1, 2, 3} - rated[some[0]]
    assert lists[some[1]] == set(range(40, 80)) - rated[some[1]]
    assert lists[some[2]] == set(range(80)) - rated[some[2]]
    for user in some:  # alone as well
        alone = model.recommend([user], n=80, items={some[0]: [1, 2, 3]}, block_items={some[1]: range(40)})
        assert set(alone["item_id"]) == lists[user]
    assert not len(model.recommend(some[:1], items={some[0]: []}))
    count = np.bincount(model.data_.item)
    least = int(np.median(count))
    popular = model.recommend(n=80, min_ratings=least)
    assert (count[model.items_.get_indexer(popular["item_id"])] >= least).all()
    assert not len(model.recommend(some, min_ratings=10_000))


def test_a_batch_is_written_with_the_same_arguments(model, tmp_path):
    how = dict(n=4, by=0.6, min_ratings=5, block_items={model.users_[3]: [1, 2]})
    model.write_recommendations(tmp_path / "tops.parquet", **how)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "tops.parquet"), model.recommend(**how), check_dtype=False
    )


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda m: m.recommend([1], by=2), "must be a number from 0 to 1"),
        (lambda m: m.recommend([1], by=True), "must be a number from 0 to 1"),
        (lambda m: m.recommend([1], by=None), "must be a number from 0 to 1"),
        (lambda m: m.recommend([1], items={"x": [1]}), "names user 'x', who is neither known nor asked for"),
        (lambda m: m.recommend([1], items={1: 5}), "items of user 1 must be a list of ids"),
        (lambda m: m.recommend_for({3: 5}, items={1: [5]}), "a visitor is one person"),
        (lambda m: m.recommend_for({3: True}), "the rating of item 3 must be a number"),
        (lambda m: m.recommend_for({3: 1e300}), "the rating of item 3 must be a number"),
        (lambda m: m.recommend_for(5), "are a dict {item_id: rating}"),
        (lambda m: m.recommend_for({3: 5}, n=0), "n must be a whole number from 1"),
        (lambda m: m.explain_for({3: 5}, "x"), "item 'x' is unknown"),
        (lambda m: m.similar_users("x"), "user 'x' is unknown"),
        (lambda m: m.similar_users(1, n=0), "n must be a whole number from 1"),
        (lambda m: m.forget("x"), r"for a single one write \['x'\]"),
        (lambda m: m.forget(["x"]), "user 'x' is unknown"),
    ],
)
def test_what_cannot_be_is_said(model, ask, message):
    before = model.ready_
    with pytest.raises(InputError, match=message):
        ask(model)
    assert model.ready_ is before


# --- who leaves


@tried(10, 300)
@given(st.sets(st.integers(0, 59), min_size=1, max_size=40))
def test_nobody_notices_that_others_are_gone(model, gone):
    left, others = copy(model), sorted(set(range(60)) - gone)
    left.forget(sorted(gone))
    pd.testing.assert_frame_equal(left.recommend(others), model.recommend(others))
    assert left.users_.tolist() == others
    with pytest.warns(UserWarning, match="is unknown"):
        left.recommend([min(gone)])
    again = copy(left).fold_in(model.data_.ratings.query("user_id in @gone"))
    assert set(again.users_) == set(range(60))


def test_nothing_of_them_is_in_any_file(tmp_path):
    "Neither in memory nor on disk: ids, ratings, thresholds, what was seen, vectors."
    world = synthetic_data(60, 80, 1_500, seed=0)
    rng = np.random.default_rng(0)  # ids that no compression takes apart
    letters = np.array([*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"])
    names = {user: "".join(rng.choice(letters, 24)) for user in range(61)}
    ratings = world.ratings.assign(user_id=world.ratings["user_id"].map(names))
    seen = pd.DataFrame({"user_id": [names[7], names[8]], "item_id": [1, 2], "rating": [-1.0, -1.0]})
    data = replace(world, ratings=ratings, seen=seen, no_opinion=-1.0)
    model = CorrectSmoothRecommender(**QUICK).fit(data)
    newcomer = pd.DataFrame({"user_id": names[60], "item_id": [3, 4, 5], "rating": [5.0, 1.0, 4.0]})
    model.fold_in(newcomer).save(tmp_path / "model")
    gone = [names[7], names[60]]
    rows = [model.models_[k].user.weight[model.users_.get_loc(u)] for k in (0, 1) for u in gone]
    vectors = [row.detach().numpy().tobytes() for row in rows]
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert all(vector in files["weights.safetensors"] for vector in vectors)  # it would be found
    assert gone[0].encode() in files["users.parquet"]

    forget_saved(tmp_path / "model", gone)
    model.forget(gone)
    held = pickle.dumps(model)
    for path in (tmp_path / "model").iterdir():
        text = path.read_bytes()
        assert not any(user.encode() in text for user in gone), path.name
        assert not any(vector in text for vector in vectors), path.name
    assert not any(user.encode() in held for user in gone)
    assert not any(vector in held for vector in vectors)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["model"]
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    pd.testing.assert_frame_equal(back.recommend(), model.recommend())
    pd.testing.assert_frame_equal(back.recommend_for({3: 5.0}), model.recommend_for({3: 5.0}))


def test_a_folder_of_which_somebody_is_unknown_stays_as_it_is(model, tmp_path):
    model.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(InputError, match="user 999 is unknown"):
        forget_saved(tmp_path / "model", [1, 999])
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


# --- in threads


def test_readers_beside_a_writer_see_the_old_or_the_new(model):
    "The writer takes two people in and forgets both; nobody must ever see one without the other."
    shared, wrong, stop = copy(model), [], threading.Event()
    two = pd.DataFrame(
        {"user_id": [900] * 3 + [901] * 3, "item_id": [1, 2, 3] * 2, "rating": [5.0, 1, 4] * 2}
    )
    here = copy(model).fold_in(two)
    asked = [900, 901, 0, 1]
    lists = [m.recommend(asked, n=5)["item_id"].tolist() for m in (quiet(model), quiet(here))]
    alone = [m.recommend([900], n=5)["item_id"].tolist() for m in (quiet(model), quiet(here))]
    visitor = model.recommend_for({3: 5.0, 8: 1.0})

    def read():
        while not stop.is_set():
            try:
                if shared.recommend(asked, n=5)["item_id"].tolist() not in lists:
                    wrong.append("a list is of neither")
                if shared.recommend([900], n=5)["item_id"].tolist() not in alone:
                    wrong.append("a single list is of neither")
                ready = shared.ready_
                n = len(ready.state.data.users)
                if {
                    ready.scorer.labels.shape[1],
                    len(ready.scorer.model.U),
                    ready.state.watch.M.shape[1],
                } != {n + 1}:
                    wrong.append("parts of different states")
                if not shared.recommend_for({3: 5.0, 8: 1.0}).equals(visitor):
                    wrong.append("a visitor was touched")
                shared.explain(0, 5)
                shared.predict([900, 0], [5, 6])
                shared.similar_users(0)
            except BaseException as error:  # noqa: BLE001
                wrong.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(15):
        shared.fold_in(two)
        shared.forget([900, 901])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong, wrong[:3]


class quiet:
    "A model that does not warn."

    def __init__(self, model):
        self.model = model

    def recommend(self, *args, **how):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.model.recommend(*args, **how)


# --- in other processes

ASK = """
import multiprocessing, sys, warnings
warnings.simplefilter("error")
from joblib import Parallel, delayed
from correct_smooth.recommender import CorrectSmoothRecommender

def ask(user):
    return told(model, user) + model.recommend_for({3: 5.0}, n=3)["item_id"].tolist()

def ask_all(_):
    return model.recommend(n=3)["item_id"].tolist()

def begin(folder):
    global model
    model = CorrectSmoothRecommender.load(folder).set_params(progress=False)

def told(given, user):
    return given.recommend([user], n=3)["item_id"].tolist()

if __name__ == "__main__":
    folder, users = sys.argv[1], [0, 5, 9]
    begin(folder)
    expected, everybody = [ask(user) for user in users], ask_all(0)
    for how, start in (("fork", (None, ())), ("spawn", (begin, [folder]))):  # fork: of a model that is loaded
        pool = multiprocessing.get_context(how).Pool(2, *start)
        assert pool.map(ask, users) == expected, how
        assert pool.map(ask_all, users[:2]) == [everybody] * 2, how
        pool.close()
        pool.join()
    for how in ("loky", "threading"):
        found = Parallel(n_jobs=2, backend=how)(delayed(told)(model, user) for user in users)
        assert found == [one[:3] for one in expected], how
    print("done")
"""


@pytest.mark.skipif(os.name != "posix", reason="fork is of POSIX")
def test_other_processes_answer_alike_and_without_a_warning(model, tmp_path):
    model.save(tmp_path / "model")
    (tmp_path / "ask.py").write_text(ASK)
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    env.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(tmp_path / "ask.py"), str(tmp_path / "model")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
