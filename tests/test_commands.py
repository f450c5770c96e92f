"""The commands that ask a saved model: on any terminal, in pipes, interrupted, and given any file."""

import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
from configparser import ConfigParser
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Timer

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from correct_smooth import commands
from correct_smooth.checks import InputError, printable
from correct_smooth.commands import open_model, table
from correct_smooth.graph import GraphConfig
from correct_smooth.rating_files import cut, rating_rows, ratings_for
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

pytestmark = pytest.mark.filterwarnings("error")  # a warning would be a line on stderr

ROOT = Path(__file__).parents[1]
SOME = tried(50, 1000)
QUICK = dict(graph=GraphConfig(k=5), training=TrainConfig(epochs=3), ensemble=2, progress=True)
TITLES = {  # of movies 0, 1, ...
    0: "七人の侍",
    1: "Ame\N{COMBINING ACUTE ACCENT}lie",
    2: "Night\x1b[2J\r\nof the\tEscape",
    3: "The Twins",
    4: "The Twins",
    5: "",
    6: "Dr. Strangelove; or, How I Learned to Stop Worrying and Love the Bomb: a Title Longer than Many",
    7: '"Quoted", the Movie',
    8: "100% {name} %s \\n",
    9: "a\N{RIGHT-TO-LEFT OVERRIDE}b",
    10: "Plain",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of two models: of numbered users and movies, and of such with names."
    folder, world = tmp_path_factory.mktemp("models"), synthetic_data(60, 80, 1_500, seed=0)
    movies = world.movies.assign(
        title=[TITLES.get(k, o) for k, o in enumerate(world.movies["title"])],
        year=np.where(np.arange(len(world.movies)) % 7, 1950 + np.arange(len(world.movies)), np.nan),
    )
    numbered = replace(world, movies=movies)
    r = world.ratings
    named = replace(
        numbered,
        movies=movies.set_axis([f"f{o:03}" for o in movies.index]).rename_axis("item_id"),
        ratings=r.assign(
            user_id=r["user_id"].map("user, {:03}".format), item_id=r["item_id"].map("f{:03}".format)
        ),
    )
    for name, data in (("numbered", numbered), ("named", named)):
        CorrectSmoothRecommender(**QUICK).fit(data).save(folder / name)
    return folder


@pytest.fixture
def cs(models, monkeypatch):
    "Run a command in this process: exit code, stdout, stderr."
    monkeypatch.chdir(models)

    def run(name, *flags, columns=80):
        out, said = io.StringIO(), io.StringIO()
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        with redirect_stdout(out), redirect_stderr(said):
            try:
                getattr(commands, name)()
                code = 0
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), said.getvalue()

    return run


def script(name, *flags):
    "What a console script runs, and as a shell runs it: to a job in the background Ctrl-C means nothing."
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from correct_smooth.shell import {name} as main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, flags)]


def environment(**variables):
    "This one, with the package of this checkout and no width."
    kept = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


@contextmanager
def watched(command, **options):
    "A process that is killed if it waits for what will not come."
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), **options) as process:
        alarm = Timer(600, process.kill)
        alarm.start()
        yield process
        process.wait()
        alarm.cancel()


def checksums(folder):
    return {o.name: hashlib.sha256(o.read_bytes()).hexdigest() for o in folder.iterdir()}


def rows_of(text):
    "Lines of the tables in a text."
    return [o for o in text.splitlines() if re.match(r" *(rank|\d+)  ", o)]


def test_console_scripts_are_commands():
    config = ConfigParser()
    config.read(ROOT / "settings.ini")
    listed = dict(o.split("=") for o in config["DEFAULT"]["console_scripts"].split())
    assert list(listed) == ["cs_run", "cs_recommend", "cs_similar", "cs_fold_in", "cs_partition", "cs_serve"]
    for name, target in listed.items():
        module, _, function = target.partition(":")
        assert function == name and callable(getattr(import_module(module), name))


@pytest.mark.parametrize("columns", [1, 7, 24, 40, 80, 200])
def test_tables_fit_the_terminal(cs, columns):
    for line in (
        "cs_recommend --model numbered --user 7 --n 80",
        "cs_recommend --model numbered --user 7 --n 80 --why",
        "cs_similar --model numbered --title Plain --n 79 --by embedding",
    ):
        code, out, said = cs(*line.split(), columns=columns)
        assert (code, said) == (0, "")
        lines = out.splitlines()
        shown = lines[lines.index("") + 1 :]
        assert len(shown) > 40 and all(cell_len(o) <= columns for o in shown)
        assert columns < 24 or all(o.startswith("rank") or re.match(r" *\d+  \S", o) for o in shown)
        assert not any(c in out for c in "\x1b\r\t\N{RIGHT-TO-LEFT OVERRIDE}")
        if columns == 200:
            assert "…" not in out


def test_titles_are_shown_as_they_are(cs):
    _, out, _ = cs("cs_similar", "--model", "numbered", "--title", "Plain", "--n", 79, "--by", "embedding")
    assert len(rows_of(out)) == 80
    for title in ("七人の侍", TITLES[1], "#5", '"Quoted", the Movie', "100% {name} %s \\n", "a b"):
        assert f"  {title}  " in out
    _, uncut, _ = cs(
        *("cs_similar", "--model", "numbered", "--title", "Plain", "--n", 79, "--by", "embedding"),
        columns=200,
    )
    assert TITLES[6] in uncut and TITLES[6] not in out


LETTERS = st.text(st.sampled_from("ab 七侍\N{COMBINING ACUTE ACCENT}\x1b\n…é"), max_size=30)


@SOME
@given(LETTERS, st.integers(1, 40))
def test_cut_keeps_a_beginning(text, width):
    short = cut(text := printable(text), width)
    assert cell_len(short) <= width
    assert short == text if cell_len(text) <= width else text.startswith(short.removesuffix("…").rstrip())


@SOME
@given(st.lists(st.tuples(LETTERS, LETTERS, st.floats(0, 1)), max_size=4), st.integers(20, 90))
def test_any_table_fits(rows, width):
    "On terminals of twenty columns or more."
    frame = pd.DataFrame(rows, columns=["title", "moved most by", "score"])
    frame.insert(0, "rank", range(1, len(rows) + 1))
    lines = table(frame.assign(base=frame["score"], year=1999), width).split("\n")
    assert len(lines) == len(rows) + 1 and all(cell_len(o) <= width for o in lines)


def test_users_by_number_and_by_name(cs):
    _, one, _ = cs("cs_recommend", "--model", "numbered", "--user", "7")
    _, two, _ = cs("cs_recommend", "--model", "numbered", "--user", " 7, 12 ,7")
    assert two.startswith(one.rstrip("\n")) and two.count("rank") == 2
    code, named, said = cs("cs_recommend", "--model", "named", "--user", "user, 007")
    assert (code, said) == (0, "") and named.startswith("user user, 007, ")
    assert rows_of(named)[1:] == rows_of(one)[1:]
    code, out, said = cs("cs_recommend", "--model", "named", "--user", "ann,7")
    assert (code, out) == (2, "") and "2 users (ann, 7) are unknown to this model" in said
    code, out, said = cs("cs_recommend", "--model", "numbered", "--user", "7,-5")
    assert (code, out) == (2, one) and said.startswith("cs_recommend: user -5 is unknown")


def answered(models, name, *flags):
    "What a command has printed in a new process, and what it has loaded."
    code = f"""
import sys
sys.argv = ["{name}", *{flags!r}]
from correct_smooth.shell import {name}
{name}()
print(" ".join(sys.modules))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=models,
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text, _, loaded = done.stdout.rstrip("\n").rpartition("\n")
    return text, set(loaded.split())


@pytest.mark.parametrize("why", [(), ("--why",)])
@pytest.mark.parametrize("name", ["numbered", "named"])
def test_a_list_waits_for_nothing_slow(models, name, why, monkeypatch):
    "It loads neither PyTorch nor scikit-learn, and is that of the whole model."
    monkeypatch.setenv("COLUMNS", "200")
    model = open_model(models / name)
    user = model.users_[7]
    text, loaded = answered(models, "cs_recommend", "--model", name, "--user", str(user), *why)
    assert not {"torch", "sklearn", "matplotlib"} & loaded
    top = model.recommend([user])
    shown = rows_of(text)[1:]
    assert len(shown) == len(top)
    for row, score in zip(shown, top["score"], strict=True):
        assert f"{score:.3f}" in row
    assert text == commands.list_text(model.ready_, user, 10, bool(why))


@pytest.mark.parametrize("by", ["graph", "embedding"])
def test_what_is_alike_waits_for_nothing_slow(models, by):
    text, loaded = answered(models, "cs_similar", "--model", "numbered", "--title", "plain", "--by", by)
    assert not {"torch", "sklearn", "matplotlib"} & loaded
    alike = open_model(models / "numbered").similar_items(10, by=by)
    shown = [row.split()[-1] for row in rows_of(text)[1:]]
    assert shown == [f"{o:.3f}" for o in alike["similarity"]]


def test_why_names_a_rating_of_theirs(cs, models):
    code, out, _ = cs("cs_recommend", "--model", "numbered", "--user", 7, "--why", columns=200)
    model = open_model(models / "numbered")
    theirs = model.data_.ratings.query("user_id == 7")
    names = {
        printable(TITLES.get(o, model.data_.movies.at[o, "title"])) or f"#{o}" for o in theirs["item_id"]
    }
    found = re.findall(r"[+-]\d\.\d{3} (.+?) \((\d(?:\.5)?)\)", out)
    assert code == 0 and len(found) == 10 and {o for o, _ in found} <= names


def test_everything_rated(cs, models, tmp_path):
    model = open_model(models / "numbered")
    pd.DataFrame({"user_id": 7, "item_id": model.items_, "rating": 3.0}).to_csv(tmp_path / "all.csv")
    assert (
        cs("cs_fold_in", "--model", "numbered", "--ratings", tmp_path / "all.csv", "--out", tmp_path / "m")[0]
        == 0
    )
    code, out, said = cs("cs_recommend", "--model", tmp_path / "m", "--user", 7)
    assert (code, out, said) == (0, "user 7, 80 ratings: there is nothing they have not rated\n", "")


@pytest.mark.parametrize(
    "line, message",
    [
        ("cs_recommend", "--model is missing"),
        ("cs_recommend --model numbered", "--user is missing"),
        ("cs_recommend --model numbered --user", "expected one argument"),
        ("cs_recommend --model numbered --user 7.5", "user '7.5' cannot be"),
        ("cs_recommend --model numbered --user 99999999999999999999", "cannot be: the users of this model"),
        ("cs_recommend --model numbered --user ,", "names nobody"),
        ("cs_recommend --model numbered --user 7 --n -1", "n must be a whole number from 1"),
        ("cs_recommend --model numbered 7", "unrecognized arguments: 7"),
        ("cs_recommend --model nowhere --user 7", "there is no saved model in nowhere"),
        ("cs_recommend --model /dev/null --user 7", "no saved model"),
        ("cs_recommend --model . --user 7", "there is no saved model in ."),
        (f"cs_recommend --model {'x' * 5000} --user 7", "name too long"),
        ("cs_similar --model numbered", "--title is missing"),
        ("cs_similar --model numbered --title twins", "'twins' may be The Twins (1953, id 3), The Twins"),
        ("cs_similar --model numbered --title qqqqqq", "no item is called 'qqqqqq'"),
        ("cs_similar --model numbered --title Plain --by taste", "by must be one of graph, embedding"),
        ("cs_fold_in --model numbered", "--ratings is missing"),
        ("cs_fold_in --model numbered --ratings nowhere.csv", "there is no file nowhere.csv"),
        ("cs_fold_in --model numbered --ratings .", "cannot be read"),
        ("cs_fold_in --model numbered --ratings nowhere.csv --out .", "is the current folder, or above it"),
        ("cs_fold_in --model numbered --ratings numbered/users.parquet", "needs the columns rating"),
    ],
)
def test_a_mistake_costs_one_line(cs, line, message):
    code, out, said = cs(*line.split())
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert message in said and said.startswith(line.split()[0])


def test_a_broken_model_is_one_line(cs, models, tmp_path):
    for name in ("model.json", "movies.parquet", "weights.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        for o in (models / "numbered").iterdir():
            (folder / o.name).write_bytes(o.read_bytes() if o.name != name else b"{")
        code, out, said = cs("cs_recommend", "--model", folder, "--user", 7)
        assert (code, out, said.count("\n")) == (2, "", 1)


WANTED = pd.DataFrame({"item_id": [10, 6, 0], "rating": [4.5, 3.0, 1.0]})


def csv_text(sep, comma, quote, end):
    "Three ratings as a spreadsheet may save them."
    stars = ["4,5", "3", "1,0"] if comma else ["4.5", "3", "1.0"]
    cells = [
        ("Title", "Rating", "Seen"),
        *zip(["plain", TITLES[6], "七人の侍"], stars, ["", "x", ""], strict=True),
    ]

    def cell(text):
        return f'"{text}"' if quote or any(o in text for o in ",;\t") else text

    return "".join(sep.join(map(cell, o)) + end for o in cells)


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("quote", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_csv_as_spreadsheets_save_it(models, tmp_path, sep, bom, quote, end):
    model = open_model(models / "numbered")
    for comma in (False, True):
        path = tmp_path / "my.csv"
        path.write_bytes(bom + csv_text(sep, comma, quote, end).encode())
        found, notes = ratings_for(model, path)
        pd.testing.assert_frame_equal(found[["item_id", "rating"]], WANTED, check_dtype=False)
        assert found["user_id"].unique().tolist() == [60]
        assert notes == ["left out: the column Seen"]


@pytest.mark.parametrize("name, ids", [("numbered", [60, 3]), ("named", ["new one", "user, 003"])])
def test_parquet_and_kinds_of_ids(models, tmp_path, name, ids):
    model = open_model(models / name)
    given = pd.DataFrame({"user_id": ids, "item_id": model.items_[[4, 5]], "rating": [5, 1]})
    text = given.assign(user_id=given["user_id"].astype(str))
    for same in (given, text, given.set_axis([7, 7]), given.set_index("user_id")):
        same.to_parquet(tmp_path / "my.parquet")
        found, notes = ratings_for(model, tmp_path / "my.parquet")
        pd.testing.assert_frame_equal(found, given, check_dtype=False)
        assert notes == []
    given.drop(columns="user_id").to_csv(tmp_path / "my.csv", index=False)
    found, _ = ratings_for(model, tmp_path / "my.csv")
    assert found["user_id"].unique().tolist() == [60 if name == "numbered" else "new"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "cannot be read"),
        ("\n\ntitle,rating\n", "cannot be read"),
        ("title,rating\n", "holds no ratings"),
        ("title\nPlain\n", "needs the columns rating"),
        ("userName,title,rating\nann,Plain,5\n", "and user_id if it is of several people"),
        ("title,rating\nPlain,\n", "a rating must be a number: row 2: ''"),
        ("title,rating\n\nPlain,good\n", "row 3: 'good'"),
        ("title,rating\nPlain,inf\n", "row 2: 'inf'"),
        ("user_id,title,rating\n60,Plain,4\n,Plain,5\n", "must be whole numbers, such as 0: row 3: ''"),
        ("user_id,title,rating\nme,Plain,5\n", "row 2: 'me'"),
        ("item_id,rating\n10,5\n10000,5\n", "items unknown to this model: row 3: '10000'"),
        ("title,rating\nPlain,5\nTwins,5\n", "not clear: row 3: 'Twins' may be The Twins (1953, id 3)"),
        ("title,rating\n" + "".join(f"qqqq{k}{k},5\n" for k in range(9)), "row 6: 'qqqq44', and 4 more"),
        (
            "title,rating\nTwins,5\n,5\n",
            "row 2: 'Twins' (perhaps #3 The Twins (1953) or #4 The Twins (1954)), row 3: ''",
        ),
        ("title,rating\nThe, Twins,5\n", "more cells than its header"),
        ('title,rating\n"Plain,5\n', "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(cs, tmp_path, text, message):
    (tmp_path / "my.csv").write_text(text)
    code, out, said = cs("cs_fold_in", "--model", "numbered", "--ratings", tmp_path / "my.csv")
    assert (code, out, said.count("\n")) == (2, "", 1), said
    assert message in said


@pytest.mark.parametrize(
    "header",
    [
        "Title,Year,Rating",
        "name, YEAR ,rating",
        "Date,Name,Year,Letterboxd URI,Rating",
        "title,year,Your Rating",
    ],
)
def test_titles_with_years(models, tmp_path, header):
    "Remakes are told apart by the year, in the columns of whatever service."
    names = [o.strip().casefold() for o in header.split(",")]
    row = {"date": "2024-01-01", "letterboxd uri": "https://boxd.it/x"}
    rows = [
        ("The Twins", "1954", "5"),
        ("the twins", "1953", "1"),
        ("Movie 11", "1961.0", "2"),
        ("Movie 12", "", "3"),
    ]
    cells = [{**row, names[-3 if "date" not in names else 1]: t, "year": y, names[-1]: s} for t, y, s in rows]
    text = "\n".join([header, *(",".join(o[k] for k in names) for o in cells)])
    (tmp_path / "mine.csv").write_text(text)
    found, notes = ratings_for(open_model(models / "numbered"), tmp_path / "mine.csv")
    assert found["item_id"].tolist() == [4, 3, 11, 12] and found["rating"].tolist() == [5, 1, 2, 3]
    assert notes == []


@pytest.mark.parametrize(
    "rows, message",
    [
        ("The Twins,1999,5", "row 2: no item is called 'The Twins .1999.'; near it: The Twins .1953, id 3"),
        ("The Twins,,5", "row 2: 'The Twins' may be .*Write the year too"),
        ("The Twins,54,5", "a year must be a number of four digits: row 2: '54'"),
        ("The Twins,soon,5", "a year must be a number of four digits: row 2: 'soon'"),
        ("The Twins (1954),1953,5", "title and year tell of different years: row 2"),
        ("The Twins,1999,5\nPlain,1812,5", "row 2: .*perhaps #3 The Twins .1953.*row 3: .*perhaps #10 Plain"),
    ],
)
def test_years_that_do_not_fit(models, tmp_path, rows, message):
    "Refused with the row, and with what may be meant."
    (tmp_path / "mine.csv").write_text(f"title,year,rating\n{rows}\n")
    with pytest.raises(InputError, match=message):
        ratings_for(open_model(models / "numbered"), tmp_path / "mine.csv")


@pytest.mark.parametrize(
    "rating, message",
    [
        ([[1, 2], [3]], "row 1: '[1 2]', row 2: '[3]'"),
        ([np.nan, 4.0], "row 1: ''"),
        ([True, False], "row 1: 'True', row 2: 'False'"),
        ([None, "x" * 50], "row 2: 'xxx"),
    ],
)
def test_odd_columns_of_parquet(cs, tmp_path, rating, message):
    pd.DataFrame({"item_id": [1, 2], "rating": rating}).to_parquet(tmp_path / "my.parquet")
    code, out, said = cs("cs_fold_in", "--model", "numbered", "--ratings", tmp_path / "my.parquet")
    assert (code, out, said.count("\n")) == (2, "", 1) and message in said


@SOME
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from('title rating user_id item_id , ; \t " \n \r\n 5 Plain \ufeff \0 PAR1'.split(" "))
        )
        .map("".join)
        .map(str.encode),
    )
)
def test_any_file_is_read_or_refused(tmp_path, content):
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    try:
        rows, _ = rating_rows(path)
    except InputError:
        return
    assert "rating" in rows and len(rows)


def test_a_newcomer_is_kept_only_if_asked_for(cs, models, tmp_path):
    (tmp_path / "my.csv").write_text("title,rating\nPlain,5\n七人の侍,1\n")
    before = checksums(models / "numbered")
    line = ("cs_fold_in", "--model", "numbered", "--ratings", tmp_path / "my.csv", "--n", 7)
    code, told, said = cs(*line)
    assert (code, said) == (0, "") and told.rstrip().endswith("--out DIR saves the model with them")
    assert told.startswith("new: user 60, 2 ratings\n") and checksums(models / "numbered") == before
    code, kept, said = cs(*line, "--out", tmp_path / "grown")
    assert (code, said) == (0, "") and rows_of(kept) == rows_of(told)
    assert checksums(models / "numbered") == before
    _, again, _ = cs("cs_recommend", "--model", tmp_path / "grown", "--user", 60, "--n", 7)
    assert rows_of(again) == rows_of(told) and again.startswith("user 60, 2 ratings")
    pd.testing.assert_frame_equal(
        open_model(tmp_path / "grown").recommend(range(60)), open_model(models / "numbered").recommend()
    )


def test_a_model_may_be_replaced_by_itself_with_more(cs, models, tmp_path):
    CorrectSmoothRecommender.load(models / "numbered").save(tmp_path / "m")
    (tmp_path / "my.csv").write_text("item_id,rating\n1,5\n2,1\n")
    for user in (60, 61):
        code, out, _ = cs(
            "cs_fold_in", "--model", tmp_path / "m", "--ratings", tmp_path / "my.csv", "--out", tmp_path / "m"
        )
        assert code == 0 and f"new: user {user}," in out
    assert len(open_model(tmp_path / "m").users_) == 62
    assert [o.name for o in tmp_path.iterdir() if o.name.startswith(".")] == []


def test_many_people_are_told_of_in_few_words(cs, tmp_path):
    rows = [f"{user},{item},{1 + (user + item) % 5}" for user in range(50, 70) for item in (1, 2)]
    (tmp_path / "my.csv").write_text("\n".join(["user_id,item_id,rating", *rows, "99,1,5", "99,1,4"]))
    code, out, _ = cs("cs_fold_in", "--model", "numbered", "--ratings", tmp_path / "my.csv")
    assert code == 0 and out.count("rank") == 5
    assert "known before: user 50 (2 ratings), 51 (2 ratings)" in out and " and 5 more\n" in out
    assert "and 6 more new users" in out
    assert out.startswith("left out: 1 ratings replaced by a later one of the same user and item\n")


def test_newcomers_with_names(cs, tmp_path):
    (tmp_path / "my.csv").write_text("title,rating\nPlain,5\n七人の侍,1\n")
    for user in ("new", "new-2"):
        code, out, said = cs(
            *("cs_fold_in", "--model", "named" if user == "new" else tmp_path / "m"),
            *("--ratings", tmp_path / "my.csv", "--out", tmp_path / "m"),
        )
        assert (code, said) == (0, "") and out.startswith(f"new: user {user}, 2 ratings")
    assert cs("cs_recommend", "--model", tmp_path / "m", "--user", "new-2")[1].startswith("user new-2, 2 rat")


def test_letters_that_a_terminal_lacks(models):
    flags = ("--model", "numbered", "--title", "Plain", "--n", 79, "--by", "embedding")
    ascii_only = environment(PYTHONIOENCODING="ascii", LC_ALL="C")
    done = subprocess.run(script("cs_similar", *flags), cwd=models, env=ascii_only, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"  ????  " in done.stdout and done.stdout.isascii()


def test_a_reader_that_leaves_is_no_error(models):
    flags = ("--model", "numbered", "--user", "7")
    with watched(script("cs_recommend", *flags), stdout=subprocess.PIPE, cwd=models) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_one_line(models):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            script("cs_recommend", "--model", "numbered", "--user", "7"),
            cwd=models, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "No space left" in done.stderr


WAITING = """
import signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)
from correct_smooth import commands, shell

def wait(*_):
    print("waiting", flush=True)
    signal.pause()

commands.ratings_for = wait
sys.argv = ["cs_fold_in", *sys.argv[1:]]
shell.cs_fold_in()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_ctrl_c_is_one_line(models, tmp_path):
    flags = ("--model", "numbered", "--ratings", "my.csv", "--out", tmp_path / "out")
    line = [sys.executable, "-c", WAITING, *map(str, flags)]
    with watched(line, stdout=subprocess.PIPE, cwd=models, text=True) as process:
        assert process.stdout.readline() == "waiting\n"  # in the middle of the command
        process.send_signal(signal.SIGINT)
        out, said = process.communicate()
    assert (process.returncode, out, said) == (130, "", "cs_fold_in: stopped; no result was written\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer, code", [(b"9\n2\n", 0), (b"\x04", 2), (b"\x03", 130)])
def test_on_a_terminal_it_asks_back(models, answer, code):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 44, 0, 0))
    with watched(
        script("cs_similar", "--model", "numbered", "--title", "twins", "--n", 30, "--by", "embedding"),
        cwd=models, stdin=there, stdout=there,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(there)
        seen, sent = b"", False
        while True:
            try:
                part = os.read(here, 10_000)
            except OSError:  # nobody holds the other end any more
                break
            if not part:
                break
            seen += part
            if not sent and b"for none: " in seen:
                sent = bool(os.write(here, answer))
        said = process.stderr.read().decode()
    os.close(here)
    lines = seen.decode().replace("\r", "").splitlines()
    assert lines[:3] == ["which one is 'twins'?", "   1  The Twins (1953)", "   2  The Twins (1954)"]
    assert process.returncode == code and said.count("\n") == (code > 0)
    if code == 0:
        assert "like The Twins (1954), by embedding\n" in "\n".join(lines)
        shown = lines[lines.index("") + 1 :]
        assert len(shown) == 31 and all(cell_len(o) <= 44 for o in shown) and "…" in seen.decode()
    elif code == 2:
        assert "'twins' may be The Twins (1953, id 3)" in said


KERNELS = """
import gc, sys

from numba.core.registry import CPUDispatcher

from correct_smooth.experiment import run
from correct_smooth.graph import GraphConfig
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

quick = dict(graph=GraphConfig(k=5), training=TrainConfig(epochs=1), ensemble=2, progress=False)
data, out = sys.argv[1:]
write_tables(synthetic_data(60, 80, 1_500, seed=0), data)
run(data, out, 0, CorrectSmoothRecommender(**quick))
model = CorrectSmoothRecommender.load(out + "/model").set_params(progress=False)
users, item = list(model.users_[:3]), model.items_[0]
for by in ("both", "watch", "like"):
    model.recommend(users, by=by)
    model.recommend(users[:1], by=by)
    model.recommend_for({item: 4.0}, by=by)
model.predict(users, [item] * 3)
model.explain(users[0], item)
kinds = {}
for one in gc.get_objects():
    if type(one) is CPUDispatcher and "correct_smooth" in one.py_func.__module__:
        kinds.setdefault(one.py_func, []).extend(one.signatures)
print(sum(map(len, kinds.values())))
print({kernel.__name__: some for kernel, some in kinds.items() if len(some) > 1})
assert "torch._dynamo" not in sys.modules  # nothing is compiled by PyTorch: a second saved
"""


def test_no_kernel_is_compiled_for_two_kinds_of_arrays(tmp_path):
    "Each would cost a first run seconds more."
    line = [sys.executable, "-c", KERNELS, str(tmp_path / "data"), str(tmp_path / "out")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled, twice = done.stdout.splitlines()[-2:]
    assert int(compiled) >= 10 and twice == "{}"
