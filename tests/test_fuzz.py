"""Odd and hostile input is used or refused by `InputError`: no other error, no hang, no stray file."""

import datetime
import decimal
import hashlib
import io
import json
import os
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone

from correct_smooth.answers import ListConfig, lists_of
from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.dataset import index_ratings
from correct_smooth.edges import edge_graph, read_edges
from correct_smooth.experiment import cs_run
from correct_smooth.features import MovieFeatures
from correct_smooth.files import MARKER, write_marker
from correct_smooth.graph import GraphConfig, check_graph, normalise, symmetrise
from correct_smooth.model import ModelConfig
from correct_smooth.model_folder import MODEL_FILES, read_answers
from correct_smooth.newcomers import add_movies, add_ratings
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import load_data, write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.tensors import load_tensors, save_tensors
from correct_smooth.train import TrainConfig

SECONDS, GIGABYTES = 30, 3  # of this process's own time: other work beside it does not count


class Hang(BaseException):
    "Its time is over."


@contextmanager
def guarded():
    "Only so much time, and so much more memory than there is in use, where the system can be asked to."
    if os.name != "posix":
        yield
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0

    def ring(*_):
        raise Hang

    before = {name: signal.signal(name, ring) for name in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(20 * SECONDS)  # by the clock, for what waits
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTES * 2**30, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for name, handler in before.items():
            signal.signal(name, handler)
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def survives(use, *args):
    "What it gives, or None where it refuses; anything else is a failure."
    with guarded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return use(*args)
        except InputError as error:
            assert str(error) and len(str(error)) < 5_000
            return None


def listing(folder):
    "Everything below a folder, with what is in it."
    return {
        str(o): hashlib.sha256(o.read_bytes()).hexdigest() if o.is_file() else None for o in folder.rglob("*")
    }


@contextmanager
def sandbox():
    "A folder for one input; at the end, nothing but it may have changed."
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d) / "given"
        folder.mkdir()
        yield folder
        assert [o.name for o in Path(d).iterdir()] == ["given"]


# --- damaged bytes

CELLS = [
    b"", b"nan", b"NaN", b"inf", b"-Infinity", b"1e400", b"-1e400", b"9" * 30, b"9" * 400, b"9" * 5000,
    b"-1", b"0.5", b"1e3", b"0x10", b"1_000", b" 1", b"True", b"None", b"NULL", b"<NA>",
    b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616",
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b'""', b"'", b"\\", b"a" * 100_000,
    "١٢".encode(), "１２".encode(), "²".encode(), "(١٩٩٩)".encode(), b"(1999)", b"\r", b"\n", b"\r\n",
    b"::", b",", b"|", b"[", b"[" * 3000, b"{'name': " * 300, b"[{'name': 'x'}]", b"[{'name': None}]",
    b"[1, 2]", b"{}", b"[{}]", b"{'name': {'name': []}}", b"(" * 200 + b")" * 200, b"1997-08-20", b"e" * 50,
    b"[{'name': '\\ud800'}]", b"['\\ud800']", b"{*()}", b"[*[]]", b"-" * 2000 + b"1", b"1" * 4301,
    b"__import__('os').system('true')",
]  # fmt: skip


@st.composite
def damaged(draw, whole):
    "Bytes with one to three things done to them, to a bit, a stretch, a cell, a line or a column."
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(whole) - 1, 0)))
        n = draw(st.sampled_from([1, 2, 7, 40, 1000]))
        what = draw(st.sampled_from(["bit", "cut", "drop", "again", "put", "cell", "cell", "column", "line"]))
        lines = whole.split(b"\n")
        row = draw(st.integers(0, len(lines) - 1))
        cells = lines[row].split(b",")
        if what == "bit" and whole:
            whole = whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
        elif what == "cut":
            whole = whole[:at]
        elif what == "drop":
            whole = whole[:at] + whole[at + n :]
        elif what == "again":
            whole = whole[:at] + whole[at : at + n] * 2 + whole[at + n :]
        elif what == "put":
            whole = whole[:at] + draw(st.sampled_from(CELLS) | st.binary(max_size=9)) + whole[at:]
        elif what == "cell":
            cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(CELLS))
            lines[row] = b",".join(cells)
            whole = b"\n".join(lines)
        elif what == "column":
            order = draw(st.permutations(range(len(cells))))
            rows = (o.split(b",") for o in lines)
            whole = b"\n".join(b",".join(o[k] for k in order if k < len(o)) for o in rows)
        else:
            lines.insert(draw(st.integers(0, len(lines))), lines.pop(row))
            whole = b"\n".join(lines)
    return whole


MOVIES_DATASET = {
    "movies_metadata.csv": (
        "adult,belongs_to_collection,budget,genres,id,original_language,overview,popularity,"
        "production_companies,production_countries,release_date,runtime,title,vote_average,vote_count\n"
        "False,\"{'id': 10, 'name': 'Toys'}\",3,\"[{'id': 16, 'name': 'Animation'}]\",862,en,"
        'A plot.,21.9,"[{\'name\': ""Pix\'ar"", \'id\': 3}]",[],1995-10-30,81.0,Toy Story,7.7,5415\n'
        "False,,0,[],8844,en,,17,[],[],1995-12-15,0,Jumanji,6.9,0\n"
    ),
    "keywords.csv": "id,keywords\n862,\"[{'id': 931, 'name': 'jealousy'}]\"\n8844,[]\n",
    "links_small.csv": "movieId,imdbId,tmdbId\n1,114709,862\n2,113497,8844\n3,113228,\n",
    "ratings_small.csv": "userId,movieId,rating,timestamp\n1,1,2.5,1260759144\n1,2,3.0,1260759179\n2,1,4,1\n",
}
MOVIELENS = {
    "movies.csv": 'movieId,title,genres\n1,"Toy, The (1995)",Comedy|Drama\n2,Up,(no genres listed)\n',
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,2,4.5,964981247\n2,1,5,2\n",
    "tags.csv": "userId,movieId,tag,timestamp\n2,1,funny,1445714994\n2,2,Sad,1\n",
}
OLDER = {
    "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n2::Jumanji (1995)::Adventure\n",
    "ratings.dat": "1::1::5::978300760\n1::2::3::978302109\n2::1::4::9\n",
    "tags.dat": "1::1::funny::9\n",
}
TABLES = {
    "movies.csv": "item_id,title,genres,year,adult,runtime\n1,Heat,Crime|Drama,1995,True,170\n"
    "2,Alien,['Horror'],1979,0,\n",
    "ratings.csv": "user_id,item_id,rating,timestamp\n1,1,4,10\n1,2,2.5,11\nann,1,3,12\n",
}
LAYOUTS = {"the movies dataset": MOVIES_DATASET, "movielens": MOVIELENS, "dat": OLDER, "tables": TABLES}


def write(folder, files):
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def use_data(path):
    "A reader's result is fit for what comes after it."
    data = load_data(path)
    assert len(data.ratings) and data.ratings["item_id"].isin(data.movies.index).all()
    survives(index_ratings, data)
    survives(MovieFeatures(min_count=1).fit_transform, data.movies)
    return data


@pytest.mark.parametrize("layout", LAYOUTS)
@tried(16, 1000)
@given(drawn=st.data())
def test_damaged_tables(layout, drawn):
    "One or two files of a folder or a zip, damaged."
    files = {name: text.encode() for name, text in LAYOUTS[layout].items()}
    for name in drawn.draw(st.sets(st.sampled_from(sorted(files)), min_size=1, max_size=2)):
        files[name] = drawn.draw(damaged(files[name]))
    zipped = layout in ("movielens", "dat") and drawn.draw(st.booleans())
    with sandbox() as folder:
        if zipped:
            with zipfile.ZipFile(folder / "ml.zip", "w") as archive:
                for name, text in files.items():
                    archive.writestr(f"ml/{name}", text)
        else:
            write(folder, files)
        before = listing(folder)
        survives(use_data, folder / "ml.zip" if zipped else folder)
        assert listing(folder) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@tried(6, 60)
@given(drawn=st.data())
def test_odd_folders(layout, drawn):
    "Files that are missing, folders, pipes, links into nowhere or to a device without an end."
    files = {name: text.encode() for name, text in LAYOUTS[layout].items()}
    with sandbox() as folder:
        write(folder, files)
        for name in drawn.draw(st.sets(st.sampled_from(sorted(files)), min_size=1)):
            misplace(folder / name, drawn.draw(st.sampled_from(PLACES)))
        survives(use_data, folder)


PLACES = ("gone", "folder", "pipe", "dangling", "loop", "device", "unreadable", "empty")
if os.name != "posix":
    PLACES = ("gone", "folder", "unreadable", "empty")


def misplace(path, how):
    "Put something else in the place of a file."
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop", "device"):
        path.symlink_to({"dangling": "nowhere", "loop": path.name, "device": "/dev/zero"}[how])
    elif how == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    elif how == "empty":
        path.touch()


# --- zips

NAMES = [
    "../movies.csv", "/movies.csv", "/etc/passwd", "..", ".", "", "a/../../movies.csv", "movies.csv/",
    "ml/movies.csv", "x/movies.csv", "__MACOSX/movies.csv", "C:\\movies.csv", "movies.csv\x00.txt",
    "m" * 2000,
    "ml/ratings.csv", "ratings.dat", "movies.CSV", "é\ud800.csv".encode("utf-8", "replace").decode(),
]  # fmt: skip


def archive_of(files, kind=zipfile.ZIP_STORED):
    "A zip as bytes; names may repeat."
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
    return held.getvalue()


def patched(whole, mark, field, kind, value):
    "One field of every local (PK12) or central (PK34) header of a zip set to a value."
    out, at = bytearray(whole), whole.find(mark)
    while 0 <= at and at + field + struct.calcsize(kind) <= len(out):
        struct.pack_into(kind, out, at + field, value)
        at = whole.find(mark, at + 4)
    return bytes(out)


FIELDS = [
    (b"PK\x03\x04", 6, "<H"),
    (b"PK\x03\x04", 8, "<H"),
    (b"PK\x03\x04", 14, "<I"),
    (b"PK\x03\x04", 18, "<I"),
    (b"PK\x03\x04", 26, "<H"),
    (b"PK\x03\x04", 28, "<H"),
    (b"PK\x01\x02", 8, "<H"),
    (b"PK\x01\x02", 10, "<H"),
    (b"PK\x01\x02", 16, "<I"),
    (b"PK\x01\x02", 20, "<I"),
    (b"PK\x01\x02", 24, "<I"),
    (b"PK\x01\x02", 28, "<H"),
    (b"PK\x01\x02", 30, "<H"),
    (b"PK\x01\x02", 42, "<I"),
    (b"PK\x05\x06", 10, "<H"),
    (b"PK\x05\x06", 12, "<I"),
    (b"PK\x05\x06", 16, "<I"),
    (b"PK\x05\x06", 20, "<H"),
]  # fmt: skip  flags, method, CRC, sizes, lengths of names, offsets, counts


@st.composite
def hostile_zip(draw, files):
    "A zip of these files with hostile names beside them, or with headers that lie."
    files = [(name, content) for name, content in files.items()]
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        files.append((name, draw(st.sampled_from([b"", files[0][1], archive_of(files[:1])]))))
    kind = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
    whole = archive_of(files, kind)
    for mark, field, size in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        most = 2 ** (16 if size == "<H" else 32) - 1
        value = draw(st.sampled_from([0, 1, 8, 12, 14, 99, 2048, most, most - 1]) | st.integers(0, most))
        whole = patched(whole, mark, field, size, value)
    return draw(damaged(whole)) if draw(st.booleans()) else whole


@tried(24, 1000)
@given(drawn=st.data())
def test_hostile_zips(drawn):
    "Names that lead elsewhere, lies about sizes and sums, encryption, archives within archives."
    files = {f"ml/{o}": text.encode() for o, text in drawn.draw(st.sampled_from([MOVIELENS, OLDER])).items()}
    whole = drawn.draw(hostile_zip(files))
    with sandbox() as folder:
        (folder / "ml.zip").write_bytes(whole)
        before = listing(folder)
        survives(use_data, folder / "ml.zip")
        assert listing(folder) == before


# --- tables of odd types

ODD = [
    1, 0, -1, 2**53, 2**63, -(2**63) - 1, 10**400, 1.5, np.nan, np.inf, -np.inf, 1e300, True, None, pd.NA,
    pd.NaT,
    "", "1", "ann", "nan", "1e400", "\x00", "\ud800", "a|b", "['a']", "['\\ud800']", "[" * 3000, b"",
    b"\xff", 1j,
    (), ("a",), ("a", None), ["a", 1], [], {"a": 1}, {"a"}, frozenset(), np.array(["a"]), np.array(3),
    object(),
    decimal.Decimal("1.5"), decimal.Decimal("NaN"), datetime.date(1999, 1, 1),
    datetime.datetime(1999, 1, 1), datetime.timedelta(1), pd.Timestamp("1999", tz="UTC"), pd.Interval(0, 1),
    pd.Period("1999"), np.datetime64("NaT"), np.float16(1), np.str_("a"), pd.Series(["a"]), int, print,
    pd.DataFrame({"a": [1]}), "a" * 10_000, (float("nan"),), ((),), ["\ud800"],
]  # fmt: skip


def _typed(values):
    "The same values as columns of other types, where they can be."
    n = len(values)
    whole = pd.Series(np.arange(n) % 3 + 1)
    return [
        whole, whole.astype(str), whole.astype(float), whole.astype("uint64") + 2**63, whole.astype("Int64"),
        whole.where(whole > 1).astype("Int64"), whole.where(whole > 1), whole / 2, whole.astype("int8"),
        whole.astype("category"), whole.astype(str).astype("category"), whole > 1,
        (whole > 1).astype("boolean"),
        whole.astype(str).astype("string"), whole.astype("float16"), whole.astype(complex),
        whole.astype("Float64"),
        pd.to_datetime(whole, unit="s"), pd.to_datetime(whole, unit="s", utc=True), pd.to_timedelta(whole),
        pd.Series(pd.period_range("1999", periods=n)), pd.Series(pd.interval_range(0, periods=n)),
        whole.astype(pd.SparseDtype(int)), pd.Series([None] * n), pd.Series([None] * n, dtype="string"),
        pd.Series([("a", "b")] * n), pd.Series([["a"]] * n), pd.Series(["a|b"] * n), pd.Series([np.nan] * n),
        whole.astype("int64[pyarrow]"), whole.astype(str).astype("string[pyarrow]"),
        pd.Series([["a"]] * n, dtype=pd.ArrowDtype(pa.list_(pa.string()))), pd.Series(["\ud800"] * n,
        dtype=object),
        pd.Series([np.inf] * n), pd.Series(pd.to_datetime(whole, unit="s")).where(whole > 1),
        pd.Series([datetime.date(1999, 1, 1)] * n), pd.Series([b"a"] * n), pd.Series([True, None] * n)[:n],
    ]  # fmt: skip


KNOWN = {
    "movies": ["item_id", "title", "overview", "genres", "keywords", "collection", "language", "year",
               "popularity",
               "runtime", "vote_count", "adult"],
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
    "edges": ["source", "target", "weight"],
    "users": ["user_id"],
    "seen": ["user_id", "item_id", "rating"],
    "thresholds": ["user_id", "threshold"],
}  # fmt: skip
LABELS = ["other", "", 0, None, np.nan, ("a", 1), "title", "item_id", 1.5, b"x", "\ud800", pd.Timestamp(0)]


@st.composite
def frames(draw, table):
    "A DataFrame that looks like one of ours, with some columns of odd cells or types, or odd labels."
    n = draw(st.sampled_from([0, 1, 2, 3, 5]))
    frame = pd.DataFrame(index=range(n))
    for name in KNOWN[table]:
        if name in KNOWN[table][:3] or draw(st.booleans()):
            frame[name] = np.arange(n) % 3 + 1
    for name in draw(st.lists(st.sampled_from(sorted(frame, key=str)), max_size=2)):
        if draw(st.booleans()):
            frame[name] = draw(st.sampled_from(_typed(range(n))))[:n]
            continue
        cells = [draw(st.sampled_from(ODD)) if draw(st.booleans()) else k for k in range(n)]
        column = np.empty(n, dtype=object)
        for k, cell in enumerate(cells):
            column[k] = cell
        frame[name] = pd.Series(column, dtype=object)
    how = draw(st.sampled_from([None] * 9 + ["drop", "twice", "label", "index", "named", "levels", "empty"]))
    at, label = draw(st.integers(0, len(frame.columns) - 1)), draw(st.sampled_from(LABELS))
    try:
        return frame if how is None else _rearranged(frame, how, at, label)
    except (ValueError, NotImplementedError):  # pandas makes no such frame
        return frame


def _rearranged(frame, how, at, label):
    "The same cells under other labels."
    if how == "drop":
        return frame.drop(columns=frame.columns[at])
    if how == "twice":
        return pd.concat([frame, frame.iloc[:, [at]]], axis=1)
    if how == "label":
        labels = [*frame.columns]
        labels[at] = label
        return frame.set_axis(pd.Index(labels, dtype=object, tupleize_cols=False), axis=1)
    if how == "index":
        return frame.set_axis([0] * len(frame))
    if how == "named":
        return frame.set_index(frame.columns[at])
    if how == "levels":
        return frame.set_axis(pd.MultiIndex.from_product([["a"], frame.columns]), axis=1)
    return pd.DataFrame()


def good_data():
    return movie_data(
        pd.DataFrame({"item_id": [1, 2, 3], "title": ["Heat", "Alien", "Ran"], "genres": "Crime|Drama"}),
        pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "rating": [3.0, 4.0, 2.0]}),
    )


@tried(48, 1500)
@given(frames("movies"), frames("ratings"), st.booleans(), st.booleans())
def test_odd_frames(movies, ratings, plain_movies, plain_ratings):
    "`movie_data`: refused, or checked so that everything behind it works, writing included."
    good = good_data()
    movies = good.movies.reset_index() if plain_movies else movies
    ratings = good.ratings if plain_ratings else ratings
    data = survives(movie_data, movies, ratings)
    if data is not None:
        survives(index_ratings, data)
        survives(MovieFeatures(min_count=1).fit_transform, data.movies)
        with sandbox() as folder:
            survives(write_tables, data, folder / "tables")
            survives(load_data, folder / "tables")


@tried(24, 800)
@given(frames("movies"), frames("ratings"))
def test_odd_newcomers(movies, ratings):
    "`add_movies` and `add_ratings`."
    data = index_ratings(good_data())
    if list(movies.columns).count("item_id") == 1 and movies["item_id"].dtype == int:
        movies = movies.assign(item_id=movies["item_id"] + 3)
    survives(add_movies, data, movies)
    grown = survives(add_ratings, data, ratings)
    if grown is not None:
        survives(index_ratings, grown)


# --- Parquet


def odd_arrays(n):
    "Arrow arrays of every kind that Parquet can hold."
    whole, text = pa.array([k % 3 + 1 for k in range(n)]), pa.array([str(k) for k in range(n)])
    lists = pa.array([["a", None]] * n)
    broken = pa.array([b"\xff\xfe"] * n, pa.binary()).cast(pa.string(), safe=False) if n else text
    return [
        whole, text, whole.cast(pa.int8()), whole.cast(pa.uint64()), whole.cast(pa.float16()), pa.nulls(n),
        whole.cast(pa.decimal128(30, 3)), pa.array([2**64 - 1] * n, pa.uint64()), lists,
        text.dictionary_encode(),
        whole.dictionary_encode(), broken, text.cast(pa.large_string()), text.cast(pa.binary()),
        text.cast(pa.string_view()), pa.array([{"a": 1}] * n, pa.struct([("a", pa.int64())])),
        pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())), whole.cast(pa.timestamp("s")),
        whole.cast(pa.timestamp("ns", "UTC")), whole.cast(pa.timestamp("us", "Mars/Olympus")),
        whole.cast(pa.int32()).cast(pa.date32()), whole.cast(pa.duration("s")),
        whole.cast(pa.int32()).cast(pa.time32("s")), pa.array([True, None] * n, pa.bool_())[:n],
        pa.array([None, 1] * n, pa.int64())[:n], pa.array([np.nan] * n, pa.float64()),
        pa.array([np.inf] * n, pa.float32()), pa.array([[1, 2]] * n, pa.list_(pa.int64(), 2)),
        pa.array([2**45] * n).cast(pa.timestamp("s")), pa.array([[["a"]]] * n),
        pa.array([decimal.Decimal(10) ** 30] * n, pa.decimal256(60, 2)),
    ]  # fmt: skip


@st.composite
def odd_parquet(draw, table):
    "A Parquet file as bytes, of odd types, with odd names or pandas notes, perhaps damaged."
    n = draw(st.sampled_from([3, 3, 3, 0, 1]))
    names = KNOWN[table][: draw(st.integers(min(2, len(KNOWN[table])), len(KNOWN[table])))]
    arrays = [pa.array([k % 3 + 1 for k in range(n)]) for _ in names]
    for k in draw(st.sets(st.integers(0, len(names) - 1), max_size=2)):
        arrays[k] = draw(st.sampled_from(odd_arrays(n)))
    if draw(st.sampled_from([False, False, False, True])):
        names[-1] = draw(st.sampled_from([names[0], "", "__index_level_0__", "a.b", "\x00", "other"]))
    held = pa.Table.from_arrays(arrays, names)
    columns = [{"name": names[0], "field_name": names[0], "pandas_type": "datetimetz", "numpy_type": "x",
                "metadata": {"timezone": "Mars/Olympus"}}]  # fmt: skip
    notes = [
        None, b"", b"garbage", b"{}", b"[]", b"null", b"\xff",
        json.dumps({"index_columns": [names[0]], "columns": [], "column_indexes": []}).encode(),
        json.dumps({"index_columns": [{"kind": "range", "start": 0, "stop": 9, "step": 0}]}).encode(),
        json.dumps({"index_columns": 3, "columns": 3, "column_indexes": 3}).encode(),
        json.dumps({"index_columns": [{"kind": "range", "name": None, "start": 0, "stop": n, "step": 1}],
                    "columns": columns, "column_indexes": [{"name": None, "pandas_type": "x",
                    "numpy_type": "datetime64[ns]", "field_name": None, "metadata": None}],
                    "pandas_version": "1"}).encode(),
    ]  # fmt: skip
    note = draw(st.sampled_from([None, None, *notes]))
    held = held.replace_schema_metadata(None if note is None else {b"pandas": note})
    out = io.BytesIO()
    pq.write_table(held, out)
    whole = out.getvalue()
    return draw(damaged(whole)) if draw(st.booleans()) else whole


@tried(32, 1000)
@given(st.data())
def test_odd_parquet(drawn):
    "Own tables as Parquet, one of them odd."
    good = good_data()
    odd = drawn.draw(st.sampled_from(["movies", "ratings"]))
    with sandbox() as folder:
        good.movies.reset_index().to_parquet(folder / "movies.parquet")
        good.ratings.to_parquet(folder / "ratings.parquet")
        (folder / f"{odd}.parquet").write_bytes(drawn.draw(odd_parquet(odd)))
        before = listing(folder)
        survives(use_data, folder)
        assert listing(folder) == before


# --- edges and graphs


def use_edges(path, items):
    A = edge_graph(read_edges(path), items, {})
    assert np.isfinite(A.data).all()
    return normalise(symmetrise(check_graph(A, len(items))))


ITEMS = [
    pd.Index([1, 2, 3]),
    pd.Index(["1", "2", "3"], dtype=object),
    pd.Index(["a", "b"]),
    pd.Index([0.5]),
    pd.Index([1]),
]


class Bomb:
    "What pickle would run."

    def __reduce__(self):
        return os.mkdir, (os.environ.get("FUZZ_BOMB", "bomb"),)


@st.composite
def edge_files(draw):
    "Bytes and the suffix they go under."
    kind = draw(st.sampled_from([".csv", ".parquet", ".npz"]))
    if kind == ".csv":
        whole = b"source,target,weight\n1,2,0.5\n2,3,1\n3,1,2\n"
        return draw(damaged(whole)), kind
    if kind == ".parquet":
        return draw(odd_parquet("edges")), kind
    odd = [
        np.array([1, 2, 3]), np.array([2, 3, 1]), np.array(["1", "2", "3"]), np.array(1), np.empty((0,)),
        np.ones((3, 2)), np.ones(2), np.array([1j] * 3), np.array([b"a", b"b", b"c"]), np.array([True] * 3),
        np.array([Bomb(), 1, 2], dtype=object), np.array([np.nan] * 3), np.array([2**64 - 1] * 3, np.uint64),
        np.array(["1999"] * 3, "M8[s]"), np.zeros(3, [("a", int)]), np.array([1e300] * 3), np.ones(3,
        np.float16),
        np.array([np.inf] * 3), np.array([-1.0] * 3), np.ones(3, ">f8"), np.array(["\ud800"] * 3),
    ]  # fmt: skip
    names = draw(
        st.sampled_from([["source", "target", "weight"], ["source", "target"], ["source", "a/../b"]])
    )
    held = io.BytesIO()
    np.savez(
        held,
        **{o: odd[k] if draw(st.booleans()) else draw(st.sampled_from(odd)) for k, o in enumerate(names)},
    )
    whole = held.getvalue()
    how = draw(st.sampled_from(["whole", "damaged", "zip", "header"]))
    if how == "header":  # an array that claims another size or type
        claims = [b"(3,)", b"(9999999999999,)", b"(-1,)", b"(3,3)", b"()", b"(True,)", b"(3.0,)", b"('a',)"]
        whole = whole.replace(b"(3,)", draw(st.sampled_from(claims)).ljust(4)[:60])
        whole = whole.replace(b"<i8", draw(st.sampled_from([b"<i8", b"|O8", b"<M8", b"|V8", b"<c8", b"xxx"])))
    if how == "zip":
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = {o: archive.read(o) for o in archive.namelist()}
        return draw(hostile_zip(members)), kind
    return (draw(damaged(whole)) if how != "whole" else whole), kind


@tried(60, 2000)
@given(edge_files(), st.sampled_from(ITEMS))
def test_odd_edges(file, items):
    "`read_edges`, then `edge_graph`; nothing in a file is run."
    whole, kind = file
    with sandbox() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUZZ_BOMB", str(folder / "bomb"))
        (folder / f"edges{kind}").write_bytes(whole)
        before = listing(folder)
        survives(use_edges, folder / f"edges{kind}", items)
        assert listing(folder) == before


@tried(24, 800)
@given(frames("edges"), st.sampled_from(ITEMS))
def test_odd_edge_frames(frame, items):
    A = survives(edge_graph, frame, items, {})
    assert A is None or np.isfinite(A.data).all()


@st.composite
def odd_graphs(draw):
    "Sparse matrices of odd parts, and what is none."
    n = draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["csr", "csc", "coo", "lil", "dok", "dia", "bsr", "dense", "none", "frame"]))
    A = sparse.random(n, n, 0.5, format="csr", dtype=np.float64, rng=np.random.default_rng(n))
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.sampled_from(["data", "indices", "indptr"]))
        values = getattr(A, part)
        odd = draw(st.sampled_from([np.nan, np.inf, -1, 1e300, 7, 10**6, 2**31 - 1, -(2**31), 2**40]))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(values) and part == "data":
                values[draw(st.integers(0, len(values) - 1))] = odd
            elif len(values) and np.isfinite(odd):
                values[draw(st.integers(0, len(values) - 1))] = np.array(odd).astype(values.dtype)
    if kind == "csr":
        to = draw(st.sampled_from([float, bool, complex, np.int8, np.uint64, np.longdouble]))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            A.data = A.data.astype(to)
        return A
    if kind in ("dense", "none", "frame"):
        return {"dense": np.ones((n, n)), "none": None, "frame": pd.DataFrame(np.ones((n, n)))}[kind]
    return sparse.random(n, n, 0.5, format=kind, rng=np.random.default_rng(n))


@tried(24, 800)
@given(odd_graphs(), st.integers(0, 4))
def test_odd_graphs(A, n_items):
    checked = survives(check_graph, A, n_items)
    if checked is not None:
        assert checked.shape == (n_items, n_items) and np.isfinite(checked.data).all()
        survives(normalise, checked)


# --- model folders

SMALL = {
    "graph": GraphConfig(k=3, corating_k=4),
    "model": ModelConfig(emb_dim=4, hidden_dim=8, head_dim=3),
    "training": TrainConfig(epochs=1),
    "ensemble": 1,
    "validation": 0.0,
    "progress": False,
}


def tiny_world(seed=0):
    return synthetic_data(12, 16, 70, n_themes=3, seed=seed, theme_words=4, plot_words=6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Folders of some small models: plain, with everything, and of another world."
    folder, every = (
        tmp_path_factory.mktemp("models"),
        ModelConfig(4, 8, encoder="sage", head="mlp", head_dim=3, id_embedding=True),
    )
    CorrectSmoothRecommender(**SMALL).fit(tiny_world()).save(folder / "plain")
    CorrectSmoothRecommender(**{**SMALL, "model": every, "ensemble": 2}).fit(tiny_world()).save(
        folder / "every"
    )
    text = tiny_world(1)
    text = movie_data(text.movies, text.ratings.assign(user_id="u" + text.ratings["user_id"].astype(str)))
    CorrectSmoothRecommender(**SMALL).fit(text).save(folder / "text")
    return {o.name: {f.name: f.read_bytes() for f in o.iterdir()} for o in folder.iterdir()}


def use_model(folder):
    "A model that loads answers."
    model = CorrectSmoothRecommender.load(folder)
    model.progress = False
    top = model.recommend(n=2)
    assert np.isfinite(top[["base", "refined"]].to_numpy()).all()
    if len(top):
        user, item = top.loc[0, ["user_id", "item_id"]]
        model.explain(user, item)
        model.similar_items(item, n=2, by="embedding")
        model.predict([user], [item])
    return model


def use_answers(folder):
    "What answers without the encoder; None where that takes the whole model."
    answers = read_answers(folder)
    if answers is not None:
        everybody = answers.state.data.users
        for top in lists_of(answers, everybody, ListConfig(n=2), lambda: answers.popularity):
            assert np.isfinite(top[["base", "refined"]].to_numpy()).all()


def with_sums(files):
    "The files of a model, and a list of them with the sums they have."
    sums = {o: hashlib.sha256(files[o]).hexdigest() for o in MODEL_FILES}
    return {**files, MARKER: json.dumps({"kind": "model", "files": [*sums], "sha256": sums}).encode()}


def load_mutated(files, corrected):
    "Load a model of these files, with sums put right or not; nothing in the folder changes."
    files = with_sums(files) if corrected else files
    with sandbox() as folder:
        write(folder, files)
        before = listing(folder)
        survives(use_model, folder)
        survives(use_answers, folder)
        assert listing(folder) == before


@pytest.mark.parametrize("corrected", [False, True], ids=["as is", "sums corrected"])
@tried(20, 800)
@given(drawn=st.data())
def test_damaged_models(saved, corrected, drawn):
    "Bytes of one or two files, also by somebody who knows how to put the sums right."
    files = dict(saved[drawn.draw(st.sampled_from(["plain", "every", "text"]))])
    for name in drawn.draw(st.sets(st.sampled_from([*MODEL_FILES, MARKER]), min_size=1, max_size=2)):
        files[name] = drawn.draw(damaged(files[name]))
    load_mutated(files, corrected)


JSON = [
    None, True, False, 0, 1, -1, 2, 3, 65536, 10**9, 2**63, 10**30, 10**400, 0.5, 1e300, float("nan"),
    float("inf"),
    "", "x", "dot", "mlp", "sage", "own", "cuda", "meta", "65536", "\ud800", "a" * 10_000, [], [[]], [0],
    ["x"],
    ["x", "x"], [None], {}, {"x": 1}, {"names": ["x"]}, [[["x"]]], [float("nan")], [10**400], list(range(50)),
]  # fmt: skip


def places_in(value, path=()):
    "Paths of everything inside a JSON value."
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(o for k, v in inner for o in places_in(v, (*path, k)))]


@st.composite
def changed_json(draw, text):
    "One to three parts of a JSON text replaced, removed, wrapped or exchanged."
    about = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places_in(about)[1:] or [()]))
        if not path:
            break
        inside = about
        for o in path[:-1]:
            inside = inside[o]
        how = draw(st.sampled_from(["put", "put", "put", "remove", "wrap", "more", "other"]))
        if how == "put":
            inside[path[-1]] = deepcopy(draw(st.sampled_from(JSON)))
        elif how == "remove":
            del inside[path[-1]]
        elif how == "wrap":
            inside[path[-1]] = [inside[path[-1]]]
        elif how == "more" and isinstance(inside, list):
            inside.append(deepcopy(draw(st.sampled_from(JSON))))
        elif how == "more":
            inside[draw(st.sampled_from(["x", "", "overview", "collection", "adult", "numbers", "k"]))] = {}
        else:
            path_of_other = draw(st.sampled_from(places_in(about)[1:]))
            other = about
            for o in path_of_other:
                other = other[o]
            inside[path[-1]] = json.loads(json.dumps(other))
    text = json.dumps(about)
    deep = draw(st.sampled_from([0] * 30 + [500, 200_000]))
    return (text if not deep else text[:-1] + ', "x": ' + "[" * deep + "]" * deep + "}").encode()


@tried(48, 2000)
@given(drawn=st.data())
def test_changed_settings_of_models(saved, drawn):
    "model.json with other values, kinds and sizes, deep nesting, or parts missing."
    files = dict(saved[drawn.draw(st.sampled_from(["plain", "every", "text"]))])
    files["model.json"] = drawn.draw(changed_json(files["model.json"]))
    load_mutated(files, drawn.draw(st.booleans()))


def _repacked(tensors):
    "A file of weights, sealed as ours are."
    with tempfile.TemporaryDirectory() as d:
        save_tensors(f"{d}/w", tensors)
        return Path(f"{d}/w").read_bytes()


@st.composite
def other_weights(draw, whole):
    "Sealed weights of other values, shapes, types or names."
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/w").write_bytes(whole)
        tensors, _ = load_tensors(f"{d}/w")
    name = draw(st.sampled_from([o for o in sorted(tensors) if tensors[o].numel()]))
    how = draw(
        st.sampled_from(
            ["nan", "inf", "huge", "type", "less", "more", "flat", "gone", "extra", "name", "empty"]
        )
    )
    value = tensors[name]
    if how in ("nan", "inf", "huge"):
        odd = {"nan": np.nan, "inf": np.inf, "huge": 3e38}[how]
        value.view(-1)[0] = odd if value.is_floating_point() else -(2**31)
    elif how == "type":
        kinds = [
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint8,
        ]
        tensors[name] = value.to(draw(st.sampled_from(kinds)))
    elif how == "less":
        tensors[name] = value[:-1].clone()
    elif how == "more":
        tensors[name] = torch.cat([value, value])
    elif how == "flat":
        tensors[name] = value.reshape(-1).clone()
    elif how == "empty":
        tensors[name] = torch.empty(0)
    elif how in ("gone", "name"):
        del tensors[name]
    if how in ("extra", "name"):
        tensors[
            draw(st.sampled_from(["x", "9.user.weight", "0.head.out.weight", "", "0", "__class__", "0.."]))
        ] = value.clone()
    return _repacked(tensors)


@st.composite
def other_graphs(draw):
    "A graph file of odd parts, or of another kind."
    n = draw(st.sampled_from([16, 16, 16, 3, 1]))
    parts = {
        "format": "csr",
        "shape": (n, n),
        "data": np.ones(2),
        "indices": [0, 1],
        "indptr": [0, 2] + [2] * (n - 1),
    }
    odd = [np.nan, -1, [], [0], [0, 99], [0, -5], [[0, 1]], "x", b"csc", 10**12, [np.nan, 1], [1j, 1],
           [2**40, 0],
           np.array([Bomb()], dtype=object), [0] * 9, True]  # fmt: skip
    for name in draw(st.sets(st.sampled_from(sorted(parts)), max_size=2)):
        parts[name] = draw(st.sampled_from([*odd, "csc", "coo", "bsr", "dia", (16, 17), (10**9, 10**9)]))
    held = io.BytesIO()
    try:
        np.savez_compressed(held, **parts)
    except ValueError:  # cells of several lengths
        return b""
    return held.getvalue()


@tried(48, 2000)
@given(drawn=st.data())
def test_forged_models(saved, drawn):
    "Files that are sound in themselves, and do not belong to such a model."
    kind = drawn.draw(st.sampled_from(["plain", "every", "text"]))
    files = dict(saved[kind])
    for name in drawn.draw(st.sets(st.sampled_from(MODEL_FILES[1:]), min_size=1, max_size=2)):
        table = name.partition(".")[0]
        if drawn.draw(st.integers(0, 4)) == 0:
            files[name] = saved[drawn.draw(st.sampled_from(sorted(saved)))][name]
        elif table in ("weights", "items"):
            files[name] = drawn.draw(other_weights(files[name]))
        elif table == "graph":
            files[name] = drawn.draw(other_graphs())
        elif drawn.draw(st.booleans()):
            files[name] = drawn.draw(odd_parquet(table))
        else:
            held = pd.read_parquet(io.BytesIO(files[name]))
            rows = drawn.draw(st.lists(st.integers(0, len(held) - 1), max_size=20)) if len(held) else []
            held = held.iloc[
                drawn.draw(st.sampled_from([rows, slice(None, -1), slice(None, None, -1), rows[:1] * 3]))
            ]
            files[name] = held.to_parquet(index=False)
    with sandbox() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUZZ_BOMB", str(folder / "bomb"))
        load_mutated(files, True)
        assert listing(folder) == {}


@tried(12, 300)
@given(drawn=st.data())
def test_misplaced_files_of_models(saved, drawn):
    "Files that are missing, folders, pipes, links to a device without an end."
    with sandbox() as folder:
        write(folder, saved["plain"])
        for name in drawn.draw(st.sets(st.sampled_from([*MODEL_FILES, MARKER]), min_size=1, max_size=2)):
            misplace(folder / name, drawn.draw(st.sampled_from(PLACES)))
        survives(use_model, folder)
        survives(use_answers, folder)


def test_large_models_are_not_made_room_for(saved):
    "Settings that tell of tens of gigabytes are refused without so much as asking for them."
    about = json.loads(saved["plain"]["model.json"])
    for sizes in ({"emb_dim": 65536, "hidden_dim": 65536}, {"head": "mlp", "head_dim": 65536}):
        about["settings"]["model"] |= sizes
        with sandbox() as folder:
            write(folder, with_sums({**saved["plain"], "model.json": json.dumps(about).encode()}))
            with guarded(), pytest.raises(InputError):
                CorrectSmoothRecommender.load(folder)


# --- command lines

VALUES = [
    "", "0", "1", "-1", "0.2", "nan", "inf", "1e400", "9" * 5000, "2e9", "text", "demo2", "é", "\udcff",
    "\x00", "a\nb",
    "default", "original", "{DATA}", "{DATA}/movies.csv", "{OUT}", "{OUT}/deeper", "{EDGES}",
    "nowhere/at/all", "..",
    "/dev/null", "/proc/out", "{DATA}/x.npz", "~nobody/x", "a" * 5000, "*", "--", "-h", "--seed=1", "%s",
    "%(prog)s",
]  # fmt: skip
SETTINGS = [
    "model", "model__emb_dim", "model__", "__emb_dim", "refinement__alpha", "refinement__rule",
    "graph__blocks",
    "graph__k", "features", "features__weights", "features__max_terms", "labels", "validation", "ensemble",
    "seed",
    "training__device", "training__epochs", "training__batch_size", "training__target",
    "training__patience", "x",
    "refinement__T", "features__min_count", "model____class__", "refinement__scale",
    "training__weight_decay",
]  # fmt: skip
SET_TO = [
    "1", "-1", "0.5", "null", "true", "[]", "[[]]", "{}", '{"a":1}', '"x"', "x", "", "NaN", "Infinity",
    "1e400",
    "9" * 5000, "[" * 100_000, '["overview"]', '{"overview":1e400}', '{"genres":[]}', "all", "cuda",
    "cuda:9", "=",
    "sage", "\ud800", '"\\ud800"', "%", "1" * 400, '[{"a":[1]}]',
]  # fmt: skip
FLAGS = ["--data", "--out", "--seed", "--preset", "--settings", "--edges", "--share", "--tune", "--pdb",
         "--xtra",
         "-h", "--speed", "data", "--dat", "--no-tune"]  # fmt: skip


@st.composite
def command_lines(draw):
    "Flags, some known, with values, some sensible."
    line = []
    for flag in draw(st.lists(st.sampled_from(FLAGS), max_size=4)):
        if flag == "--settings":
            pairs = draw(st.lists(st.tuples(st.sampled_from(SETTINGS), st.sampled_from(SET_TO)), max_size=3))
            line += [flag, draw(st.sampled_from([" ", " ", "\n", ","])).join(f"{k}={v}" for k, v in pairs)]
        elif flag in ("--tune", "-h", "--pdb"):
            line.append(flag)
        else:
            line += [flag, draw(st.sampled_from(VALUES) | st.text(max_size=5))]
    return line


class Fitted(Exception):
    "All has been checked that is checked before the long work."


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    "A folder to run commands in: data, edges, an earlier result, and things of somebody else's."
    root = tmp_path_factory.mktemp("stage")
    write_tables(tiny_world(), root / "data")
    edges = pd.DataFrame({"source": [0, 1, 2], "target": [1, 2, 3], "weight": [1, 0.5, 2]})
    edges.to_csv(root / "edges.csv", index=False)
    (root / "out").mkdir()
    (root / "out" / "summary.json").write_text("{}")
    write_marker(root / "out", "results")
    (root / "mine.txt").write_text("years of work")
    return root


def run_command(line):
    "Exit code and what it said, the long work left out."
    fits = []

    def fit(self, data, edges=None, callbacks=()):
        self._check()
        clone(self.features).fit(data.movies)
        if edges is not None:
            edge_graph(edges, data.movies.index)
        fits.append(self)
        raise InputError("enough")

    out, said = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(said):
        patch.setattr(sys, "argv", ["cs_run", *line])
        patch.setattr(CorrectSmoothRecommender, "fit", fit)
        patch.setattr(sys, "breakpointhook", lambda: pytest.fail("a debugger"))
        try:
            cs_run()
        except SystemExit as end:
            return end.code or 0, said.getvalue()
    return 0, said.getvalue()


@tried(60, 2500)
@given(command_lines())
def test_command_lines(stage, line):
    "Ends with 0, 1 or 2, with one line that says why, and has written nothing."
    known = {"{DATA}": stage / "data", "{OUT}": stage / "out", "{EDGES}": stage / "edges.csv"}
    for mark, path in known.items():
        line = [o.replace(mark, str(path)) for o in line]
    if "--data" not in line:
        line = ["--data", str(stage / "data"), *line]
    before = listing(stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage)
        code, said = survives(run_command, line)
    assert code in (0, 1, 2), (code, said)
    if code:
        assert len(said.strip().splitlines()) == 1 and said.startswith("cs_run: "), said
    assert listing(stage) == before


# --- whole runs, and what was found once


@pytest.mark.parametrize("name", [b"plain", b"caf\xe9"], ids=["plain", "no UTF-8"])
def test_a_run_writes_into_its_folder_only(name, tmp_path):
    "Nothing else is touched, and nothing is left beside it, however the data folder is called."
    source = tmp_path / os.fsdecode(name)
    source.mkdir()
    world = tiny_world()
    world.movies.reset_index().assign(genres=world.movies["genres"].str.join("|").to_numpy()).to_csv(
        source / "movies.csv", index=False
    )
    world.ratings.to_csv(source / "ratings.csv", index=False)
    before, said = listing(tmp_path), io.StringIO()
    quick = "training__epochs=1 ensemble=1 graph__k=3 model__emb_dim=4 validation=0"
    line = [
        "--data",
        str(source),
        "--out",
        str(tmp_path / "new" / "out"),
        "--settings",
        quick,
        "--share",
        "0.4",
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        patch.setattr(sys, "argv", ["cs_run", *line])
        with redirect_stderr(said):
            cs_run()
    after = listing(tmp_path)
    assert {k: v for k, v in after.items() if not k.startswith(str(tmp_path / "new"))} == before
    assert [o.name for o in (tmp_path / "new").iterdir()] == ["out"]
    assert isinstance(use_model(tmp_path / "new" / "out" / "model"), CorrectSmoothRecommender)


def forged(saved, **changes):
    "The plain model with some files changed by functions of their bytes, as `load_mutated` wants it."
    return {
        k: changes[k.partition(".")[0]](v) if k.partition(".")[0] in changes else v for k, v in saved.items()
    }


def weights_with(change):
    def forge(whole):
        with tempfile.TemporaryDirectory() as d:
            Path(f"{d}/w").write_bytes(whole)
            tensors, _ = load_tensors(f"{d}/w")
        return _repacked({k: change(o) if k.endswith("user.weight") else o for k, o in tensors.items()})

    return forge


def graph_by_columns(_):
    "Compressed by columns, with row numbers far outside, which a conversion would write to."
    held = io.BytesIO()
    parts = {
        "data": np.ones(2, np.float32),
        "indices": np.array([10**8, -(10**8)]),
        "indptr": [0, 2] + [2] * 15,
    }
    np.savez(held, format="csc", shape=(16, 16), **parts)
    return held.getvalue()


def users_twice(whole):
    held = pd.read_parquet(io.BytesIO(whole))
    return pd.concat([held, held]).to_parquet(index=False)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"weights": weights_with(lambda o: o * np.nan)}, "no numbers"),
        ({"weights": weights_with(lambda o: o + 3e38)}, "no numbers"),
        ({"weights": weights_with(lambda o: o.to(torch.complex64))}, "not numbers of 32 bits"),
        ({"users": users_twice}, "names a user twice"),
        ({"graph": graph_by_columns}, "no sound sparse matrix"),
    ],
)
def test_forged_models_found_before(saved, changes, why, tmp_path):
    files = forged(saved["plain"], **changes)
    write(tmp_path, with_sums(files))
    with pytest.raises(InputError, match=why):
        CorrectSmoothRecommender.load(tmp_path)


def test_digits_of_other_scripts(tmp_path):
    "An id in Arabic digits is text."
    write(tmp_path, {**TABLES, "ratings.csv": "user_id,item_id,rating\n١,1,3\n٢,2,4\n"})
    assert load_data(tmp_path).ratings["user_id"].tolist() == ["١", "٢"]


def test_half_characters():
    "Text that cannot be written as UTF-8 is mended where it is told only, and refused where it is an id."
    good = good_data()
    odd = good.movies.reset_index().astype(object)
    odd["title"], odd["adult"] = (
        pd.Series(["\ud800"] * 3, dtype=object),
        pd.Series(["\ud800"] * 3, dtype=object),
    )
    odd["genres"] = [["a\udfff"]] * 3
    data = movie_data(odd, good.ratings, "caf\udce9")
    assert (data.name, data.movies["title"][1], data.movies["genres"][1]) == ("caf?", "?", ("a?",))
    with pytest.raises(InputError, match="user_id of ratings cannot be read"):
        movie_data(good.movies, good.ratings.assign(user_id=pd.Series(["\ud800"] * 3, dtype=object)))


@pytest.mark.parametrize(
    "column",
    [[["a"], ["b"]], np.array([1, 2], np.float16), pd.Series([{}, {}])],
    ids=["lists", "float16", "dicts"],
)
def test_edges_by_what_is_no_id(column):
    with pytest.raises(InputError, match="source of edges must hold item ids|no edge joins"):
        edge_graph(pd.DataFrame({"target": [1, 2]}).assign(source=column), ITEMS[0])
