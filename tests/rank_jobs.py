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

from correct_smooth import ranks, recommender
from correct_smooth import train as training
from correct_smooth.data import holdout, index_ratings, split
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig, cosine_knn, film_graph, normalise
from correct_smooth.model import ModelConfig
from correct_smooth.ranks import everybodys_population, joined, load_share, own_part, rank
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.train import TrainConfig, train

LONGEST = 600  # seconds after which a rank hangs, on any machine: it is killed, and the test fails
CALM = ModelConfig(emb_dim=6, hidden_dim=10, head_dim=5, dropout=0.0, id_dropout=0.0)
MODELS = {
    "plain": CALM,
    "all": replace(CALM, encoder="sage", head="mlp", id_embedding=True),
}
WHOLE = TrainConfig(epochs=6, batch_size=10_000)  # all ratings in a step
PARTS = replace(WHOLE, batch_size=300, schedule="cosine", user_weight_decay=3.0)


def quick(**settings):
    "A recommender that is soon fitted."
    return CorrectSmoothRecommender(
        **{
            "graph": GraphConfig(k=5, corating_k=20),
            "model": ModelConfig(emb_dim=6, hidden_dim=10),
            "training": TrainConfig(epochs=5, batch_size=400),
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


def split_by(data, hidden, labels="train"):
    "As `split`, with the population of all ranks."
    return split(data, hidden, labels, people=everybodys_population(data.ratings[~hidden]))


def made(folder, watched=True):
    "Features, ratings to learn from and to stop by, graph: of this rank."
    data, before = load_share(folder)
    X = MovieFeatures().fit_transform(data.movies)
    learn, stop_by = map(own_part, split_by(data, holdout(data.ratings, 0.2, 1, before)))
    if not watched:
        learn, stop_by = replace(own_part(data), population=everybodys_population(data.ratings)), None
    pairs = index_ratings(learn)
    S = normalise(cosine_knn(X, 5, shared=True))
    return X, pairs, None if stop_by is None else index_ratings(stop_by, pairs.users), S


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
            mock.patch.object(torch.optim.Adam, "step", step),
        ):
            try:
                train(X, pairs, None, model, config, 3, False, S)
            except Enough:
                continue
        raise AssertionError("no step was taken")
    return found


def arrays_of(state, names=""):
    return {names + k: o.numpy(force=True).copy() for k, o in state.items()}


def train_on(folder, checkpoint=None, die=None, spoil=None, model=None, config=PARTS, watched=True):
    "Train; what the training was at its beginning, and where it was broken off or how it ended."
    X, pairs, valid, S = made(folder, watched)
    model = replace(MODELS["all"], dropout=0.3, id_dropout=0.3) if model is None else model
    found = {"users": pairs.users.to_numpy(), "place": ranks.numbering(pairs.users)}
    begin, epoch_of = training._Training.__init__, training.train_epoch
    save, now = training.save_tensors, []

    def note(prefix):
        tensors, numbers = now[0].state()
        for name, o in arrays_of(tensors).items():
            found[f"{prefix}.{name}"] = o
        found[f"{prefix}.history"] = pd.DataFrame(numbers["history"], dtype=float).to_numpy()
        found[f"{prefix}.best"] = np.array(numbers["best"], float)
        found[f"{prefix}.rng"] = np.frombuffer(json.dumps(numbers["rng"]).encode(), np.uint8)

    def init(self, *args):
        begin(self, *args)
        now.append(self)
        note("first")

    def train_epoch(*args):
        if args[7] == die:
            note("last")
            raise Enough
        return epoch_of(*args)

    def save_tensors(path, *args):
        if spoil is not None and rank() == 1 and f"-{spoil}-" in str(path):
            raise Enough
        save(path, *args)

    with (
        mock.patch.object(training._Training, "__init__", init),
        mock.patch.object(training, "train_epoch", train_epoch),
        mock.patch.object(training, "save_tensors", save_tensors),
        mock.patch.object(training, "CHECKPOINT_SECONDS", 0),
    ):
        try:
            result = train(X, pairs, valid, model, config, 3, False, S, checkpoint=checkpoint)
        except Enough:
            if spoil is not None:
                raise
            return found
    found["history"] = result.history.to_numpy()
    found["epochs"] = np.array(result.epochs)
    return found | arrays_of(result.model.state_dict(), "model.")


def each_its_own(folders, edges=None):
    "Fit, each rank to the folder, and to the graph, of its number."
    data, _ = load_share(folders[rank()])
    table = None if edges is None else pd.DataFrame({"source": [0, 1], "target": [1, edges[rank()]]})
    quick(ensemble=1).fit(own_part(data), table)


def graphs(folder):
    "Film graphs of several kinds."
    data, _ = load_share(folder)
    data = own_part(data)
    features = MovieFeatures().fit(data.movies)
    X, pairs, found = features.transform(data.movies), index_ratings(data), {}
    for config in GRAPHS:
        A = film_graph(X, features.blocks_, pairs, config)
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
    found, fit = {}, recommender.train

    def spy(X, pairs, valid=None, *args, **kwargs):
        n = sum(o.startswith("pairs") and o.endswith("item") for o in found)
        for name, o in (("pairs", pairs), ("valid", valid)):
            if o is not None:
                found[f"{name}.{n}.user"] = o.users.to_numpy()[o.user]
                found[f"{name}.{n}.item"] = o.items.to_numpy()[o.item]
        return fit(X, pairs, valid, *args, **kwargs)

    with mock.patch.object(recommender, "train", spy):
        recommender.run(folder, out, 5, quick(**(settings or {})), tune=tune)
    return found


def parts_of(folder, labels):
    "This rank's training and held-out ratings, as `run` splits them."
    data, before = load_share(folder)
    both = map(own_part, split_by(data, holdout(data.ratings, 0.2, 5, before), labels))
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
    plain = recommender.from_preset("default", **recommender.parse_settings(SETTINGS), progress=False)
    recommender.run(folder, out, 0, plain)


COMMAND = """
import os, signal, sys
from correct_smooth import train as training
from correct_smooth.recommender import cs_run

if os.environ.get("WRONG") == os.environ["RANK"]:
    sys.argv[-1] = "nonsense=1"

training.CHECKPOINT_SECONDS = 0
train_epoch, rank, life = training.train_epoch, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]

def noted(*args):
    with open("log", "a") as log:
        log.write(f"{life} {rank} {args[7]}\\n")
    if os.environ.get("DIE") == f"{life} {rank} {args[7]}":
        os.kill(os.getpid(), signal.SIGKILL)
    return train_epoch(*args)

training.train_epoch = noted
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
    n, at = ranks.size(), ranks.rank()
    for kind in KINDS:
        for shape in SHAPES:
            for m in (0, 1, 5):
                wanted = [own_values(o, kind, shape, m) for o in range(n)]
                found = ranks.gather(wanted[at])
                first = ranks.gather(wanted[at], first_only=True)
                assert len(found) == n and len(first) == (0 if at else n)
                for told in (found, first or wanted):
                    for one, other in zip(told, wanted, strict=True):
                        assert one.dtype == other.dtype and one.shape == other.shape
                        assert one.tobytes() == other.tobytes()
    strided = [np.arange(20).reshape(4, 5).T[::2] + o for o in range(n)]
    assert all((a == b).all() for a, b in zip(ranks.gather(strided[at]), strided, strict=True))

    for values in (
        3,
        -2.5,
        True,
        np.arange(4, dtype=np.int8) + 120,
        np.eye(2, dtype=np.float32),
        np.zeros((0, 3)),
    ):
        added = ranks.total(values * (at + 1) if not isinstance(values, bool) else values)
        times = n if isinstance(values, bool) else n * (n + 1) // 2
        wanted = (
            np.asarray(values).astype(np.float64 if np.asarray(values).dtype.kind == "f" else np.int64)
            * times
        )
        assert added.dtype == wanted.dtype and added.shape == wanted.shape
    assert ranks.total(3 * (at + 1)) == 3 * n * (n + 1) // 2
    assert (ranks.total(np.full(2, 100, np.int8)) == 100 * n).all()  # beyond what eight bits hold
    assert ranks.total(2**53 + 1) == n * (2**53 + 1)  # and beyond what a float holds
    tenth = ranks.total(np.array([0.1 * (o + 1) for o in range(50)]) / (at + 1))
    assert len({o.tobytes() for o in ranks.gather(tenth)}) == 1
    kept = np.ones(2)
    ranks.total(kept)
    assert (kept == 1).all()  # what was handed in stays

    for empty in ((), (0,), (1,), range(1, n)):
        wanted = pd.concat([own_table(o, empty) for o in range(n) if o not in empty], ignore_index=True)
        pd.testing.assert_frame_equal(ranks.together(own_table(at, empty)), wanted)
        mine = ranks.together(own_table(at, empty), first_only=True)
        pd.testing.assert_frame_equal(mine, own_table(at, empty) if at else wanted)
    nobody = ranks.together(own_table(at, range(n)))
    assert len(nobody) == 0 and list(nobody) == list(own_table(0, ()))
    pd.testing.assert_frame_equal(ranks.from_first(own_table(7 if at == 0 else at, ())), own_table(7, ()))
    assert list(ranks.from_first(own_table(0, (0,)) if at == 0 else own_table(at, ()))) == list(
        own_table(0, ())
    )

    assert ranks.earlier(10 * (at + 1)) == sum(10 * (o + 1) for o in range(at))
    assert ranks.earlier(0) == 0
    for word in WORDS:
        assert ranks.said_by_first(word if at == 0 else "something else") == word

    for ids in (
        lambda o: [f"ü{o}-{k}" for k in range(4 * o)] + [f"a{o}"],
        lambda o: [10 * k - o for k in range(3 + o)],
    ):
        mine, every = pd.Index(ids(at)), sorted(k for o in range(n) for k in ids(o))
        place = ranks.numbering(mine)
        assert [every[k] for k in place] == list(mine) and place.dtype == np.int64
    nothing = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    if at == 0:
        nothing[0].grad = torch.arange(3.0)
        nothing[1].grad = torch.arange(4.0).reshape(2, 2).T  # not in one piece
    elif at == 1:
        nothing[1].grad = torch.ones(2, 2)
    ranks.sum_gradients(list(nothing))
    assert nothing[0].grad.tolist() == [0, 1, 2]
    assert nothing[1].grad.tolist() == [[1, 3], [2, 4]]
    return {"done": np.array(n)}
