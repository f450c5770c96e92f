"""A saved model is whole at any moment, whatever becomes of its writer, and loads as it was."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from effort import LONG
from limits import largest_file
from scipy import sparse

from correct_smooth import files as writing
from correct_smooth import ready
from correct_smooth.answers import ListConfig, lists_of
from correct_smooth.audience import AudienceConfig
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth
from correct_smooth.dataset import holdout, split
from correct_smooth.diffusion import Diffusion
from correct_smooth.files import MARKER, write_marker
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ModelConfig
from correct_smooth.model_folder import FORMAT, MODEL_FILES, read_answers
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

KEPT = Path(__file__).parent / "data"
QUICK = {
    "graph": GraphConfig(k=3, corating_k=5),
    "model": ModelConfig(emb_dim=4, hidden_dim=8, head_dim=3),
    "training": TrainConfig(epochs=2),
    "ensemble": 1,
    "validation": 0.0,
    "progress": False,
}

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="kills, and limits on files, are those of POSIX"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def small_world(text_ids=False):
    "Few users and movies; with ids that are numbers, or text."
    world = synthetic_data(20, 30, 200, n_themes=3, theme_words=6, plot_words=8)
    if text_ids:
        world = replace(
            world, ratings=world.ratings.assign(user_id="user " + world.ratings["user_id"].astype(str))
        )
    return world


def with_features(world):
    "The same items as books: with authors, vectors and a number of their own."
    n, rng = len(world.movies), np.random.default_rng(0)
    own = {"creators": [(f"Author {k % 7}",) for k in range(n)], "numbers: pages": 100.0 + np.arange(n)}
    vectors = sparse.random(n, 4, 0.5, format="csr", rng=rng, dtype=np.float32)
    return replace(world, movies=world.movies.assign(**own), vectors=vectors, noun="book")


def fitted(seed=0, **settings):
    return CorrectSmoothRecommender(**{**QUICK, "seed": seed, **settings}).fit(small_world())


@pytest.fixture(scope="module")
def two():
    "Two models that recommend otherwise, and what they recommend."
    models = [fitted(seed) for seed in (0, 1)]
    tops = [o.recommend() for o in models]
    assert not tops[0].equals(tops[1])
    return models, tops


def load_one_of(folder, tops):
    "Which of the two a folder holds; nothing else will do."
    found = CorrectSmoothRecommender.load(folder).recommend()
    (which,) = [k for k, o in enumerate(tops) if found.equals(o)]
    return which


# --- killed


def child(model, folder, ready, sabotage):
    "Save, in a process of its own."
    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage()
    os.write(ready, b"!")
    model.save(folder)
    os._exit(0)


@contextmanager
def saving(model, folder, sabotage=None):
    "A process that has begun to save; it is gone at the end."
    waiting, ready = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(model, folder, ready, sabotage))
    process.start()
    os.close(ready)
    os.read(waiting, 1)
    os.close(waiting)
    try:
        yield process
    finally:
        process.join(600)
        assert process.exitcode in (0, -signal.SIGKILL)


def no_exchange():
    "As on a system where two folders cannot trade names in one step."
    writing._exchange = lambda *_: False


def die():
    os.kill(os.getpid(), signal.SIGKILL)


EACH_SYSTEM = pytest.mark.parametrize("sabotage", [None, no_exchange], ids=["exchange", "two renames"])


def killed_at_random(two, folder, sabotage, kills, seed):
    "So many kills while one of the models is saved over the other, each at a random moment."
    models, tops = two
    models[0].save(folder)
    rng, held, ends = np.random.default_rng(seed), 0, []
    began = time.monotonic()
    with saving(models[0], folder, sabotage):
        pass
    life = time.monotonic() - began  # no more than a hint: whenever it is killed, one of the two is whole
    while len(ends) < kills:
        with saving(models[1 - held], folder, sabotage) as process:
            process.join(rng.uniform(0, life))
            alive = process.exitcode is None
            if alive:
                process.kill()
        before, held = held, load_one_of(folder, tops)
        if alive and process.exitcode:
            ends.append(held != before)
        else:
            assert held != before
    models[0].save(folder)
    assert load_one_of(folder, tops) == 0
    assert [o.name for o in folder.parent.iterdir()] == [folder.name]
    return ends


@EACH_SYSTEM
def test_killed_at_random(two, tmp_path, sabotage):
    assert len(killed_at_random(two, tmp_path / "model", sabotage, 6, 0)) == 6


@pytest.mark.skipif(not LONG, reason="takes minutes; set CORRECT_SMOOTH_LONG to run it")
@EACH_SYSTEM
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_a_hundred_times(two, tmp_path, sabotage, seed):
    ends = killed_at_random(two, tmp_path / "model", sabotage, 100, seed)
    assert 0 < sum(ends) < len(ends)


@EACH_SYSTEM
@pytest.mark.parametrize("every", [1 if LONG else 5])
def test_killed_at_each_step(two, tmp_path, sabotage, every):
    "Just before each opening, renaming, making or removing of a file that Python reports."
    models, tops = two
    folder = tmp_path / "model"
    models[0].save(folder)
    steps = (
        "open",
        "os.rename",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.chmod",
        "shutil.rmtree",
        "ctypes.dlsym",
    )
    found = []
    for step in itertools.count(0, every):

        def kill_there(step=step):
            left = iter(range(step))

            def hook(event, args):
                if event in steps and str(tmp_path) in str(args[0]) + "ctypes" * (event[0] == "c"):
                    if next(left, None) is None:
                        die()

            if sabotage is not None:
                sabotage()
            sys.addaudithook(hook)

        with saving(models[1], folder, kill_there) as process:
            pass
        found.append(load_one_of(folder, tops))
        if process.exitcode == 0:
            break
        models[0].save(folder)
        assert [o.name for o in tmp_path.iterdir()] == ["model"]
    assert found[0] == 0 and found[-1] == 1 and found == sorted(found) and len(found) > 20 / every


def kill_before_exchange():
    writing._exchange = lambda *_: die()


def kill_after_exchange():
    whole = writing._exchange
    writing._exchange = lambda one, other: whole(one, other) and die()


def kill_between_renames():
    no_exchange()
    whole = Path.rename

    def rename(self, target):
        if Path(target).name == "model":
            die()
        return whole(self, target)

    Path.rename = rename


@pytest.mark.parametrize(
    "sabotage, which", [(kill_before_exchange, 0), (kill_after_exchange, 1), (kill_between_renames, 0)]
)
def test_killed_around_the_exchange(two, tmp_path, sabotage, which):
    "The old model before it, the new one after it; what is left of the other goes with the next save."
    models, tops = two
    folder = tmp_path / "model"
    if sabotage is kill_after_exchange and not exchanges(tmp_path):
        pytest.skip("two folders cannot trade names here")
    models[0].save(folder)
    with saving(models[1], folder, sabotage) as process:
        pass
    assert process.exitcode == -signal.SIGKILL
    assert folder.exists() == (sabotage is not kill_between_renames)
    assert len(list(tmp_path.iterdir())) == folder.exists() + 1
    assert load_one_of(folder, tops) == which
    models[1].save(folder)
    assert load_one_of(folder, tops) == 1
    assert [o.name for o in tmp_path.iterdir()] == ["model"]


def exchanges(folder):
    "Whether two folders can trade names there."
    one, other = folder / "one", folder / "other"
    one.mkdir()
    other.mkdir()
    able = writing._exchange(one, other)
    one.rmdir()
    other.rmdir()
    return able


def test_saved_over_while_it_is_read(two, tmp_path):
    "A reader beside a writer gets one of the two, or is told that the files do not belong together."
    models, tops = two
    folder, found = tmp_path / "model", set()
    models[0].save(folder)
    for k in range(20):
        with saving(models[1 - k % 2], folder):
            try:
                found.add(load_one_of(folder, tops))
            except InputError:
                pass
    assert found & {0, 1}


# --- no room


def test_no_room(two, tmp_path):
    "Whichever file meets the end of the disk: an error, the old model whole, no litter."
    models, tops = two
    folder = tmp_path / "model"
    models[0].save(folder)
    sizes = sorted(o.stat().st_size for o in folder.iterdir())
    for room in (0, 1, *(o - 1 for o in sizes)):
        with largest_file(room), pytest.raises(OSError):
            models[1].save(folder)
        assert load_one_of(folder, tops) == 0
        assert [o.name for o in tmp_path.iterdir()] == ["model"]
    with largest_file(sizes[-1] + 100):
        models[1].save(folder)
    assert load_one_of(folder, tops) == 1


# --- what was saved is what is loaded

VARIANTS = {
    "plain": {},
    "three": {"ensemble": 3},
    "sage": {"model": replace(QUICK["model"], encoder="sage"), "ensemble": 2},
    "own vectors": {"model": replace(QUICK["model"], id_embedding=True), "ensemble": 2},
    "head": {"model": replace(QUICK["model"], head="mlp")},
    "no item terms": {"model": replace(QUICK["model"], item_bias=False)},
}


def same(one, other):
    "Two recommenders tell the same, of people and movies known and unknown."
    pd.testing.assert_frame_equal(one.recommend(), other.recommend(), check_exact=True)
    user, item = one.users_[-1], one.items_[-1]
    if getattr(one.refinement, "scale", "fixed") == "fixed":  # else a score is no sum that can be taken apart
        pd.testing.assert_frame_equal(one.explain(user, item), other.explain(user, item), check_exact=True)
    for by in ("graph", "embedding"):
        pd.testing.assert_frame_equal(one.similar_items(item, by=by), other.similar_items(item, by=by))
    with pytest.warns(UserWarning, match="unknown"):
        strangers = [o.predict(["nobody"], [item]) for o in (one, other)]
    pd.testing.assert_frame_equal(*strangers, check_exact=True)
    assert one.get_params().keys() == other.get_params().keys()
    assert {k: str(v) for k, v in one.get_params().items()} == {
        k: str(v) for k, v in other.get_params().items()
    }
    return True


def answers_alike(model, folder):
    "Read without the encoder, a model gives the same lists; with a head it cannot be."
    answers = read_answers(folder)
    if model.model.head != "dot":
        return answers is None
    tops = lists_of(answers, model.users_, ListConfig(), lambda: answers.popularity)
    pd.testing.assert_frame_equal(pd.concat(tops, ignore_index=True), model.recommend(), check_exact=True)
    for user in model.users_[:3]:
        (top,) = lists_of(answers, pd.Index([user]), ListConfig(), lambda: answers.popularity)
        pd.testing.assert_frame_equal(top, model.recommend([user]), check_exact=True)
    return True


def saved_and_loaded(model, folder):
    model.save(folder)
    back = CorrectSmoothRecommender.load(folder)
    assert same(model, back) and answers_alike(back, folder)
    return back


@pytest.mark.parametrize("variant", VARIANTS)
def test_growing_models(variant, tmp_path):
    "New movies, ratings and people, further training: saved and loaded after each, never another model."
    settings, text_ids = VARIANTS[variant], variant != "plain"
    world = small_world(text_ids)
    learn, _ = split(world, holdout(world.ratings, 0.2))
    model = CorrectSmoothRecommender(**{**QUICK, **settings}).fit(learn)
    movies = pd.DataFrame(
        {"item_id": [100, 101], "title": ["Up", ""], "overview": ["w0x1 w1x2", ""], "genres": "Theme 0"}
    )
    old, new = learn.ratings["user_id"].iloc[0], "newcomer" if text_ids else 777
    ratings = pd.DataFrame({"user_id": [old, new, new], "item_id": [100, 100, 3], "rating": [5.0, 1.0, 4.0]})
    back = saved_and_loaded(model, tmp_path / "model")
    for o in (model, back):
        o.add_movies(movies)
    assert same(model, back)
    back = saved_and_loaded(model, tmp_path / "model")
    if model.model.head == "mlp":
        return
    for o in (model, back):
        o.fold_in(ratings)
    assert same(model, back)
    back = saved_and_loaded(model, tmp_path / "model")
    for o in (model, back):
        o.partial_fit(ratings.assign(rating=2.0, item_id=[101, 5, 6]))
    assert same(model, back)
    saved_and_loaded(model, tmp_path / "model")


@pytest.mark.parametrize("text_ids", [False, True])
def test_features_of_ones_own(text_ids, tmp_path):
    "Vectors, creators, numbers and the noun are saved, and new items bring vectors of the same width."
    world = with_features(small_world(text_ids))
    model = CorrectSmoothRecommender(**QUICK).fit(world)
    assert {"creators", "vectors", "numbers"} <= set(model.features_.blocks_)
    back = saved_and_loaded(model, tmp_path / "model")
    assert (back.data_.vectors != world.vectors).nnz == 0 and back.data_.noun == "book"
    new = pd.DataFrame({"book_id": [100, 101], "authors": ["Author 3", ""], "title": ["New", "Newer"]})
    for o in (model, back):
        with pytest.raises(InputError, match="vectors of the new items have 3 numbers, those known have 4"):
            o.add_movies(new, features=([100], np.ones((1, 3))))
        o.add_movies(new, features=([101], np.ones((1, 4))))
    assert (model.data_.vectors[-2:].toarray() == [[0] * 4, [1] * 4]).all()
    assert same(model, back)
    assert same(model, saved_and_loaded(back, tmp_path / "model"))


def test_a_damaged_vector_is_noticed(tmp_path):
    "Numbers that are none, or a width that is not theirs, are refused by name."
    from correct_smooth.tensors import load_tensors, save_tensors

    model = CorrectSmoothRecommender(**QUICK).fit(with_features(small_world()))
    for name, value in (
        ("vectors.data", np.nan),
        ("H", np.nan),
        ("c", np.inf),
        ("width", 3),
        ("width", -1),
        ("width", 9),
        ("width", 2**40),
    ):
        model.save(tmp_path / "model")
        tensors, _ = load_tensors(tmp_path / "model" / ITEMS)
        tensors[name] = tensors[name].clone()
        tensors[name][0] = value
        save_tensors(tmp_path / "model" / ITEMS, tensors)
        write_marker(tmp_path / "model", "model", sums=True)
        with pytest.raises(InputError):
            CorrectSmoothRecommender.load(tmp_path / "model")
        if name in ("H", "c"):
            with pytest.raises(InputError, match="H and c hold what are no numbers"):
                read_answers(tmp_path / "model")


def test_forgetting_leaves_what_answers_need(two, tmp_path):
    "A folder that users are deleted from answers without the encoder, as before."
    model = two[0][0]
    model.save(tmp_path / "model")
    ready.forget_saved(tmp_path / "model", model.users_[[1, 4]])
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    assert len(back.users_) == len(model.users_) - 2 and answers_alike(back, tmp_path / "model")


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_earlier_versions_are_read_whole(number):
    "They had no H and c beside the weights."
    assert read_answers(KEPT / f"model_format_{number}") is None


REFINEMENTS = {
    "own": CorrectAndSmooth("own", alpha=0.8, half_trust=0, beta=0.5, T=2),
    "diffusion": Diffusion(steps=4, spread_normalisation="row", T=1),
    "each user's scale": Diffusion(scale="user", smoothing="labels", keep_labels=True, T=2),
    "off": CorrectAndSmooth(alpha=0),
}  # fmt: skip


@pytest.mark.parametrize("refinement", REFINEMENTS.values(), ids=REFINEMENTS)
@pytest.mark.parametrize("own_graph", [False, True])
def test_other_refinements(two, refinement, own_graph, tmp_path):
    n = len(two[0][0].items_)
    A = sparse.random(n, n, 0.2, format="csr", rng=np.random.default_rng(0)) if own_graph else None
    model = two[0][0].with_refinement(refinement, A)
    back = saved_and_loaded(model, tmp_path / "model")
    assert back.state_.own_graph == own_graph and back.refinement == refinement
    for o in (model, back):
        o.partial_fit()
    assert same(model, back)


def test_a_fresh_process(two, tmp_path):
    "Another process, another day: the same recommendations to the last bit."
    models, tops = two
    models[0].save(tmp_path / "model")
    code = (
        "import sys; from correct_smooth.recommender import CorrectSmoothRecommender as R; "
        "R.load(sys.argv[1]).recommend().to_parquet(sys.argv[2])"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = tmp_path / "tops.parquet"
    subprocess.run([sys.executable, "-c", code, tmp_path / "model", out], check=True, env=where, timeout=600)
    pd.testing.assert_frame_equal(pd.read_parquet(out), tops[0], check_exact=True)


# --- other versions


ITEMS = "items.safetensors"  # audience and watch scores, since format 7


def write_kept(folder=KEPT / f"model_format_{FORMAT}"):
    "How the folder beside this file was made; a new format gets a folder of its own."
    every = ModelConfig(4, 8, encoder="sage", head="mlp", head_dim=3, id_embedding=True)
    world = with_features(small_world(text_ids=True))
    learn, _ = split(world, holdout(world.ratings, 0.2))
    model = CorrectSmoothRecommender(**{**QUICK, "model": every, "ensemble": 2}).fit(learn)
    model.save(folder)
    folder.with_suffix(".json").write_text(model.recommend(n=3).to_json(orient="records", indent=0))


@pytest.mark.parametrize("number", [5, 6, 7, 8, FORMAT])
def test_models_saved_by_earlier_versions(number):
    "One written by the version that introduced this format loads, and recommends what it did then."
    kept = KEPT / f"model_format_{number}"
    files = [*kept.iterdir(), kept.with_suffix(".json")]
    assert sum(o.stat().st_size for o in files) < 100_000
    assert {o.name for o in files[:-1]} - {MARKER} == set(MODEL_FILES) - ({ITEMS} if number < 7 else set())
    assert json.loads((kept / "model.json").read_text())["format"] == number
    expected = pd.DataFrame(json.loads(kept.with_suffix(".json").read_text()))
    found = CorrectSmoothRecommender.load(kept).recommend(n=3)
    if number < 7:  # there was one score then, and it is what lists are ordered by
        assert found["watch"].isna().all() and (found["score"] == found["refined"]).all()
    found = found[expected.columns]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=False, atol=1e-5, rtol=0)


def format_5(folder, training=None, **refinement):
    "The model of format 5 with other settings."
    shutil.copytree(KEPT / "model_format_5", folder)
    about = json.loads((folder / "model.json").read_text())
    about["settings"]["training"].update(training or {})
    about["settings"]["refinement"].update(refinement)
    (folder / "model.json").write_text(json.dumps(about))
    write_marker(folder, "model", sums=True)
    return folder


def test_an_earlier_diffusion(tmp_path):
    "A rule of CorrectAndSmooth then, and settings of its own now; every other setting stays as it was."
    settings = {
        "steps": 4,
        "spread": 0.6,
        "spread_normalisation": "column",
        "alpha": 1.5,
        "T": 1,
        "beta": 0.3,
    }
    for smoothing in ("scores", "labels"):
        change = {**settings, "smoothing": smoothing, "normalisation": "symmetric", "keep_labels": True}
        back = CorrectSmoothRecommender.load(format_5(tmp_path / smoothing, rule="diffusion", **change))
        assert back.refinement == Diffusion(**change)
        plain = CorrectSmoothRecommender.load(KEPT / "model_format_5").with_refinement(Diffusion(**change))
        pd.testing.assert_frame_equal(back.recommend(), plain.recommend(), check_exact=True)
        back.save(tmp_path / f"{smoothing} anew")
        again = CorrectSmoothRecommender.load(tmp_path / f"{smoothing} anew")
        pd.testing.assert_frame_equal(again.recommend(), plain.recommend(), check_exact=True)


@pytest.mark.parametrize("rule", ["neighbours", "own"])
@pytest.mark.parametrize("smoothing", ["labels", "scores"])
def test_earlier_smoothing_that_is_gone(tmp_path, rule, smoothing):
    "Of labels, or over another graph, after a rule other than diffusion: refused, not misread."
    normalisation = "row" if smoothing == "labels" else "symmetric"
    gone = {"rule": rule, "smoothing": smoothing, "normalisation": normalisation}
    why = f"smooths {smoothing} over a graph normalised by '{normalisation}' after the rule '{rule}'.*fit it"
    with pytest.raises(InputError, match=why):
        CorrectSmoothRecommender.load(format_5(tmp_path / "gone", **gone, T=1))
    back = CorrectSmoothRecommender.load(format_5(tmp_path / "unused", **gone, T=0))  # it never smoothed
    assert back.refinement == CorrectAndSmooth(rule)


def test_an_earlier_decay_of_users_own(tmp_path, monkeypatch):
    "Newcomers are pulled as strongly as users were in training; a falling learning rate leaves no trace."
    given, fit = [], ready.fit_users

    def noting(*args):
        given.append(args[4])
        return fit(*args)

    monkeypatch.setattr(ready, "fit_users", noting)
    ratings = pd.DataFrame({"user_id": 777, "item_id": [1, 2], "rating": [5.0, 1.0]})
    dot = fitted(model=ModelConfig(4, 8), audience=AudienceConfig(axes=0), watch=None)
    dot.save(tmp_path / "now")
    settings = json.loads((tmp_path / "now" / "model.json").read_text())
    (tmp_path / "now" / ITEMS).unlink()
    for part, name in (
        (settings["settings"]["refinement"], "kind"),
        *((settings["settings"], o) for o in ("audience", "watch")),
    ):
        del part[name]
    settings["settings"]["refinement"] |= {"smoothing": "scores", "normalisation": "row"}
    settings["standard"] |= {"given": False}
    for own, decay in ((None, 6.0), (0.5, 0.5)):
        folder = tmp_path / str(own)
        shutil.copytree(tmp_path / "now", folder)
        settings["settings"]["training"] |= {"schedule": "cosine", "user_weight_decay": own}
        (folder / "model.json").write_text(json.dumps({**settings, "format": 5}))
        write_marker(folder, "model", sums=True)
        back = CorrectSmoothRecommender.load(folder)
        pd.testing.assert_frame_equal(back.recommend(), dot.recommend(), check_exact=True)
        assert back.training == TrainConfig(epochs=2, schedule="constant", weight_decay=decay)
        back.fold_in(ratings)
        assert given.pop() == decay
    assert not given


@pytest.mark.parametrize(
    "found, way_out", [(FORMAT + 1, "update correct_smooth"), (4, "fit and save it again")]
)
def test_other_formats(two, tmp_path, found, way_out):
    "Told apart by number, whatever else there is in them."
    two[0][0].save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps({"format": found, "something": "else"}))
    with pytest.raises(
        InputError, match=f"is in model format {found}, this version reads {FORMAT}, 8, 7, 6 and 5; {way_out}"
    ):
        CorrectSmoothRecommender.load(tmp_path / "model")
