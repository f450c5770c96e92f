"What the ranks of tests/test_ranks.py do, and how they are started: by a server that has imported all."

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from correct_smooth import checkpoint as checkpoints
from correct_smooth import distributed, ranks, shared_run
from correct_smooth import train as training
from correct_smooth.checkpoint import Checkpoint, state_of
from correct_smooth.dataset import holdout, index_ratings, judged, some_ratings, split
from correct_smooth.distributed import (
    SharedCheckpoint,
    everybodys_population,
    generator_behind,
    numbering,
    shared_graph,
    train_shared,
)
from correct_smooth.experiment import parse_settings, run
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig, item_graph, normalise
from correct_smooth.model import ModelConfig
from correct_smooth.partition import load_shard
from correct_smooth.ranks import joined, rank, shard_of, world_size
from correct_smooth.recommender import CorrectSmoothRecommender, from_preset
from correct_smooth.shared_run import SharedRecommender, SharedRun
from correct_smooth.train import Callback, TrainConfig, train

LONGEST = 600  # seconds after which a rank hangs, on any machine: it is killed, and the test fails
CALM = ModelConfig(emb_dim=6, hidden_dim=10, head_dim=5, dropout=0.0, id_dropout=0.0)
MODELS = {
    "plain": CALM,
    "all": replace(CALM, encoder="sage", head="mlp", id_embedding=True),
}
WHOLE = TrainConfig(epochs=6, batch_size=10_000)  # all ratings in a step
PARTS = replace(WHOLE, batch_size=300)


def quick(**settings):
    "A recommender that is soon fitted."
    return CorrectSmoothRecommender(
        **{
            "graph": GraphConfig(k=5, corating_k=20),
            "model": ModelConfig(emb_dim=6, hidden_dim=10),
            "training": TrainConfig(epochs=5, batch_size=400),
            "validation": 0.1,
            "ensemble": 2,
            "progress": False,
            **settings,
        }
    )


# --- starting ranks


def server():
    "A fork server that has imported what a rank needs."
    context = multiprocessing.get_context("forkserver")
    forkserver._forkserver._stop()  # there may be one that knows other modules
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        context.set_forkserver_preload(["torch._dynamo", __name__])
        forkserver.ensure_running()
    return context


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _as_rank(at, n, port, folder, job, args):
    "The life of a rank: arrays that its job returns end up in a file, and so does its error."
    os.environ |= {"RANK": str(at), "LOCAL_RANK": str(at), "WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared between processes
    try:
        with joined(minutes=LONGEST / 60):
            found = job(*args)
        arrays = {k: np.asarray(o) for k, o in (found or {}).items()}
        np.savez(
            folder / f"{at}.npz", **{k: o.astype(str) if o.dtype == object else o for k, o in arrays.items()}
        )
    except BaseException as error:
        told = {"kind": type(error).__name__, "error": str(error), "traceback": traceback.format_exc()}
        (folder / f"{at}.json").write_text(json.dumps(told))


def on_ranks(context, folder, n, job, *args):
    "Run a job on n ranks; what each found, as a dict of arrays, or the dict of its error."
    folder.mkdir(parents=True)
    port, end = free_port(), time.monotonic() + LONGEST
    all_ranks = [
        context.Process(target=_as_rank, args=(at, n, port, folder, job, args), daemon=True)
        for at in range(n)
    ]
    for one in all_ranks:
        one.start()
    for one in all_ranks:
        one.join(max(end - time.monotonic(), 0))
    hanging = [at for at, one in enumerate(all_ranks) if one.exitcode is None]
    for at in hanging:
        all_ranks[at].kill()
    found = []
    for at in range(n):
        if (folder / f"{at}.json").exists():
            found.append(json.loads((folder / f"{at}.json").read_text()))
        elif (folder / f"{at}.npz").exists():
            with np.load(folder / f"{at}.npz", allow_pickle=False) as arrays:
                found.append(dict(arrays))
    assert not hanging and len(found) == n, f"ranks {hanging} hang; the others: {found}"
    return found


def well(found):
    "The same, if no rank has failed."
    errors = [o["traceback"] for o in found if "traceback" in o]
    assert not errors, "\n".join(errors)
    return found


# --- training


def split_by(whole, hidden, labels="train"):
    "As `split`, with the population of all ranks."
    return split(whole, hidden, labels, people=people_of(whole, ~hidden))


def people_of(whole, kept):
    "How the users of all ranks rate, by some of the ratings that each has read."
    return everybodys_population(some_ratings(whole, kept, np.arange(len(whole.users))))


def made(folder, watched=True):
    "Features, ratings to learn from and to stop by, graph: of this rank."
    data, before = load_shard(folder)
    features, whole = MovieFeatures().fit(data.movies), index_ratings(data)
    X = features.transform(data.movies)
    learn, stop_by = map(shard_of, split_by(whole, holdout(whole, 0.2, generator_behind(1, before))))
    if not watched:
        everything = np.ones(len(whole), bool)
        learn, stop_by = judged(shard_of(whole), people=people_of(whole, everything)), None
    S = normalise(shared_graph(X, features.blocks_, learn, GraphConfig(k=5, symmetrise=False)))
    return X, learn, stop_by, S


def any_train(*args, **kwargs):
    "Where there are ranks, training with all of them."
    return (train_shared if world_size() > 1 else train)(*args, **kwargs)


class Enough(Exception):
    "Ends a training from inside."


def first_step(folder, config):
    "Weights before the first step of each kind of model, its gradients, and its ratings."
    X, pairs, _, S = made(folder, watched=False)
    found = {"users": pairs.users.to_numpy()}
    look = training.batch_logits

    for kind, model in MODELS.items():

        def batch_logits(model, X, pairs, batch, *args, kind=kind):
            found[f"{kind}.rows"] = np.array([pairs.user[batch.rows], pairs.item[batch.rows]])
            return look(model, X, pairs, batch, *args)

        def step(optimizer, kind=kind):
            for group, weights in zip(("shared", "users"), optimizer.param_groups, strict=True):
                for n, o in enumerate(weights["params"]):
                    found[f"{kind}.weight.{group}.{n}"] = o.detach().numpy().copy()
                    found[f"{kind}.grad.{group}.{n}"] = o.grad.numpy().copy()
            raise Enough

        with (
            mock.patch.object(training, "batch_logits", batch_logits),
            mock.patch.object(training._Adam, "step", step),
        ):
            try:
                any_train(X, pairs, None, model, config, 3, False, S)
            except Enough:
                continue
        raise AssertionError("no step was taken")
    return found


def arrays_of(state, names=""):
    return {names + k: o.numpy(force=True).copy() for k, o in state.items()}


class Noted(Callback):
    "Notes what a training is at its beginning, and where it is broken off."

    def __init__(self, found, die):
        self.found, self.die = found, die

    def note(self, training, prefix):
        tensors, numbers = state_of(training)
        self.found |= arrays_of(tensors, f"{prefix}.")
        self.found[f"{prefix}.history"] = pd.DataFrame(numbers["history"], dtype=float).to_numpy()
        self.found[f"{prefix}.best"] = np.array(numbers["best"], float)
        self.found[f"{prefix}.rng"] = np.frombuffer(json.dumps(numbers["rng"]).encode(), np.uint8)

    def on_train_begin(self, training):
        self.note(training, "first")

    def on_epoch_end(self, training):
        if training.epoch == self.die:
            self.note(training, "last")
            raise Enough


def train_on(folder, kept=None, die=None, spoil=None, model=None, config=PARTS, watched=True):
    "Train; what the training was at its beginning, and where it was broken off or how it ended."
    X, pairs, valid, S = made(folder, watched)
    model = replace(MODELS["all"], dropout=0.3, id_dropout=0.3) if model is None else model
    found = {"users": pairs.users.to_numpy(), "place": numbering(pairs.users)}
    save = distributed.save_tensors

    def save_tensors(path, *args):
        if spoil is not None and rank() == 1 and f"-{spoil}-" in str(path):
            raise Enough
        save(path, *args)

    # as the command does it: ranks, or one process that finds what ranks have left, or one alone
    together = world_size() > 1 or (kept is not None and any(kept.glob("*.json")))
    how, keeper = (train_shared, SharedCheckpoint) if together else (train, Checkpoint)
    callbacks = [*([] if kept is None else [keeper(kept)]), Noted(found, die)]
    with (
        mock.patch.object(distributed, "save_tensors", save_tensors),
        mock.patch.object(distributed, "CHECKPOINT_SECONDS", 0),
        mock.patch.object(checkpoints, "CHECKPOINT_SECONDS", 0),
    ):
        try:
            result = how(X, pairs, valid, model, config, 3, False, S, callbacks=callbacks)
        except Enough:
            if spoil is not None:
                raise
            return found
    found["history"] = result.history.to_numpy()
    found["epochs"] = np.array(result.epochs)
    return found | arrays_of(result.model.state_dict(), "model.")


def each_its_own(folders, edges=None):
    "Fit, each rank to the folder, and to the graph, of its number."
    data, _ = load_shard(folders[rank()])
    table = None if edges is None else pd.DataFrame({"source": [0, 1], "target": [1, edges[rank()]]})
    settings = quick(ensemble=1).get_params(deep=False)
    SharedRecommender(**settings).fit(shard_of(index_ratings(data)), table)


def graphs(folder):
    "Movie graphs of several kinds."
    data, _ = load_shard(folder)
    pairs = shard_of(index_ratings(data))
    features = MovieFeatures().fit(data.movies)
    X, found = features.transform(data.movies), {}
    for config in GRAPHS:
        A = (shared_graph if world_size() > 1 else item_graph)(X, features.blocks_, pairs, config)
        for part in ("data", "indices", "indptr"):
            found[f"{config}.{part}"] = getattr(A, part)
    return found


GRAPHS = (
    GraphConfig(k=5),
    GraphConfig(k=3, corating=0, symmetrise=False),
    GraphConfig(corating=2, corating_k=7),
)


# --- whole runs


def run_on(folder, out, tune=False, settings=None):
    "A run; the ratings that each of its trainings had."
    found, fit = {}, shared_run.train_shared

    def spy(X, pairs, valid=None, *args, **kwargs):
        n = sum(o.startswith("pairs") and o.endswith("item") for o in found)
        for name, o in (("pairs", pairs), ("valid", valid)):
            if o is not None:
                found[f"{name}.{n}.user"] = o.users.to_numpy()[o.user]
                found[f"{name}.{n}.item"] = o.items.to_numpy()[o.item]
        return fit(X, pairs, valid, *args, **kwargs)

    with mock.patch.object(shared_run, "train_shared", spy):
        run(folder, out, 5, quick(**(settings or {})), tune=tune, stages=SharedRun)
    return found


def parts_of(folder, labels):
    "This rank's training and held-out ratings, as `run` splits them."
    data, before = load_shard(folder)
    whole = index_ratings(data)
    both = map(shard_of, split_by(whole, holdout(whole, 0.2, generator_behind(5, before)), labels))
    found = {"before": np.array(before)}
    for name, o in zip(("train", "test"), both, strict=True):
        for column in ("user_id", "item_id", "rating"):
            found[f"{name}.{column}"] = o.ratings[column].to_numpy()
        found[f"{name}.line"] = o.thresholds.to_numpy()
    return found


SETTINGS = (
    "training__epochs=8 training__batch_size=300 model__emb_dim=4 model__hidden_dim=8 graph__k=5 ensemble=1"
)


def undisturbed(folder, out):
    "A run as the command makes it."
    plain = from_preset("default", **parse_settings(SETTINGS), progress=False)
    run(folder, out, 0, plain, stages=SharedRun)


COMMAND = """
import os, signal, sys
from correct_smooth import distributed
from correct_smooth.experiment import cs_run

if os.environ.get("WRONG") == os.environ["RANK"]:
    sys.argv[-1] = "nonsense=1"

distributed.CHECKPOINT_SECONDS = 0
losses, rank = distributed.SharedTraining.losses, os.environ["RANK"]
life = os.environ["TORCHELASTIC_RESTART_COUNT"]

def noted(training):
    with open("log", "a") as log:
        log.write(f"{life} {rank} {training.epoch}\\n")
    if os.environ.get("DIE") == f"{life} {rank} {training.epoch}":
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(training)

distributed.SharedTraining.losses = noted
cs_run()
"""


def by_torchrun(folder, data, *flags, settings=SETTINGS, **environ):
    "Start `cs_run` under torchrun, in a folder that holds nothing else; results go to out."
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(COMMAND)
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "job.py"]
    command += ["--data", str(data), "--out", "out", "--settings", settings]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environ
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)


def ended(process, seconds=LONGEST):
    "What it said, once it has ended; it is killed if it does not."
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        raise


# --- what ranks say


KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "float32", "float64", "bool")
SHAPES = ((), (3,), (2, 2), (0,))


def own_values(at, kind, shape, n):
    "Some values that a rank might have; rank 1 has none where n is 0."
    rng = np.random.default_rng([at, len(shape)])
    return (rng.normal(size=(n * (at != 1) + (n > 0), *shape)) * 100).astype(kind)


def own_table(at, empty):
    "A table that a rank might have; every so many a rank has none."
    n = 0 if at in empty else 3 + at
    return pd.DataFrame(
        {
            "user_id": [f"é{at}-{k} 映画 \U0001f3ac" for k in range(n)],
            "item": np.arange(n, dtype=np.int32) - at,
            "score": np.arange(n, dtype=np.float32) / 3,
            "liked": np.arange(n) % 2 == 0,
        }
    ).astype({"user_id": "str"})


WORDS = ["", "due", "Amélie – 天空の城 \U0001f3ac", "x" * 100_000, "a\nb\0c"]


def talk():
    "Everything ranks can say to each other, compared with what they would say."
    n, at = ranks.world_size(), ranks.rank()
    for kind in KINDS:
        for shape in SHAPES:
            for m in (0, 1, 5):
                wanted = [own_values(o, kind, shape, m) for o in range(n)]
                found = ranks.all_gather(wanted[at])
                first = ranks.all_gather(wanted[at], first_only=True)
                assert len(found) == n and len(first) == (0 if at else n)
                for told in (found, first or wanted):
                    for one, other in zip(told, wanted, strict=True):
                        assert one.dtype == other.dtype and one.shape == other.shape
                        assert one.tobytes() == other.tobytes()
    strided = [np.arange(20).reshape(4, 5).T[::2] + o for o in range(n)]
    assert all((a == b).all() for a, b in zip(ranks.all_gather(strided[at]), strided, strict=True))

    for values in (
        3,
        -2.5,
        True,
        np.arange(4, dtype=np.int8) + 120,
        np.eye(2, dtype=np.float32),
        np.zeros((0, 3)),
    ):
        added = ranks.all_reduce_sum(values * (at + 1) if not isinstance(values, bool) else values)
        times = n if isinstance(values, bool) else n * (n + 1) // 2
        wanted = (
            np.asarray(values).astype(np.float64 if np.asarray(values).dtype.kind == "f" else np.int64)
            * times
        )
        assert added.dtype == wanted.dtype and added.shape == wanted.shape
    assert ranks.all_reduce_sum(3 * (at + 1)) == 3 * n * (n + 1) // 2
    assert (ranks.all_reduce_sum(np.full(2, 100, np.int8)) == 100 * n).all()  # beyond what eight bits hold
    assert ranks.all_reduce_sum(2**53 + 1) == n * (2**53 + 1)  # and beyond what a float holds
    tenth = ranks.all_reduce_sum(np.array([0.1 * (o + 1) for o in range(50)]) / (at + 1))
    assert len({o.tobytes() for o in ranks.all_gather(tenth)}) == 1
    kept = np.ones(2)
    ranks.all_reduce_sum(kept)
    assert (kept == 1).all()  # what was handed in stays

    for empty in ((), (0,), (1,), range(1, n)):
        wanted = pd.concat([own_table(o, empty) for o in range(n) if o not in empty], ignore_index=True)
        pd.testing.assert_frame_equal(ranks.gather_table(own_table(at, empty)), wanted)
        mine = ranks.gather_table(own_table(at, empty), first_only=True)
        pd.testing.assert_frame_equal(mine, own_table(at, empty) if at else wanted)
    nobody = ranks.gather_table(own_table(at, range(n)))
    assert len(nobody) == 0 and list(nobody) == list(own_table(0, ()))
    pd.testing.assert_frame_equal(
        ranks.broadcast_table(own_table(7 if at == 0 else at, ())), own_table(7, ())
    )
    assert list(ranks.broadcast_table(own_table(0, (0,)) if at == 0 else own_table(at, ()))) == list(
        own_table(0, ())
    )

    assert ranks.count_before(10 * (at + 1)) == sum(10 * (o + 1) for o in range(at))
    assert ranks.count_before(0) == 0
    for word in WORDS:
        assert ranks.broadcast(word if at == 0 else "something else") == word

    for ids in (
        lambda o: [f"ü{o}-{k}" for k in range(4 * o)] + [f"a{o}"],
        lambda o: [10 * k - o for k in range(3 + o)],
    ):
        mine, every = pd.Index(ids(at)), sorted(k for o in range(n) for k in ids(o))
        place = numbering(mine)
        assert [every[k] for k in place] == list(mine) and place.dtype == np.int64
    nothing = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    if at == 0:
        nothing[0].grad = torch.arange(3.0)
        nothing[1].grad = torch.arange(4.0).reshape(2, 2).T  # not in one piece
    elif at == 1:
        nothing[1].grad = torch.ones(2, 2)
    ranks.sum_in_place(list(nothing))
    assert nothing[0].grad.tolist() == [0, 1, 2]
    assert nothing[1].grad.tolist() == [[1, 3], [2, 4]]
    return {"done": np.array(n)}
