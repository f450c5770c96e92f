"""What is not provably ours stays as it is, whatever we are asked to write; small files that are huge."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from correct_smooth import checks, experiment, files, synthetic
from correct_smooth import partition as partitions
from correct_smooth.checkpoint import LOCK
from correct_smooth.checks import InputError, check_parquet
from correct_smooth.edges import read_edges
from correct_smooth.experiment import run
from correct_smooth.files import MARKER, _workspace, atomic_folder, check_target, clear_leftovers
from correct_smooth.graph import GraphConfig
from correct_smooth.model import ModelConfig
from correct_smooth.model_folder import FORMAT, MODEL_FILES, PARTS
from correct_smooth.partition import partition, read_own
from correct_smooth.rating_files import rating_rows
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import load_data, read_tables, write_tables
from correct_smooth.synthetic import synthetic_data, write_synthetic
from correct_smooth.tables import write_rows
from correct_smooth.tensors import save_tensors
from correct_smooth.train import TrainConfig

QUICK = {
    "graph": GraphConfig(k=3, corating_k=5),
    "model": ModelConfig(emb_dim=4, hidden_dim=8),
    "training": TrainConfig(epochs=1),
    "ensemble": 1,
    "validation": 0.0,
    "progress": False,
}
posix = pytest.mark.skipif(os.name != "posix", reason="rights, and locks that the system releases")


@pytest.fixture(scope="module")
def world():
    return synthetic_data(20, 30, 200, n_themes=3, theme_words=6, plot_words=8)


@pytest.fixture(scope="module")
def model(world):
    return CorrectSmoothRecommender(**QUICK).fit(world)


@pytest.fixture(scope="module")
def written(world, model, tmp_path_factory):
    "One folder of each kind."
    root = tmp_path_factory.mktemp("written")
    write_tables(world, root / "tables")
    model.save(root / "model")
    run(root / "tables", root / "results", recommender=CorrectSmoothRecommender(**QUICK))
    return root


@pytest.fixture
def owned(written, tmp_path):
    "A copy of them."
    shutil.copytree(written, tmp_path / "own")
    return tmp_path / "own"


def writers(world, model):
    "Everything that writes a folder, by the kind it writes."
    return {
        "tables": lambda o: write_tables(world, o),
        "synthetic": lambda o: write_synthetic(o, 5, 20, 40),
        "parted": lambda o: partition("synthetic", o, progress=False),
        "model": model.save,
        "results": lambda o: run("synthetic", o, recommender=CorrectSmoothRecommender(**QUICK)),
    }


WRITERS = ("tables", "synthetic", "parted", "model", "results")


def files_of(folder):
    "Every file below a folder, with what is in it."
    return {str(o.relative_to(folder)): o.read_bytes() for o in folder.rglob("*") if o.is_file()}


@contextmanager
def untouched(folder):
    before = files_of(folder)
    yield
    assert files_of(folder) == before


@pytest.fixture
def no_work(monkeypatch):
    "Refused before anything is read or made."
    for where, name in ((synthetic, "_planted_world"), (partitions, "load_data"), (experiment, "load_data")):
        monkeypatch.setattr(where, name, lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.setattr("correct_smooth.partition._rating_blocks", lambda *_: pytest.fail("work has begun"))


def theirs(folder, *names):
    "A folder of somebody else's."
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")


FOREIGN = {
    "data": ("movies.parquet", "ratings.parquet"),
    "figures": ("figures/thesis.png",),
    "model": ("model/mine.bin",),
    "a model of another make": MODEL_FILES,
    "results": ("summary.json", "model/model.json"),
    "our list, not by us": (MARKER,),
    "below": ("a/b/c.txt",),
    "hidden": (".git",),
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("writer", WRITERS)
def test_names_prove_nothing(world, model, tmp_path, writer, names):
    "Files of the names that ours have are no reason to replace a folder."
    theirs(tmp_path / "out", *names)
    with untouched(tmp_path), pytest.raises(InputError, match="holds something else .*; name another folder"):
        writers(world, model)[writer](tmp_path / "out")
    assert [o.name for o in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["tables", "model", "results"])
@pytest.mark.parametrize("writer", WRITERS)
def test_one_kind_never_replaces_another(world, model, owned, writer, kind):
    write = writers(world, model)[writer]
    if kind == {"synthetic": "tables", "parted": "tables"}.get(writer, writer):
        write(owned / kind)
        write(owned / kind)
        return
    with untouched(owned), pytest.raises(InputError, match=rf"another kind of result \({kind}, not"):
        write(owned / kind)


@pytest.mark.parametrize("kind", ["tables", "model", "results"])
@pytest.mark.parametrize("name", ["notes.txt", "figures/mine.png", "model/mine.bin", "deep/er/x", "empty/"])
def test_a_file_beside_ours_is_kept(world, model, owned, kind, name):
    "A folder of ours with one file, or folder, that its list does not hold."
    if name.endswith("/"):
        (owned / kind / name).mkdir()
    else:
        theirs(owned / kind, name)
    with untouched(owned), pytest.raises(InputError, match=f"something else .{name.split('/')[0]}.*lists"):
        writers(world, model)[kind](owned / kind)


@posix
def test_a_link_to_a_folder_is_not_followed(world, tmp_path, owned):
    theirs(tmp_path / "mine", "thesis")
    (owned / "tables" / "link").symlink_to(tmp_path / "mine")
    with untouched(tmp_path), pytest.raises(InputError, match=r"something else \(link\)"):
        write_tables(world, owned / "tables")


def test_a_model_among_results_may_have_changed(model, owned):
    "It has a list of its own; without that, its files are somebody's."
    one = owned / "results" / "model"
    model.save(one)
    (one / "extra").touch()
    about = json.loads((one / MARKER).read_text())
    (one / MARKER).write_text(json.dumps({**about, "files": [*about["files"], "extra"]}))
    assert check_target(owned / "results", "results") == owned / "results"
    (one / MARKER).unlink()
    with pytest.raises(InputError, match=r"something else \(model\)"):
        check_target(owned / "results", "results")


def test_hand_made_tables_are_read_and_not_replaced(world, tmp_path):
    write_tables(world, tmp_path / "data")
    (tmp_path / "data" / MARKER).unlink()
    assert read_tables(tmp_path / "data").counts() == {**world.counts(), "name": "data"}
    with untouched(tmp_path), pytest.raises(InputError, match="holds something else"):
        partition(tmp_path / "data", tmp_path / "data", progress=False)


@pytest.mark.parametrize(
    "about",
    ["", "[]", "{}", "[" * 10_000, '{"kind": "tables"}', '{"kind": "tables", "files": "done"}',
     '{"kind": "tables", "files": [1]}', '{"files": ["done"]}', '{"kind": "tables", "files": ["../"]}'],
)  # fmt: skip
def test_lists_that_are_none(tmp_path, about):
    theirs(tmp_path / "out", "done")
    (tmp_path / "out" / MARKER).write_text(about)
    with untouched(tmp_path), pytest.raises(InputError, match="will not be replaced"):
        check_target(tmp_path / "out", "tables")


# --- before the work


@pytest.mark.parametrize("writer", ["parted", "results"])
def test_refused_before_the_work(world, model, tmp_path, no_work, writer):
    theirs(tmp_path / "out", "mine")
    with pytest.raises(InputError, match="holds something else"):
        writers(world, model)[writer](tmp_path / "out")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", [".", "..", "/", "../..", "out/.."])
def test_the_current_folder_cannot_be_replaced(world, model, tmp_path, monkeypatch, writer, place):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    with pytest.raises(InputError, match="is the current folder, or above it; name a folder inside it$"):
        writers(world, model)[writer](place)
    assert not list(Path().iterdir())


def test_without_a_current_folder(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert check_target(tmp_path / "out", "tables") == tmp_path / "out"


@pytest.mark.parametrize("where, what", [("out", "is a mount point"), ("out/deep", "holds .*deep, a mount")])
def test_mount_points(world, model, tmp_path, monkeypatch, no_work, where, what):
    "As in a container with a volume there."
    (tmp_path / where).mkdir(parents=True)
    monkeypatch.setattr(files, "_mount_points", lambda: [Path("/"), tmp_path / where])
    for writer in ("results", "parted", "model"):
        with pytest.raises(InputError, match=f"{what}.*such as .*out/cs_results"):
            writers(world, model)[writer](tmp_path / "out")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts are those of Linux")
def test_a_folder_bound_to_another(tmp_path):
    "A real one, with a blank in its name: no other file system, so only the table of mounts tells."
    (tmp_path / "my volume").mkdir()
    (tmp_path / "from").mkdir()
    code = f"""
from correct_smooth.checks import InputError
from correct_smooth.files import check_target
try:
    check_target({str(tmp_path / "my volume")!r}, "tables")
except InputError as error:
    print(error)
print(check_target({str(tmp_path / "my volume" / "out")!r}, "tables").name)
"""
    script = f'mount --bind "{tmp_path}/from" "{tmp_path}/my volume" && exec "{sys.executable}" -c "$CODE"'
    env = {**os.environ, "CODE": code, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=env, timeout=120
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr[:100]}")
    said = done.stdout.splitlines()
    assert "my volume is a mount point and cannot be replaced" in said[0] and said[1] == "out", done.stderr


def test_names_that_leave_no_room(tmp_path):
    with pytest.raises(InputError, match="is too long; name another folder"):
        check_target(tmp_path / ("n" * 230), "tables")


# --- rights


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder):
    "Rights of everything in a folder, of files and of folders."
    found = [(o.is_dir(), o.stat().st_mode & 0o7777) for o in (folder, *folder.rglob("*"))]
    return {mode for is_dir, mode in found if not is_dir}, {mode for is_dir, mode in found if is_dir}


@posix
@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_rights_follow_the_umask(world, model, tmp_path, mask):
    with umask(mask):
        for name, write in writers(world, model).items():
            write(tmp_path / name)
            assert modes(tmp_path / name) == ({0o666 & ~mask}, {0o777 & ~mask}), name
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


@posix
@pytest.mark.parametrize("mode", [0o2775, 0o750, 0o700])
@pytest.mark.parametrize("exchange", [True, False])
def test_an_earlier_folder_leaves_its_rights(world, tmp_path, monkeypatch, mode, exchange):
    "Made by the administrator and still empty, or replaced again; a group's folder stays one."
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(mode)
    for _ in range(2):
        write_tables(world, tmp_path / "out")
        assert (tmp_path / "out").stat().st_mode & 0o7777 == mode


@posix
def test_an_earlier_file_leaves_its_rights(tmp_path):
    for name in ("rows.csv", "rows.parquet"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o640)
        with write_rows(tmp_path / name) as write:
            write(pd.DataFrame({"a": [1]}))
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    (tmp_path / "a.safetensors").chmod(0o600)
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600


# --- names on the way


def test_names_on_the_way_are_nobodys(tmp_path):
    "No file of a user has the name of one that is being written, and two writers do not meet."
    theirs(tmp_path, ".rows.csv.part", ".a.safetensors.part/thesis", ".rows.csv.cs-mine/thesis")
    theirs(tmp_path, f".rows.csv.cs-{'0' * 32}/thesis", f".rows.csv.cs-{'0' * 32}.old")
    with untouched(tmp_path):
        with write_rows(tmp_path / "rows.csv") as one, write_rows(tmp_path / "rows.csv") as other:
            for write, n in ((one, 1), (other, 2), (one, 3)):
                write(pd.DataFrame({"n": [n]}))
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
        assert pd.read_csv(tmp_path / "rows.csv")["n"].tolist() == [1, 3]
        (tmp_path / "rows.csv").unlink()
        (tmp_path / "a.safetensors").unlink()


# --- locks


@contextmanager
def elsewhere(code, *args):
    "A process that has come to the point where it says so; it is killed at the end."
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=env
    )
    try:
        assert process.stdout.readline() == b"there\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def hidden(folder):
    return [o for o in folder.iterdir() if o.name.startswith(".")]


@posix
def test_a_live_writer_is_let_be(world, tmp_path):
    "Whatever its number says here: only what the system has unlocked is cleared away."
    code = """
import sys
from correct_smooth.files import atomic_folder
with atomic_folder(sys.argv[1], "tables") as fresh:
    (fresh / "movies.parquet").touch()
    print("there", flush=True)
    sys.stdin.read()
"""
    out = tmp_path / "out"
    with elsewhere(code, out):
        (work,) = hidden(tmp_path)
        clear_leftovers(out)
        write_tables(world, out)
        assert hidden(tmp_path) == [work] and (work / "fresh" / "movies.parquet").exists()
    clear_leftovers(out)
    assert not hidden(tmp_path) and load_data(out).counts()["ratings"] == len(world.ratings)


@posix
def test_a_writer_that_was_taken_for_a_leftover_begins_again(tmp_path, monkeypatch):
    "Somebody clears away its folder in the moment before it is locked."
    before, met = files.FileLock, []

    class Late(before):
        def __init__(self, path, timeout):
            if not met:
                met.append(Path(path).parent)
                self.other = before(path, timeout=0)
                self.other.acquire()
            super().__init__(path, timeout=timeout)

    monkeypatch.setattr(files, "FileLock", Late)
    with _workspace(tmp_path / "out") as work:
        assert work != met[0] and work.is_dir()


HOLDS = """
import sys
from pathlib import Path
from correct_smooth.checkpoint import checkpoints_beside
with checkpoints_beside(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.read()
"""


def small_run(folder, out):
    return run(folder, out, recommender=CorrectSmoothRecommender(**QUICK))


@posix
def test_two_runs_into_one_folder(written, tmp_path):
    "The second is told at once, in one line; when the first has been killed, its name is free."
    out = tmp_path / "new" / "out"
    line = [sys.executable, "-m", "correct_smooth.experiment", "--data", written / "tables", "--out", out]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with elsewhere(HOLDS, out):
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(InputError, match="another run is writing to"),
        ):
            patch.setattr(experiment, "load_data", lambda *_, **__: pytest.fail("work has begun"))
            small_run(written / "tables", out)
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=env)
        assert [o.name for o in out.parent.iterdir()] == ["out.checkpoint"]
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert f"another run is writing to {out}; wait until it has ended" in done.stderr
    small_run(written / "tables", out)
    assert [o.name for o in out.parent.iterdir()] == ["out"]


STATE = f"{'0' * 32}.safetensors"


def test_a_foreign_checkpoint_folder(written, tmp_path, no_work):
    "Refused at the start, and left as it is."
    theirs(tmp_path / "out.checkpoint", "thesis.txt", STATE)
    with (
        untouched(tmp_path),
        pytest.raises(InputError, match=r"out.checkpoint.*something else .*move it away"),
    ):
        small_run(written / "tables", tmp_path / "out")
    shutil.rmtree(tmp_path / "out.checkpoint")
    (tmp_path / "out.checkpoint").write_text("years of work")
    with untouched(tmp_path), pytest.raises(InputError, match="out.checkpoint"):
        small_run(written / "tables", tmp_path / "out")


def test_what_else_is_in_a_checkpoint_folder_stays(written, tmp_path):
    kept = tmp_path / "out.checkpoint"
    theirs(kept, "thesis.txt", "notes.json", f"sub/{STATE}", "00.safetensors", LOCK)
    mine = files_of(kept)
    theirs(kept, STATE, f"{'a' * 32}-7-0-of-2.safetensors", f"{'a' * 32}.json")
    theirs(kept, f".{STATE}.cs-{'1' * 32}/lock")
    for _ in range(2):
        small_run(written / "tables", tmp_path / "out")
        assert files_of(kept) == mine


@pytest.mark.parametrize("states", [True, False])
def test_a_run_that_fails(written, tmp_path, monkeypatch, states):
    "Checkpoints stay to go on from; without any, nothing is left."

    def fit(self, data, edges, callbacks):
        if states:
            (callbacks[0].folder / STATE).touch()
        raise RuntimeError("power cut")

    monkeypatch.setattr(CorrectSmoothRecommender, "fit", fit)
    with pytest.raises(RuntimeError, match="power cut"):
        small_run(written / "tables", tmp_path / "new" / "out")
    left = {str(o.relative_to(tmp_path)) for o in tmp_path.rglob("*") if o.is_file()}
    assert left == ({f"new/out.checkpoint/{o}" for o in (LOCK, STATE)} if states else set())
    assert states or not list(tmp_path.iterdir())


# --- models in parts, and their sums


@pytest.fixture(scope="module")
def two_parts(model, tmp_path_factory):
    "A model in two parts, as two ranks save one."
    root = tmp_path_factory.mktemp("parts")
    with atomic_folder(root / "model", "model", sums=True) as fresh:
        for k in range(2):
            at = np.arange(len(model.users_)) % 2 == k
            part = CorrectSmoothRecommender.load(_part_of(model, at, root))
            part.save(fresh / f"part-{k:05}")
        (fresh / PARTS).write_text(json.dumps({"parts": ["part-00000", "part-00001"]}))
    return root / "model"


@pytest.fixture
def parted(two_parts, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(two_parts, tmp_path / "model"))


def _part_of(model, at, folder):
    "The model of some users, saved."
    model.save(folder / "whole")
    ids = model.users_[at]
    with atomic_folder(folder / "whole", "model", sums=True) as fresh:
        for name in MODEL_FILES:
            shutil.copy(folder / "whole" / name, fresh / name)
        for name in ("users", "ratings", "thresholds"):
            table = pd.read_parquet(fresh / f"{name}.parquet")
            table[table["user_id"].isin(ids)].to_parquet(fresh / f"{name}.parquet", index=False)
        weights = model.models_[0].state_dict()
        weights |= {o: weights[o][torch.from_numpy(at)] for o in ("user.weight", "user_bias.weight")}
        save_tensors(fresh / "weights.safetensors", {f"0.{k}": o for k, o in weights.items()})
        about = json.loads((fresh / "model.json").read_text())
        (fresh / "model.json").write_text(json.dumps({**about, "trained": int(at.sum())}))
    return folder / "whole"


def test_a_model_in_parts(parted, model):
    "Loads as one; saved over itself, it is one."
    found = CorrectSmoothRecommender.load(parted)
    assert found.users_.equals(model.users_)
    found.save(parted)
    assert {o.name for o in parted.iterdir()} == {*MODEL_FILES, MARKER}


@pytest.mark.parametrize(
    "names",
    [["part-00000/../../outside"], ["part-../../outside"], ["part-0000"], ["part-000000"], ["part-0000²"],
     ["part-00000\n"], ["/part-00000"], [0], [], ["."], "part-00000", {"part-00000": 1}, None],
)  # fmt: skip
def test_parts_are_in_their_folder(parted, names):
    "Names of any other form are refused, sums or no sums."
    shutil.copytree(parted / "part-00000", parted.parent / "outside")
    (parted / PARTS).write_text(json.dumps({"parts": names}))
    for _ in range(2):
        with pytest.raises(InputError, match="must name parts such as part-00000|cannot be read"):
            CorrectSmoothRecommender.load(parted)
        (parted / MARKER).unlink(missing_ok=True)


@posix
def test_a_part_is_no_link(parted):
    (parted / "part-00000").rename(parted.parent / "outside")
    (parted / "part-00000").symlink_to(parted.parent / "outside")
    with pytest.raises(InputError, match="names parts that are not there"):
        CorrectSmoothRecommender.load(parted)


@pytest.mark.parametrize("name", [PARTS, f"part-00001/{MARKER}", "part-00001/model.json", MARKER])
def test_sums_cover_the_parts(parted, name):
    path = parted / name
    path.write_text(
        path.read_text().replace("part-00001", "part-00000").replace("part-00000", "part-00002", 1)
    )
    if name.endswith("model.json"):
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    if name == f"part-00001/{MARKER}":
        path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="is not the file that was saved|names parts that are not there"):
        CorrectSmoothRecommender.load(parted)
    (parted / MARKER).unlink()
    with pytest.raises(InputError):
        CorrectSmoothRecommender.load(parted)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"seed": 0', '"seed": 7'),
        ('"alpha": ', '"alpha": 1'),
        (f'"format": {FORMAT}', '"format": 4'),
        ("\n", "\n "),
    ],
)
def test_sums_cover_the_settings(model, tmp_path, old, new):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match="not the file that was saved|is in model format 4"):
        CorrectSmoothRecommender.load(tmp_path / "model")


def test_a_model_without_its_list(model, tmp_path):
    model.save(tmp_path / "model")
    (tmp_path / "model" / MARKER).unlink()
    with pytest.raises(InputError, match=f"lacks {MARKER}, the list of its files"):
        CorrectSmoothRecommender.load(tmp_path / "model")


# --- small files that are huge


@contextmanager
def little_memory(megabytes=600):
    "No more memory than there is in use, and a little."
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def refused(use, *args):
    with (
        little_memory(),
        pytest.raises(InputError, match="as no table of ratings does|more than it holds") as met,
    ):
        use(*args)
    assert len(str(met.value).splitlines()) == 1


def one_value(path, copies=2_000, **columns):
    "A Parquet file of one row a great many times: a few bytes for each million."
    table = pa.table({name: [value] * 10**6 for name, value in columns.items()})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(copies // 1_000):
            writer.write_table(table)
    return path


def repeated(path, **columns):
    "Few rows, long texts."
    pq.write_table(pa.table({name: [value] * 200_000 for name, value in columns.items()}), path)
    return path


@pytest.mark.parametrize("make", [one_value, repeated])
def test_parquet_bombs(world, tmp_path, make):
    "In every place where Parquet is read."
    if make is one_value:
        rows = {"copies": 6_000, "user_id": 1, "item_id": 1, "rating": 5.0, "source": 1, "target": 2}
    else:
        rows = {"user_id": "u" * 2_000, "item_id": "1", "rating": 5.0, "source": "s" * 2_000, "target": "t"}
    bomb = make(tmp_path / "bomb.parquet", **rows)
    assert bomb.stat().st_size < 2**20
    for name in ("ratings", "movies"):
        write_tables(world, tmp_path / name)
        shutil.copy(bomb, tmp_path / name / f"{name}.parquet")
        refused(load_data, tmp_path / name)
        refused(lambda name=name: partition(tmp_path / name, tmp_path / "out", progress=False))
        refused(read_own, tmp_path / name, 0, 2)
    refused(read_edges, bomb)
    refused(rating_rows, bomb)
    assert not (tmp_path / "out").exists()


def test_lists_of_long_texts(tmp_path):
    bomb = repeated(tmp_path / "movies.parquet", item_id=1, genres=["g" * 2_000, "h"])
    refused(check_parquet, bomb)


@pytest.mark.parametrize("name", ["movies.csv", "ratings.csv", "tags.csv", "movies.dat", "ratings.dat"])
def test_zip_bombs(tmp_path, name):
    "A member of hundreds of megabytes in a file of less than one."
    suffix = name[-4:]
    good = {
        "movies.csv": "movieId,title,genres\n1,Heat (1995),Crime\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4,1\n",
        "tags.csv": "userId,movieId,tag,timestamp\n1,1,fun,1\n",
        "movies.dat": "1::Heat (1995)::Crime\n",
        "ratings.dat": "1::1::4::1\n",
    }
    row = good[name].splitlines()[-1].encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for other, text in good.items():
            if other.endswith(suffix) and other != name:
                archive.writestr(f"ml/{other}", text)
        with archive.open(f"ml/{name}", "w") as member:
            member.write(good[name].encode())
            block = row * (2**20 // len(row))
            for _ in range(130):
                member.write(block)
    assert (tmp_path / "ml.zip").stat().st_size < 2**20
    refused(load_data, tmp_path / "ml.zip")


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            with archive.open(f"{name}.npy", "w") as file:
                if isinstance(member, tuple):  # a header, and nothing behind it
                    about = {"descr": "<f8", "fortran_order": False, "shape": member}
                    np.lib.format.write_array_header_1_0(file, about)
                else:
                    np.save(held := io.BytesIO(), member)
                    file.write(held.getvalue())
    return path


@pytest.mark.parametrize(
    "weight", [np.zeros(2**24), (10**6, 10**6), (2**62, 2**62), (10**400,), (-(10**12),)],
    ids=["zeros", "terabytes", "more", "absurd", "negative"],
)  # fmt: skip
def test_array_bombs(model, tmp_path, weight):
    "As edges, and as the graph of a model whose sums are right."
    ends = np.arange(3)
    refused(read_edges, npz(tmp_path / "edges.npz", source=ends, target=ends[::-1], weight=weight))
    model.save(tmp_path / "model")
    A = sparse.load_npz(tmp_path / "model" / "graph.npz")
    arrays = {"indices": A.indices, "indptr": A.indptr, "format": np.array(b"csr"), "shape": A.shape}
    arrays |= {"shape": np.array(A.shape), "data": weight}
    with atomic_folder(tmp_path / "model", "model", sums=True) as fresh:
        for name in MODEL_FILES:
            shutil.copy(tmp_path / "model" / name, fresh / name)
        npz(fresh / "graph.npz", **arrays)
    refused(CorrectSmoothRecommender.load, tmp_path / "model")


def test_bombs_in_models(model, tmp_path):
    model.save(tmp_path / "model")
    for table in ("movies", "ratings", "users", "thresholds"):
        with atomic_folder(tmp_path / "other", "model", sums=True) as fresh:
            for name in MODEL_FILES:
                shutil.copy(tmp_path / "model" / name, fresh / name)
            one_value(fresh / f"{table}.parquet", 20_000, user_id=1)
        refused(CorrectSmoothRecommender.load, tmp_path / "other")


def test_more_than_the_machine_has(world, tmp_path, monkeypatch):
    "Said before it is read; what is read a block at a time may be larger."
    write_tables(world, tmp_path / "data")
    monkeypatch.setattr(checks, "machine_memory", lambda: 5_000.0)
    with pytest.raises(InputError, match=r"ratings.parquet unpacks to .* and there are 5,000 of memory"):
        read_tables(tmp_path / "data")
    check_parquet(tmp_path / "data" / "ratings.parquet", whole=False)


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(InputError, match="big.csv does not fit into memory"), checks.reading("big.csv"):
        raise MemoryError


def test_real_tables_are_far_from_the_rule(tmp_path, monkeypatch):
    "Even where all but the choice of movies repeats: sorted users, one rating, one time, long plots."
    n, rng = 400_000, np.random.default_rng(0)
    movies = np.concatenate([rng.permutation(200)[:100] for _ in range(n // 100)])
    ratings = pd.DataFrame(
        {"user_id": np.arange(n) // 100, "item_id": movies, "rating": 5.0, "timestamp": 10**9}
    )
    movies = pd.DataFrame({"item_id": range(200), "overview": "plot " * 100})
    monkeypatch.setattr(checks, "_LARGE", 0)
    for name, text in (("numbers", False), ("texts", True)):
        table = ratings.assign(user_id="user " + ratings["user_id"].astype(str)) if text else ratings
        (tmp_path / name).mkdir()
        movies.to_parquet(tmp_path / name / "movies.parquet")
        table.to_parquet(tmp_path / name / "ratings.parquet", compression="zstd")
        assert len(read_tables(tmp_path / name).ratings) == n
        partition(tmp_path / name, tmp_path / "parted", progress=False)
        assert len(read_tables(tmp_path / "parted").ratings) == n
