"""Killed training goes on from its checkpoint to the same weights, bit for bit; files are whole or absent."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import forkserver

import numpy as np
import pandas as pd
import pytest
import torch
from effort import LONG, tried
from hypothesis import given
from hypothesis import strategies as st
from limits import largest_file
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from correct_smooth import checkpoint, encoders, tensors
from correct_smooth import train as training
from correct_smooth.checkpoint import Checkpoint
from correct_smooth.checks import InputError
from correct_smooth.dataset import holdout, split
from correct_smooth.features import MovieFeatures
from correct_smooth.graph import GraphConfig, cosine_knn, normalise
from correct_smooth.model import ItemUserModel, ModelConfig
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.tensors import load_tensors, save_tensors
from correct_smooth.train import Callback, TrainConfig, Training, train

assert encoders.ENCODERS  # loaded, so that "sage" can be made
SMALL = ModelConfig(emb_dim=6, hidden_dim=10, head_dim=5)
OPTIONS = {
    "plain": SMALL,
    "no dropout": replace(SMALL, dropout=0.0),
    "all": replace(SMALL, encoder="sage", head="mlp", id_embedding=True),
}
SHORT = TrainConfig(epochs=7, batch_size=300, learning_rate=3e-3)


@pytest.fixture(scope="module")
def made():
    "Features, ratings to learn from and to stop by, and the graph of a small made-up world."
    world = synthetic_data(60, 80, 1500)
    X = MovieFeatures().fit_transform(world.movies)
    learn, stop_by = split(world, holdout(world.ratings, 0.2, seed=1))
    return X, learn, stop_by, normalise(cosine_knn(X, 5))


@pytest.fixture
def every_epoch(monkeypatch):
    "A checkpoint after each epoch."
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)


def same(one, two):
    "Whether two trainings ended alike, to the last bit."
    a, b = one.model.state_dict(), two.model.state_dict()
    pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)
    return one.epochs == two.epochs and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    "Stands for whatever ends a training from outside."


@contextmanager
def dying(epoch):
    "Training raises when it comes to this epoch, or in the middle of it."
    before, steps = Training.losses, training.batch_logits
    met = []

    def losses(self):
        met.append(self.epoch)
        if self.epoch == int(epoch) and epoch == int(epoch):
            raise Killed
        return before(self)

    def batch_logits(model, *args):
        if model.training and met[-1] == int(epoch) and epoch != int(epoch):
            met.append(np.inf)  # at the second batch
        elif met[-1] == np.inf:
            raise Killed
        return steps(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "losses", losses)
        patch.setattr(training, "batch_logits", batch_logits)
        with pytest.raises(Killed):
            yield


@contextmanager
def no_training():
    "To train so much as an epoch fails."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_epoch", lambda *_: pytest.fail("trained again"))
        yield


# --- interrupted and taken up


@pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
def test_broken_off_anywhere(made, config, watched, tmp_path, every_epoch):
    "Before each epoch and in the middle of each, once and again and again."
    X, pairs, held, S = made
    args = (X, pairs, held if watched else None, config, SHORT, 3, False, S)
    quiet = train(*args)
    for epoch in np.arange(0, SHORT.epochs, 0.5):
        with dying(epoch):
            train(*args, callbacks=[Checkpoint(tmp_path / str(epoch))])
        assert same(train(*args, callbacks=[Checkpoint(tmp_path / str(epoch))]), quiet)
        with dying(epoch):
            train(*args, callbacks=[Checkpoint(tmp_path / "often")])
    assert same(train(*args, callbacks=[Checkpoint(tmp_path / "often")]), quiet)
    assert len(list((tmp_path / "often").iterdir())) == 1


def test_patience_is_remembered(made, tmp_path, every_epoch):
    "Broken off while patience runs, training stops at the same epoch, with the same best weights."
    X, pairs, held, _ = made
    config = TrainConfig(epochs=40, batch_size=300, learning_rate=0.05, patience=3)
    args = (X, pairs, held, SMALL, config, 0, False)
    quiet = train(*args)
    ran = len(quiet.history)
    assert quiet.epochs + 3 == ran < 40
    for epoch in range(quiet.epochs, ran):
        with dying(epoch):
            train(*args, callbacks=[Checkpoint(tmp_path)])
    assert same(train(*args, callbacks=[Checkpoint(tmp_path)]), quiet)


def test_one_step_after_the_break(made, tmp_path, every_epoch):
    "State before and after a file: weights, moments, steps, random numbers."
    X, pairs, held, _ = made
    with dying(2):
        train(X, pairs, held, SMALL, SHORT, 3, False, callbacks=[Checkpoint(tmp_path)])
    (file,) = tmp_path.iterdir()
    before, about = load_tensors(file)
    torch.manual_seed(99)
    kept, state = Checkpoint(tmp_path), Training(X, pairs, held, SMALL, SHORT, 3)
    state.begin()
    state.rng = np.random.default_rng(99)
    kept.on_train_begin(state)
    assert state.epoch == 2 and not state.over
    assert state.model.user.weight.grad is None  # made anew at each step
    file.unlink()
    kept.on_epoch_end(state)
    stored, told = load_tensors(file)
    assert told["numbers"] == about["numbers"] and stored.keys() == before.keys()
    assert all(torch.equal(stored[k], before[k]) for k in stored)
    assert {int(o) for k, o in stored.items() if k.endswith(".step")} == {2 * len(range(0, len(pairs), 300))}


def test_your_random_numbers_are_left_alone(made, tmp_path, every_epoch):
    X, pairs, held, _ = made
    with dying(2):
        train(X, pairs, held, SMALL, SHORT, 3, False, callbacks=[Checkpoint(tmp_path)])
    before = torch.random.get_rng_state()
    train(X, pairs, held, SMALL, SHORT, 3, False, callbacks=[Checkpoint(tmp_path)])
    assert torch.equal(before, torch.random.get_rng_state())


def test_finished_is_finished(made, tmp_path):
    "Kept at the end even if no time has passed, and not trained again; a bar of all epochs has none to do."
    X, pairs, held, _ = made
    args = (X, pairs, held, SMALL, SHORT, 3)
    quiet = train(*args, progress=False, callbacks=[Checkpoint(tmp_path)])
    with no_training():
        assert same(train(*args, progress=False, callbacks=[Checkpoint(tmp_path)]), quiet)
        assert same(train(*args, callbacks=[Checkpoint(str(tmp_path))]), quiet)
    assert not any(o.requires_grad is False for o in quiet.model.parameters())


def test_not_before_its_time(made, tmp_path):
    "Within the ten seconds nothing is written before the end."
    X, pairs, held, _ = made
    with dying(6):
        train(X, pairs, held, SMALL, SHORT, 3, False, callbacks=[Checkpoint(tmp_path / "new" / "folder")])
    assert list((tmp_path / "new" / "folder").iterdir()) == []


# --- killed


def work(made, config, folder, out, sabotage, steps=None):
    "Train in a process of its own, and leave the weights in a file; each step of it is told to a pipe."
    torch.set_num_threads(1)
    tqdm.set_lock(
        threading.RLock()
    )  # its own is shared between processes, and outlives those that are killed
    X, pairs, held, S = made
    checkpoint.CHECKPOINT_SECONDS = 0
    if steps is not None:
        tell_steps(steps)
    if sabotage is not None:
        sabotage()
    result = train(X, pairs, held, OPTIONS["all"], config, 3, False, S, callbacks=[Checkpoint(folder)])
    save_tensors(out, result.model.state_dict(), {"history": result.history.to_json(double_precision=15)})


def tell_steps(pipe):
    "A byte before each epoch, each batch, and each stage of writing a checkpoint."

    def telling(step):
        def told(*args):
            pipe.send_bytes(b"!")
            return step(*args)

        return told

    for module, name in ((training, "train_epoch"), (training, "batch_logits"), (tensors, "save_file")):
        setattr(module, name, telling(getattr(module, name)))
    for name in ("fsync", "replace"):
        setattr(os, name, telling(getattr(os, name)))


def kill_between_write_and_rename():
    whole, left = os.replace, iter(range(5))

    def replace(*args):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*args)

    os.replace = replace


def kill_in_the_middle_of_writing():
    whole, left = tensors.save_file, iter(range(5))

    def save_file(arrays, path, metadata):
        whole(arrays, path, metadata)
        if next(left, None) is None:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    tensors.save_file = save_file


@pytest.fixture(scope="module")
def processes():
    "Starts processes that have imported everything, without the threads of this one."
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        context.set_forkserver_preload(
            ["torch._dynamo", __name__]
        )  # the first: the first optimizer imports it
        forkserver.ensure_running()

    def start(*args):
        process = context.Process(target=work, args=args)
        process.start()
        return process

    return start


def finish(process, out):
    "What a process that is left alone ends with."
    process.join(600)
    assert process.exitcode == 0
    return load_tensors(out)


def equal(one, two):
    return one[1] == two[1] and all(torch.equal(one[0][k], two[0][k]) for k in one[0] | two[0])


def watched(processes, *args):
    "A process that trains, and its steps, one after the other as it takes them."
    steps, told = multiprocessing.Pipe(duplex=False)
    process = processes(*args, None, told)
    told.close()  # so that its end is the end of the pipe

    def each():
        with suppress(EOFError):
            while True:
                yield steps.recv_bytes()

    return process, each()


def killed_at_random(made, processes, folder, kills, config, seed):
    "Kill and start again, so often; each training that comes to its end ends like the undisturbed one."
    out, rng, asked, ends, taken_up = folder / "out.safetensors", np.random.default_rng(seed), kills, 0, 0
    process, steps = watched(processes, made, config, folder / "quiet", out)
    life = len(list(steps))
    quiet = finish(process, out)
    while kills:
        process, steps = watched(processes, made, config, folder / str(ends), out)
        last = rng.integers(life // 4)
        for k, _ in enumerate(steps):
            if k == last:
                process.kill()  # somewhere behind that step
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills -= 1
            taken_up += any((folder / str(ends)).glob("*.safetensors"))
        else:
            assert process.exitcode == 0 and equal(load_tensors(out), quiet)
            ends += 1
    assert taken_up > asked / 3
    assert equal(finish(processes(made, config, folder / str(ends), out, None), out), quiet)
    assert [o.suffix for o in (folder / str(ends)).iterdir()] == [".safetensors"]  # no half file is left


def test_killed_at_random(made, processes, tmp_path):
    config = replace(SHORT, epochs=20, patience=20)
    killed_at_random(made, processes, tmp_path, 8, config, 0)


@pytest.mark.skipif(not LONG, reason="takes minutes; set CORRECT_SMOOTH_LONG to run it")
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_a_hundred_times(made, processes, tmp_path, seed):
    config = replace(SHORT, epochs=200, patience=200, batch_size=100 * seed)
    killed_at_random(made, processes, tmp_path, 100, config, seed)


@pytest.mark.parametrize("sabotage", [kill_between_write_and_rename, kill_in_the_middle_of_writing])
def test_killed_while_writing(made, processes, tmp_path, sabotage):
    "The checkpoint before it is whole, and training goes on from there; what was left behind goes."
    out, folder = tmp_path / "out.safetensors", tmp_path / "kept"
    quiet = finish(processes(made, SHORT, tmp_path / "quiet", out, None), out)
    process = processes(made, SHORT, folder, out, sabotage)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (file,) = folder.glob("*.safetensors")
    assert len(json.loads(load_tensors(file)[1]["numbers"])["history"]) == 5
    assert len(list(folder.iterdir())) == 2
    assert equal(finish(processes(made, SHORT, folder, out, None), out), quiet)
    assert list(folder.iterdir()) == [file]


# --- no room


def test_no_room_for_a_checkpoint(made, tmp_path, every_epoch):
    "Training says so; the checkpoint before is whole and alone; once there is room, it goes on."
    X, pairs, held, S = made
    args = (X, pairs, held, OPTIONS["all"], SHORT, 3, False, S)
    quiet = train(*args)
    with largest_file(4096), pytest.raises(OSError, match="cannot be written.*too large"):
        train(*args, callbacks=[Checkpoint(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    with dying(3):
        train(*args, callbacks=[Checkpoint(tmp_path)])
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with largest_file(4096), pytest.raises(OSError, match="cannot be written.*too large"):
        train(*args, callbacks=[Checkpoint(tmp_path)])
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before
    assert same(train(*args, callbacks=[Checkpoint(tmp_path)]), quiet)


@pytest.mark.parametrize("call", ["save_file", "os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_error_while_writing(tmp_path, monkeypatch, call, error):
    "Whichever step fails, the old file stays and no other."
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    before = (tmp_path / "a.safetensors").read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(f"correct_smooth.tensors.{call}", fail)
    with pytest.raises(OSError):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)})
    monkeypatch.undo()
    assert [o.name for o in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(OSError):
            save_tensors(path, {"x": torch.ones(3)})
    assert [o.name for o in tmp_path.iterdir()] == ["folder"]


# --- files


KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@tried(40, 500)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=3))),
    st.dictionaries(NAMES, NAMES),
)
def test_what_is_written_is_read(tmp_path, kinds, metadata):
    "Any names, types and shapes; also none."
    tensors = {
        k: (torch.rand(shape) * 9).to(kind) for k, (kind, shape) in kinds.items() if k != "__metadata__"
    }
    save_tensors(tmp_path / "a.safetensors", tensors, metadata)
    back, about = load_tensors(tmp_path / "a.safetensors")
    assert about == metadata and back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) and back[k].dtype == tensors[k].dtype for k in tensors)
    assert [o.name for o in tmp_path.iterdir()] == ["a.safetensors"]


def test_views_are_written_as_they_look(tmp_path):
    x = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    save_tensors(tmp_path / "a.safetensors", {"x": x.T})
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")[0]["x"], x.detach().T)


def test_foreign_files_are_refused(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "plain.safetensors")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello " * 100)
    for name, why in {
        "none": "there is no file",
        "plain.safetensors": "carries no sum",
        "empty": "cut off, or no safetensors",
        "text": "cut off, or no safetensors",
        ".": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=why):
            load_tensors(tmp_path / name)


@pytest.fixture(scope="module")
def kept(made, tmp_path_factory):
    "A training, its checkpoint of the third epoch, and how it ends."
    X, pairs, held, S = made
    folder = tmp_path_factory.mktemp("kept")
    args = (X, pairs, held, OPTIONS["all"], SHORT, 3, False, S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0)
        with dying(3):
            train(*args, callbacks=[Checkpoint(folder)])
    (file,) = folder.iterdir()
    return args, file, file.read_bytes(), train(*args)


def refused_or_the_same(kept, content):
    "A damaged checkpoint is refused, with a way out; if nothing that matters is hurt, nothing changes."
    args, file, _, quiet = kept
    file.write_bytes(content)
    try:
        ended = train(*args, callbacks=[Checkpoint(file.parent)])
    except InputError as error:
        assert file.name in str(error) and "delete that file" in str(error)
        return True
    return not same(ended, quiet)


@tried(20, 300)
@given(st.integers(0, 10**9), st.sampled_from([1, 20, 1000]))
def test_cut_off_checkpoints_are_refused(kept, at, of):
    "Anywhere, and often near the beginning or the end."
    whole = kept[2]
    n = at % (len(whole) // of)
    for cut in (n, len(whole) - 1 - n):
        assert refused_or_the_same(kept, whole[:cut])
    assert refused_or_the_same(kept, whole + b"\0" * (1 + n % 9))


@tried(50, 500)
@given(st.data())
def test_bits_that_fell_over_are_noticed(kept, data):
    "One to three, anywhere in the weights or in the header before them."
    whole = bytearray(kept[2])
    header = 8 + int.from_bytes(whole[:8], "little")
    end = data.draw(st.sampled_from([8, header, len(whole)]))
    for at in data.draw(st.sets(st.integers(0, 8 * end - 1), min_size=1, max_size=3)):
        whole[at // 8] ^= 1 << at % 8
    assert refused_or_the_same(kept, bytes(whole))


def test_every_byte_of_a_header(tmp_path):
    "Each replaced by some others: refused, or read as it was written."
    tensors, metadata = {"a": torch.arange(3.0), "b": torch.arange(3)}, {"k": "v"}
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, metadata)
    whole, read = path.read_bytes(), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header):
        for byte in {0, 32, 34, 48, 255, whole[at] ^ 1} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                back, about = load_tensors(path)
            except InputError:
                continue
            read += 1
            assert about == metadata and all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert read < header  # blanks that pad it, at most


def test_other_files_under_its_name_are_refused(kept, made, tmp_path):
    "Sealed weights of something else, and the checkpoint of another seed."
    args, file, _, _ = kept
    save_tensors(file, {"x": torch.ones(3)})
    with pytest.raises(InputError, match="not the checkpoint of this training.*delete that file"):
        train(*args, callbacks=[Checkpoint(file.parent)])
    save_tensors(file, {"x": torch.ones(3)}, {"training": file.stem, "numbers": "{}"})
    with pytest.raises(InputError, match="delete that file"):
        train(*args, callbacks=[Checkpoint(file.parent)])
    X, pairs, held, _ = made
    train(X, pairs, held, OPTIONS["all"], SHORT, 4, False, made[3], callbacks=[Checkpoint(tmp_path)])
    (other,) = tmp_path.iterdir()
    file.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="not the checkpoint of this training"):
        train(*args, callbacks=[Checkpoint(file.parent)])


@pytest.mark.parametrize("folder", ["file", "file/below", "nul\0", 3], ids=str)
def test_wrong_folders_are_refused(made, tmp_path, folder):
    (tmp_path / "file").touch()
    folder = tmp_path / folder if isinstance(folder, str) else folder
    with pytest.raises(InputError, match="checkpoint must be a folder"):
        train(*made[:2], callbacks=[Checkpoint(folder)])


# --- another training, another file


def test_other_trainings_have_other_files(made, tmp_path):
    "Whatever is changed, the old checkpoint is left alone and training begins anew."
    X, pairs, held, S = made
    base = {
        "X": X,
        "pairs": pairs,
        "valid": held,
        "model_config": SMALL,
        "config": SHORT,
        "seed": 3,
        "S": None,
    }
    rating, wider = pairs.rating.copy(), X.copy()
    rating[0] = 6 - rating[0]
    wider.data[0] *= 2
    changes = [
        {"X": wider}, {"X": wider.astype(np.float64)}, {"pairs": replace(pairs, rating=rating)},
        {"pairs": replace(pairs, y=1 - pairs.y)}, {"pairs": replace(pairs, user=pairs.user[::-1].copy())},
        {"pairs": replace(pairs, users=pairs.users.append(pd.Index(["new"])))},
        {"valid": None}, {"valid": replace(held, y=1 - held.y)}, {"valid": pairs}, {"S": S}, {"seed": 4},
        {"stop": 5}, {"model_config": replace(SMALL, dropout=0.1)},
        {"config": replace(SHORT, patience=4)}, {"config": replace(SHORT, weight_decay=1.0)},
        {"start": ItemUserModel(X.shape[1], len(pairs.users), X.shape[0], SMALL)},
    ]  # fmt: skip
    for change in ({}, *changes):
        files = set(tmp_path.iterdir())
        train(**base | change, progress=False, callbacks=[Checkpoint(tmp_path)])
        assert len(set(tmp_path.iterdir()) - files) == 1
    with no_training():  # the same by another road
        equal = {"X": X.copy(), "pairs": replace(pairs, rating=pairs.rating.copy()), "seed": np.int64(3)}
        equal["stop"] = SHORT.epochs
        equal["config"] = replace(SHORT, weight_decay=np.float32(SHORT.weight_decay))
        train(**base | equal, progress=False, callbacks=[Checkpoint(tmp_path)])


@pytest.mark.parametrize("module", [torch, np])
def test_other_versions_have_other_files(made, tmp_path, monkeypatch, module):
    train(*made[:3], SMALL, SHORT, progress=False, callbacks=[Checkpoint(tmp_path)])
    monkeypatch.setattr(module, "__version__", "99.0")
    train(*made[:3], SMALL, SHORT, progress=False, callbacks=[Checkpoint(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 2


# --- going on


def test_start_is_where_it_starts(made):
    "Without steps that move anything, the weights given come back; and they are left as they were."
    X, pairs, held, S = made
    first = train(X, pairs, None, OPTIONS["all"], SHORT, 3, False, S).model
    before = {k: o.clone() for k, o in first.state_dict().items()}
    still = train(X, pairs, None, OPTIONS["all"], replace(SHORT, learning_rate=0), 5, False, S, start=first)
    on = train(X, pairs, None, OPTIONS["all"], SHORT, 5, False, S, start=first)
    fresh = train(X, pairs, None, OPTIONS["all"], SHORT, 5, False, S)
    assert all(torch.equal(o, before[k]) for k, o in still.model.state_dict().items())
    assert all(torch.equal(o, before[k]) for k, o in first.state_dict().items())
    assert on.history["train_loss"].iloc[-1] < fresh.history["train_loss"].iloc[-1]
    assert not any(a is b for a, b in zip(on.model.parameters(), first.parameters(), strict=True))


def test_start_survives_a_break(made, tmp_path, every_epoch):
    X, pairs, held, S = made
    first = train(X, pairs, None, SMALL, SHORT, 3, False).model
    args = (X, pairs, held, SMALL, SHORT, 5, False)
    quiet = train(*args, start=first)
    with dying(4):
        train(*args, start=first, callbacks=[Checkpoint(tmp_path)])
    assert same(train(*args, start=first, callbacks=[Checkpoint(tmp_path)]), quiet)


def test_wrong_starts_are_refused(made):
    X, pairs, _, _ = made
    size = (X.shape[1], len(pairs.users), X.shape[0])
    for start, why in (
        (ItemUserModel(*size, replace(SMALL, hidden_dim=11)), "start is a model of other data or settings"),
        (ItemUserModel(size[0] + 1, *size[1:], SMALL), r"its encoder.first.weight is \("),
        (
            ItemUserModel(size[0], size[1] - 1, size[2], SMALL),
            r"its user.weight is \(59, 6\), here it is \(60, 6\)",
        ),
        (ItemUserModel(*size, replace(SMALL, head="mlp")), "not in use"),
        (ItemUserModel(*size, replace(SMALL, item_bias=False)), "encoder.last.bias"),
        ({"weights": 1}, "start must be a model"),
    ):
        with pytest.raises(InputError, match=why):
            train(X, pairs, None, SMALL, SHORT, progress=False, start=start)


# --- callbacks of one's own, through the recommender

QUICK = {"graph": GraphConfig(k=3), "model": SMALL, "training": TrainConfig(epochs=6), "progress": False}


class Watch(Callback):
    "Notes the epochs of each training, and does something after one of them."

    def __init__(self, at=None, what=None):
        self.epochs, self.at, self.what = [], at, what

    def on_train_begin(self, training):
        self.epochs.append(0)

    def on_epoch_end(self, training):
        self.epochs[-1] += 1
        if training.epoch == self.at:
            self.what(training)


def stop(training):
    training.stopped = True


def fail(training):
    raise Killed


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_a_callback_that_stops_a_training(validation):
    "Each training of a fit ends there, with the best of the epochs it has had; it is as one of so many."
    world, watch = synthetic_data(60, 80, 1500), Watch(2, stop)
    steady = {**QUICK, "training": replace(QUICK["training"], schedule="constant")}
    r = CorrectSmoothRecommender(**steady, ensemble=2, validation=validation).fit(world, callbacks=[watch])
    trainings = 3 if validation else 2
    assert watch.epochs == [2] * trainings and len(r.history_) == 2 and r.epochs_ == 2
    short = CorrectSmoothRecommender(
        **{**steady, "training": replace(steady["training"], epochs=2)}, ensemble=2, validation=validation
    ).fit(world)
    for one, two in zip(r.models_, short.models_, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    more, before = Watch(1, stop), r.epochs_
    r.partial_fit(epochs=3, callbacks=[more])
    assert more.epochs == [1, 1] and r.epochs_ == before + 1


def test_a_callback_that_raises(tmp_path):
    "Its exception comes out of fit, which has changed nothing; threads and random numbers are as they were."
    world = synthetic_data(60, 80, 1500)
    r = CorrectSmoothRecommender(**QUICK, ensemble=2)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with pytest.raises(Killed):
        r.fit(world, callbacks=[Watch(2, fail)])
    assert not hasattr(r, "state_") and not hasattr(r, "scorer_")
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), state)
    r.fit(world)
    before, epochs = r.recommend(), r.epochs_
    for call in (r.fit, lambda *_, **how: r.partial_fit(**how)):
        with pytest.raises(Killed):
            call(world, callbacks=[Watch(1, fail)])
        pd.testing.assert_frame_equal(r.recommend(), before, check_exact=True)
        assert r.epochs_ == epochs


def test_what_a_callback_broke_off_goes_on(tmp_path, every_epoch):
    "A checkpoint before it in the list has kept the epoch after which it raised."
    world, keep = synthetic_data(60, 80, 1500), Checkpoint(tmp_path)
    quiet = CorrectSmoothRecommender(**QUICK, ensemble=2, validation=0.1).fit(world)
    r, watch = CorrectSmoothRecommender(**QUICK, ensemble=2, validation=0.1), Watch()
    with pytest.raises(Killed):
        r.fit(world, callbacks=[keep, Watch(4, fail)])
    r.fit(world, callbacks=[keep, watch])
    assert watch.epochs == [len(quiet.history_) - 4, quiet.epochs_, quiet.epochs_]
    for one, two in zip(r.models_, quiet.models_, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
