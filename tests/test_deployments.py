"""Ordinary places to run in: no home, no GPU, no terminal, half a cluster; and text that would take over."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numba
import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import example, given
from hypothesis import strategies as st

from correct_smooth import commands, experiment, topn
from correct_smooth.checks import InputError, printable
from correct_smooth.data import MovieData, movie_data
from correct_smooth.dataset import (
    by_time,
    cold_items,
    cold_users,
    holdout,
    index_ratings,
    leave_last,
    split,
)
from correct_smooth.edges import read_edges
from correct_smooth.experiment import run
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ModelConfig
from correct_smooth.rating_files import rating_rows
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import read_tables, write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.tables import from_cells, to_cells, write_csv, write_rows
from correct_smooth.train import TrainConfig, Training, train

ROOT = Path(__file__).parents[1]
QUICK = dict(graph=GraphConfig(k=5), training=TrainConfig(epochs=2), ensemble=1, progress=False)
FEW = "training__epochs=3 graph__k=5 ensemble=1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A small made-up world, and the folder it lies in."
    folder, data = tmp_path_factory.mktemp("world") / "world", synthetic_data(60, 80, 1_500, seed=0)
    write_tables(data, folder)
    return data, folder


@pytest.fixture(scope="module")
def fitted(world):
    return CorrectSmoothRecommender(**QUICK).fit(world[0])


def environment(**variables):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def script(before="", name="cs_run"):
    "What a console script runs; to a job in the background Ctrl-C would mean nothing."
    code = f"import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{before}\n"
    return [sys.executable, "-c", f"{code}from correct_smooth.shell import {name}\nsys.exit({name}())"]


@pytest.fixture
def cs(monkeypatch):
    "Run a command in this process: exit code, stdout, stderr."

    def run_it(name, *flags):
        out, said = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        with redirect_stdout(out), redirect_stderr(said):
            try:
                getattr(commands if hasattr(commands, name) else experiment, name)()
                code = 0
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), said.getvalue()

    return run_it


# --- where nothing can be written

READ_ONLY = """
import numba, numpy as np, correct_smooth
from correct_smooth import dataset, evaluate, experiment, model
from correct_smooth.correct_smooth import _sum_neighbours
try:
    numba.njit(cache=True)(dataset._rank_within.py_func)
except RuntimeError as error:
    assert "no locator available" in str(error)
    print(correct_smooth.__file__, evaluate._order_metrics(np.array([True, False]), np.array([2.0, 1.0]))[0])
"""


@pytest.mark.skipif(os.name != "posix", reason="made for the file systems of POSIX")
def test_a_read_only_install_without_a_home_works(tmp_path):
    "Where the folder for compiled code should be there is a file, and no home: not even root could write."
    package = tmp_path / "correct_smooth"
    shutil.copytree(ROOT / "correct_smooth", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__pycache__").touch()
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    variables = {k: o for k, o in environment(**nowhere).items() if k != "NUMBA_CACHE_DIR"}
    variables.setdefault("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    command = [sys.executable, "-c", READ_ONLY]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{package / '__init__.py'} 1.0\n"), done.stderr


def test_every_kernel_is_compiled_through_the_one_decorator():
    for module in sorted((ROOT / "correct_smooth").glob("*.py")):
        assert re.findall(r"@n?jit", module.read_text()) == [], module.name
    assert isinstance(topn._shortlist, numba.core.registry.CPUDispatcher)


# --- where there is no GPU


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_model_trained_on_a_gpu_answers_without_one(fitted, tmp_path, no_gpu):
    "Its settings still say cuda; only training asks for it."
    told = fitted.recommend([0, 1])
    gpu = CorrectSmoothRecommender(**QUICK).set_params(training__device="cuda")
    gpu.__dict__.update({k: o for k, o in vars(fitted).items() if k.endswith("_")})
    settings = {**fitted.state_.settings, "training": TrainConfig(epochs=2, device="cuda")}
    gpu.ready_ = replace(fitted.ready_, state=replace(fitted.state_, settings=settings))
    gpu.save(tmp_path / "model")
    back = CorrectSmoothRecommender.load(tmp_path / "model")
    assert back.training.device == "cuda"
    pd.testing.assert_frame_equal(back.recommend([0, 1]), told)
    back.fold_in(pd.DataFrame({"user_id": [99], "item_id": [3], "rating": [5.0]})).save(tmp_path / "model")
    with pytest.raises(InputError, match="no GPU here; set it to cpu"):
        back.partial_fit()
    back.set_params(training__device="cpu").partial_fit()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_learns_what_a_processor_does(world):
    "Without random numbers in the steps, losses agree; with `auto` the weights are on the GPU."
    data = index_ratings(world[0])
    X, calm = MovieFeatures().fit_transform(data.movies), ModelConfig(dropout=0.0)
    one, other = (
        train(X, data, model_config=calm, config=TrainConfig(epochs=2, device=device), progress=False)
        for device in ("cpu", "auto")
    )
    assert other.model.user.weight.is_cuda
    np.testing.assert_allclose(one.history["train_loss"], other.history["train_loss"], rtol=1e-3)


def test_that_there_is_no_gpu_is_said_before_any_work(world, tmp_path, no_gpu, monkeypatch):
    gpu = CorrectSmoothRecommender(**QUICK).set_params(training__device="cuda")
    monkeypatch.setattr(experiment, "load_data", None)  # whoever calls it fails in another way
    monkeypatch.setattr(type(gpu.features), "fit", None)
    for job in (
        lambda: gpu.fit(world[0]),
        lambda: gpu.tune(world[0]),
        lambda: run(world[1], tmp_path / "out", recommender=gpu),
    ):
        with pytest.raises(InputError, match="no GPU here; set it to cpu"):
            job()
    assert list(tmp_path.iterdir()) == []


# --- where nobody listens


def outcome(folder, shell, **variables):
    "Exit code of `cs_run` as a shell starts it, and what it says."
    line = [*script(), "--data", str(folder), "--out", "out", "--settings", FEW]
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", *line]
    done = subprocess.run(command, cwd=folder.parent, env=environment(**variables), capture_output=True)
    made = folder.parent / "out"
    assert (made / "summary.json").exists() and (made / "model" / "model.json").exists()
    shutil.rmtree(made)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "shell, lines",
    [
        ('"$@" <&- >&- 2>&-', 0),
        ('"$@" | head -1', 1),
    ],
)
def test_results_are_there_whoever_listens(world, shell, lines):
    code, said, errors = outcome(world[1], shell)
    assert (code, said.count("\n"), errors) == (0, lines, "")


def test_letters_are_those_that_the_other_side_has(tmp_path):
    data = synthetic_data(60, 80, 1_500, seed=0)
    write_tables(data, tmp_path / "Amélie 七")
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    code, said, errors = outcome(tmp_path / "Amélie 七", '"$@"', **plain)
    assert (code, errors) == (0, "") and said.startswith("Am?lie ?: 60 users") and said.isascii()


def test_training_without_a_stream_for_errors_shows_no_bar(world, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    loud = CorrectSmoothRecommender(**{**QUICK, "progress": True}).fit(world[0])
    assert len(loud.recommend([0])) == 10


# --- Ctrl-C


def interrupted(folder, before, *flags):
    "Stop `cs_run` as soon as it says that it is ready: exit code, and what it says then."
    pipe = subprocess.PIPE
    command = [*script(before), "--data", str(folder), "--out", "out", "--settings", FEW, *flags]
    options = dict(cwd=folder.parent, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    with subprocess.Popen(command, **options) as job:
        assert job.stdout.readline() == "ready\n", job.stderr.read()
        job.send_signal(signal.SIGINT)
        said, errors = job.communicate()  # and its input, for which it waits, ends
    return job.returncode, said, errors


WAIT = "print('ready', flush=True); sys.stdin.read()"
AT_IMPORT = f"""
class Tell:
    def find_spec(self, name, *_):
        if name == "pandas":
            {WAIT}
sys.meta_path.insert(0, Tell())
"""
AT_EPOCH = f"""
from correct_smooth import checkpoint, train
of = train.Training.losses
def losses(self):
    if self.epoch == %d:
        {WAIT}
    return of(self)
train.Training.losses, checkpoint.CHECKPOINT_SECONDS = losses, 0
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_ctrl_c_while_all_is_loaded_is_one_line(world):
    told = interrupted(world[1], AT_IMPORT)
    assert told == (130, "", "cs_run: stopped; no result was written\n")


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_ctrl_c_while_python_dash_m_loads_is_one_line(world):
    code = f"import runpy, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{AT_IMPORT}"
    code += "\nrunpy.run_module('correct_smooth.experiment', run_name='__main__', alter_sys=True)"
    pipe = subprocess.PIPE
    options = dict(env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **options) as job:
        assert job.stdout.readline() == "ready\n", job.stderr.read()
        job.send_signal(signal.SIGINT)
        assert job.communicate() == ("", "cs_run: stopped; no result was written\n")
    assert job.returncode == 130


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_ctrl_c_tells_what_is_kept_and_the_same_command_goes_on(world, cs, monkeypatch):
    folder = world[1]
    with mock.patch.object(experiment, "load_data", side_effect=KeyboardInterrupt):
        code, out, said = cs("cs_run", "--out", folder.parent / "out")
    nothing = "cs_run: stopped; no result was written, and nothing was kept to go on from\n"
    assert (code, out, said) == (130, "", nothing)
    told = interrupted(folder, AT_EPOCH % 2)
    kept = folder.parent.resolve() / "out.checkpoint"
    assert told == (
        130, "",
        f"cs_run: stopped; the training so far is kept in {kept}, and the same command goes on from there\n",
    )  # fmt: skip
    assert any(kept.iterdir()) and not (folder.parent / "out").exists()
    epochs, of = [], Training.losses
    monkeypatch.setattr(Training, "losses", lambda self: epochs.append(self.epoch) or of(self))
    line = ("--data", folder, "--out", folder.parent / "out", "--settings", FEW)
    assert cs("cs_run", *line)[0] == 0 and epochs[0] == 2
    assert not kept.exists()
    shutil.rmtree(folder.parent / "out")


# --- half a cluster


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT not set; start it by torchrun, or unset"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be a whole number from 1"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
            "from 0 to 1,",
        ),
        ({"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}, "is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "MASTER_PORT"),
    ],
)
def test_variables_of_half_a_cluster_are_one_line(cs, monkeypatch, tmp_path, variables, message):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, said = cs("cs_run", "--out", tmp_path / "out")
    assert (code, out, said.count("\n")) == (2, "", 1) and message in said


@pytest.mark.parametrize("value", ["", " ", "1"])
def test_variables_that_say_nothing_are_no_cluster(cs, monkeypatch, world, tmp_path, value):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, value if name == "WORLD_SIZE" else "")
    code, _, said = cs("cs_run", "--data", world[1] / "nowhere", "--out", tmp_path / "out")
    assert code == 2 and said.startswith("cs_run: no data in ")


# --- one table instead of both


def test_every_door_says_how_movies_and_ratings_are_put_together(world, fitted, tmp_path):
    data, fresh = world[0], CorrectSmoothRecommender(**QUICK)
    hidden = np.zeros(len(data.ratings), bool)
    for wrong in (data.ratings, (data.movies, data.ratings), None, tmp_path):
        for door in (
            fresh.fit,
            fresh.tune,
            fitted.evaluate,
            index_ratings,
            lambda o: split(o, hidden),
            lambda o: write_tables(o, tmp_path / "tables"),
        ):
            with pytest.raises(InputError, match=r"and got \w+; movie_data\(movies, ratings\) makes one of"):
                door(wrong)
    for wrong in (data, None, data.movies, data.ratings.drop(columns="user_id").drop(columns="item_id")):
        for door in (holdout, leave_last, by_time, cold_items, cold_users):
            if door is by_time and isinstance(wrong, pd.DataFrame) and "timestamp" in wrong:
                continue
            with pytest.raises(InputError, match="needs a t"):
                door(wrong)


# --- data that would take over a terminal

EVIL = "\x1b[2J\x07\x9b31m\r\n\u202e\u2028\u2066\t\x00"
SAFE = printable(EVIL)


def harmless(text, lines=None):
    "Whether a terminal shows all of it and obeys none; line breaks are ours."
    odd = {o for o in text if o != "\n" and unicodedata.category(o)[0] in "CZ" and o != " "}
    return not odd and (lines is None or text.count("\n") == lines)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    "A data set with such characters wherever it holds text, and a model of it."
    folder, data = tmp_path_factory.mktemp("evil"), synthetic_data(60, 80, 1_500, seed=0)
    name = "w\x1b[2J\x9b\u202e\u2028\n!"  # what a file system takes
    movies = data.movies.assign(
        title=[f"{o}{EVIL}{k}" for k, o in enumerate(data.movies["title"])],
        genres=[(f"{o[0]}{EVIL}",) for o in data.movies["genres"]],
    ).rename(lambda o: f"f{EVIL}{o}")
    ratings = data.ratings.assign(
        user_id=data.ratings["user_id"].map(f"u{EVIL}{{}}".format),
        item_id=data.ratings["item_id"].map(f"f{EVIL}{{}}".format),
    )
    write_tables(movie_data(movies, ratings), folder / name)
    odd = pd.read_parquet(folder / name / "ratings.parquet").assign(**{f"col{EVIL}": 1})
    odd.to_parquet(folder / name / "ratings.parquet")
    CorrectSmoothRecommender(**QUICK).fit(movie_data(movies, ratings, EVIL)).save(folder / f"m{name}")
    return folder, name


def test_no_command_lets_data_reach_the_terminal(evil, cs, tmp_path, monkeypatch):
    folder, name = evil
    monkeypatch.chdir(tmp_path)
    user, model = f"u{EVIL}7", folder / f"m{name}"
    title, item = f"Movie 3{EVIL}3", f"f{EVIL}3"
    mine = pd.DataFrame({"title": [title, title, "nonsense" + EVIL], "rating": [5, 4, 3], f"col{EVIL}": 1})
    mine[:1].to_parquet("good.parquet")
    mine.to_parquet("bad.parquet")
    mine.rename(columns={"title": f"no{EVIL}"}).to_parquet("worse.parquet")
    pd.DataFrame({"item_id": [EVIL], "rating": [5]}).to_parquet("unknown.parquet")
    pd.DataFrame({"item_id": [item], "rating": [EVIL]}).to_parquet("stars.parquet")
    out = f"out{name}"
    for line in (
        ("cs_recommend", "--model", model, "--user", user, "--why"),
        ("cs_recommend", "--model", model, "--user", f"nobody{EVIL}"),
        ("cs_recommend", "--model", model / f"x{EVIL.replace(chr(0), '')}", "--user", user),
        ("cs_similar", "--model", model, "--title", f"#{item}"),
        ("cs_similar", "--model", model, "--title", title),
        ("cs_similar", "--model", model, "--title", f"nonsense{EVIL}"),
        ("cs_similar", "--model", model, "--title", title, "--by", EVIL),
        ("cs_fold_in", "--model", model, "--ratings", "good.parquet", "--out", f"fold{name}"),
        *(("cs_fold_in", "--model", model, "--ratings", f"{o}.parquet") for o in ("bad", "worse", "unknown")),
        ("cs_fold_in", "--model", model, "--ratings", "stars.parquet"),
        ("cs_partition", "--data", folder / name, "--out", f"parted{name}"),
        ("cs_partition", "--data", folder / f"{name}x", "--out", f"parted{name}"),
        ("cs_run", "--data", folder / name, "--out", out, "--settings", FEW),
        ("cs_run", "--data", folder / name, "--settings", f"a{EVIL}=1"),
        ("cs_run", f"--{EVIL}"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, told, said = cs(*line)
        assert harmless(told) and harmless(said, lines=int(code > 0)), (line, told, said)
        assert told + said and (code in (0, 2)), (line, said)
        if line[0] == "cs_run" and code == 0:
            assert told.splitlines()[0].startswith(printable(name)) and "left out" in told.splitlines()[1]


@tried(50, 1_000)
@given(st.text())
@example(EVIL)
def test_an_error_holds_no_control_characters(text):
    assert harmless(str(InputError(text)), lines=0) and len(str(InputError(text))) == len(text)


# --- text that a spreadsheet would run

CELLS = st.text(st.one_of(st.sampled_from("'=+-@\t\r\n\"a,; ＝"), st.characters(exclude_categories=["Cs"])))
ANY = tried(80, 2_000)


@ANY
@given(st.lists(CELLS, min_size=1))
@example(["=1", "'=1", "''=1", "'", "-", "'-", "\r=", "\n", "'\t", "＝1", "'＠", "-1", "+1e3", "a\rb"])
def test_any_text_comes_back_and_none_is_a_formula(texts):
    for dtype in ("object", "str"):
        table = pd.DataFrame({"text": pd.Series(texts, dtype=dtype), "number": -1.5})
        cells = to_cells(table)
        assert not cells["text"].map(lambda o: bool(re.match("[=+\\-@\t\r\n＝＋－＠]", o))).any()
        assert cells["number"].eq(-1.5).all()
        pd.testing.assert_frame_equal(from_cells(cells), table)


@tried(20, 400)
@given(texts=st.lists(CELLS.filter(bool), min_size=1, unique=True))
@example(texts=["=cmd", "'=cmd", "a\rb", 'a"b\r\n', "\t", "\ufeff"])
def test_what_we_write_our_readers_read(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("cells")
    movies = pd.DataFrame({"item_id": [f"i{o}" for o in texts], "title": texts})
    write_csv(movies, folder / "movies.csv")
    with write_rows(folder / "ratings.csv") as write:
        for o in movies["item_id"]:
            write(pd.DataFrame({"user_id": [f"={o}"], "item_id": [o], "rating": [2.5]}))
    back = read_tables(folder)
    assert back.movies["title"].tolist() == texts and back.movies.index.tolist() == movies["item_id"].tolist()
    assert back.ratings["user_id"].tolist() == [f"={o}" for o in movies["item_id"]]
    rows, _ = rating_rows(folder / "ratings.csv")
    assert rows["user_id"].tolist() == back.ratings["user_id"].tolist()
    edges = pd.DataFrame({"source": [f"@{o}" for o in texts], "target": "x", "weight": 0.5})
    write_csv(edges, folder / "edges.csv")
    read = read_edges(folder / "edges.csv").astype({"weight": float})  # text beside text ids
    pd.testing.assert_frame_equal(read, edges, check_dtype=False)


def test_files_for_spreadsheets_hold_no_formulas(world, tmp_path):
    "Lists and metrics of a run, and the same text behind them."
    data = world[0]
    titles = ["=HYPERLINK(1)", "'@x", "+1", "-30-", "Plain"]
    movies = data.movies.assign(title=[titles[k % 5] for k in range(len(data.movies))])
    ratings = data.ratings.assign(user_id=data.ratings["user_id"].map("={}".format))
    write_tables(MovieData(movies, ratings), tmp_path / "w")
    run(tmp_path / "w", tmp_path / "out", recommender=CorrectSmoothRecommender(**QUICK))
    for name in ("recommendations.csv", "per_user_metrics.csv"):
        raw = pd.read_csv(tmp_path / "out" / name)
        texts = raw.select_dtypes(exclude="number")
        assert "user_id" in texts and not texts.map(lambda o: o[0] in "=+-@").to_numpy().any()
        assert from_cells(raw)["user_id"].isin(ratings["user_id"]).all()
    assert set(from_cells(pd.read_csv(tmp_path / "out" / "recommendations.csv"))["title"]) <= set(titles)


def test_numbers_are_never_touched(tmp_path):
    table = pd.DataFrame(
        {"user_id": [-1, 2], "score": [-0.5, 1e-9], "when": pd.to_datetime(["2020", "2021"])}
    )
    write_csv(whole := table.assign(text=["-a", "b"]), tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[1].startswith("-1,-0.5,") and lines[1].endswith(",'-a")
    assert from_cells(pd.read_csv(tmp_path / "t.csv"))["text"].tolist() == whole["text"].tolist()
