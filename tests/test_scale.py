"""What was made fast gives what the slow way gives: transposed bags, batches, short lists, streamed rows."""

import json
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from torch.nn.functional import embedding_bag

from correct_smooth import dataset, graph
from correct_smooth.checks import InputError
from correct_smooth.correct_smooth import CorrectAndSmooth
from correct_smooth.data import MovieData
from correct_smooth.embeddings import Embeddings
from correct_smooth.experiment import run
from correct_smooth.files import MARKER
from correct_smooth.model import ModelConfig, as_bag, bag_sum
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.tables import write_rows
from correct_smooth.topn import top_n
from correct_smooth.train import TrainConfig, batches, step_size

SOME = tried(20, 300)
SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def fitted():
    "A recommender that is fitted in a moment."
    quick = dict(training=TrainConfig(epochs=1), model=ModelConfig(emb_dim=4, hidden_dim=8), ensemble=1)
    return CorrectSmoothRecommender(validation=0.0, progress=False, **quick).fit(synthetic_data(60, 80, 1500))


@SOME
@given(st.integers(1, 20), st.integers(1, 30), st.sampled_from([0, 0.05, 0.3, 1]), SEEDS)
def test_gradient_of_sparse_rows(n, n_features, density, seed):
    "Rows without values and features without rows among them: X W, and X^T G, as PyTorch has it."
    rng = np.random.default_rng(seed)
    X = sparse.random(n, n_features, density, format="csr", rng=rng, dtype=np.float32)
    bag = as_bag(X)
    W = torch.tensor(rng.normal(size=(n_features, 3)), dtype=torch.float32, requires_grad=True)
    G = torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32)
    out = bag_sum(W, bag)
    assert_allclose(out.detach(), X @ W.detach().numpy(), rtol=0, atol=1e-5)
    own = embedding_bag(bag.columns, W, bag.starts, mode="sum", per_sample_weights=bag.values)
    found, wanted = (torch.autograd.grad(o, W, G)[0] for o in (out, own))
    assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert_allclose(found, X.T @ G.numpy(), rtol=0, atol=1e-5)


@SOME
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 70), st.booleans(), SEEDS)
def test_batches_hold_each_rating_once(item, size, shuffled, seed):
    "And each of their movies once; `which` leads from ratings to movies."
    item = np.array(item, np.int32)
    found = list(batches(item, size, np.random.default_rng(seed) if shuffled else None))
    rows = np.concatenate([o.rows for o in found]) if found else np.zeros(0, int)
    assert_array_equal(np.sort(rows), np.arange(len(item)))
    for o in found:
        assert 0 < len(o.rows) <= size and len(np.unique(o.item)) == len(o.item)
        assert_array_equal(o.item[o.which], item[o.rows])


@SOME
@given(st.integers(0, 10**10))
def test_steps_and_batches_grow_alike(n):
    "With the root of the number of ratings; a step has 256 at least."
    size = step_size(TrainConfig(), n)
    assert size == 256 if n <= 256 else size**2 <= 256 * n < (size + 1) ** 2


@SOME
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.integers(1, 30), SEEDS)
def test_short_lists_are_the_head_of_a_sort(n_items, m, n, levels, seed):
    "With ties, movies that nobody should get and movies that were seen, in memory either way round."
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (n_items, m)) / levels).astype(np.float32)
    excluded, seen = rng.random(n_items) < 0.2, sparse.random(n_items, m, 0.2, format="csc", rng=rng)
    found = top_n(np.asfortranarray(scores) if seed % 2 else scores, n, excluded, seen)
    for u in range(m):
        z = np.where(excluded, -np.inf, scores[:, u])
        z[seen[:, [u]].indices] = -np.inf
        best = np.argsort(-z, kind="stable")[:n]
        best = best[np.isfinite(z[best])]
        padded = np.append(best, np.full(min(n, n_items) - len(best), -1))
        assert_array_equal(found[u], padded)


@SOME
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 200), st.sampled_from([1, 3, 64, 192]), SEEDS)
def test_pairs_are_dot_products(n_items, n_users, n, k, seed):
    "On one thread or all of them, to the last bit."
    rng = np.random.default_rng(seed)
    shapes = ((n_items, k), n_items, (n_users, k), n_users)
    model = Embeddings(*(rng.normal(0, 0.3, o).astype(np.float32) for o in shapes))
    user, item = rng.integers(0, n_users, n), rng.integers(0, n_items, n)
    plain = np.einsum("nk,nk->n", model.H[item].astype(float), model.U[user]) + model.b[user] + model.c[item]
    threads, found = numba.get_num_threads(), []
    for o in (1, threads):
        numba.set_num_threads(o)
        found.append(model.pairs(user, item))
    assert_allclose(found[0], 1 / (1 + np.exp(-plain)), rtol=0, atol=1e-5)
    assert_array_equal(*found)
    assert_allclose(model.block(np.arange(n_users))[item, user], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", [{}, {"n": 3, "exclude_seen": False}, {"user_ids": [5, "nobody", 2]}])
@pytest.mark.filterwarnings("ignore:user .* is unknown")
def test_recommendations_in_a_file_are_those_in_memory(fitted, tmp_path, asked):
    "Parquet to the last bit, CSV to six digits."
    wanted = fitted.recommend(**asked)
    if "user_ids" in asked:
        asked = {"user_ids": [5, 2]}  # a column of a file has one type
        wanted = fitted.recommend(**asked)
    for name, read in (("top.parquet", pd.read_parquet), ("top.csv", pd.read_csv)):
        fitted.write_recommendations(tmp_path / name, **asked)
        pd.testing.assert_frame_equal(read(tmp_path / name), wanted, check_dtype=False, rtol=1e-5)
    assert {o.name for o in tmp_path.iterdir()} == {"top.parquet", "top.csv"}


def test_no_users_are_a_table_without_rows(fitted, tmp_path):
    "The columns are there all the same."
    empty = fitted.recommend(user_ids=[])
    fitted.write_recommendations(tmp_path / "top.parquet", user_ids=[])
    found = pd.read_parquet(tmp_path / "top.parquet")
    assert len(empty) == len(found) == 0 and list(empty) == list(found) == list(fitted.recommend(n=1))


@pytest.mark.parametrize("name", ["top.parquet", "top.csv"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_writing_leaves_the_old_file(tmp_path, name, error):
    "And nothing beside it."
    path = tmp_path / name
    path.write_text("as before")
    with pytest.raises(error), write_rows(path) as write:
        write(pd.DataFrame({"a": [1.0]}))
        raise error
    assert path.read_text() == "as before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["top.xlsx", "top", "no/top.csv", "."])
def test_files_that_cannot_be_written_are_refused(fitted, tmp_path, name):
    "Before anything is computed."
    with pytest.raises(InputError, match="must be a .parquet or .csv file"):
        fitted.write_recommendations(tmp_path / name)


def test_benchmark_of_all_stages(tmp_path):
    "A thousandth of MovieLens 32M from files to a top ten; the world is made once."
    tool, outs = (
        Path(__file__).parents[1] / "tools" / "bench_scale.py",
        [tmp_path / f"{o}.json" for o in "12"],
    )
    twice = "import runpy, sys\ntool, folder, *outs = sys.argv[1:]\nfor out in outs:\n"
    twice += "    sys.argv[1:] = ['--scale', '0.001', '--folder', folder, '--out', out]\n"
    twice += "    runpy.run_path(tool, run_name='__main__')\n"
    command = [sys.executable, "-c", twice, tool, tmp_path / "world", *outs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for turn, out in enumerate(outs, 1):
        stages = json.loads(out.read_text())["stages"]
        assert ("write synthetic" in stages) == (turn == 1)
        assert {"load", "content graph", "training", "refine test pairs", "top 10 to Parquet"} < set(stages)
        assert all(o["seconds"] >= 0 and o["peak_gb"] > 0 for o in stages.values())
    assert {o.name for o in (tmp_path / "world").iterdir()} == {MARKER, "movies.parquet", "ratings.parquet"}


# --- what is not done twice, or not at all


@pytest.fixture
def small_run(tmp_path):
    "A whole run on a small world, by a recommender with these settings; and the number of ratings in it."
    world = synthetic_data(60, 80, 1_500, seed=0)
    write_tables(world, tmp_path / "world")
    quick = {"training": TrainConfig(epochs=2), "model": ModelConfig(emb_dim=4, hidden_dim=8), "ensemble": 2}

    def whole(tune=False, **settings):
        recommender = CorrectSmoothRecommender(**{**quick, **settings}, progress=False)
        return run(tmp_path / "world", tmp_path / "out", recommender=recommender, tune=tune)

    return whole, len(world.ratings)


def counting(patch, module, name, count):
    "Note what `count` says of the arguments of each call of a function, wherever it was imported."
    before, seen = getattr(module, name), []

    def counted(*args, **named):
        seen.append(count(*args, **named))
        return before(*args, **named)

    for other in [other for key, other in sys.modules.items() if key.startswith("correct_smooth")]:
        if getattr(other, name, None) is before:
            patch.setattr(other, name, counted)
    return seen


@pytest.mark.parametrize("tune", [False, True])
def test_every_rating_is_numbered_once(small_run, monkeypatch, tune):
    "From files to results, held-out ratings and those to stop and to tune by among them."
    whole, n = small_run
    users = counting(monkeypatch, dataset, "_sorted_users", len)
    items = counting(monkeypatch, dataset, "positions", lambda ids, *_: len(ids))
    made = counting(monkeypatch, dataset, "index_ratings", lambda data: isinstance(data, MovieData))
    found = whole(tune)
    assert found["data"]["ratings"] == n
    assert users == [n] and items == [n]
    assert sum(made) == 1 and len(made) > 1  # whoever else asks gets the data set that is there


def test_a_graph_is_normalised_when_it_is_read(small_run, monkeypatch):
    "Never by the defaults; once to smooth over, for all scores and lists; in training for an encoder."
    whole, _ = small_run
    calls = counting(monkeypatch, graph, "normalise", lambda A, how="row": (A.shape, how))
    whole(watch=None)
    assert calls == []
    whole()
    assert calls == [((80, 80), "row")]  # the content graph that watch scores are smoothed over
    calls.clear()
    whole(refinement=CorrectAndSmooth(T=1), watch=None)
    assert calls == [((80, 80), "row")]
    calls.clear()
    whole(model=ModelConfig(emb_dim=4, hidden_dim=8, encoder="sage"), watch=None)
    assert calls == [((80, 80), "row")] * 2  # the trainings', the model's
