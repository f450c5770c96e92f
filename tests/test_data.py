"""Splits, labels, dirty tables, damaged files, and writing that is cut short."""

import ast
import io
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from effort import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from correct_smooth import dataset, sources, tables
from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.dataset import (
    by_time,
    cold_items,
    cold_users,
    holdout,
    index_ratings,
    leave_last,
    positions,
    split,
)
from correct_smooth.files import MARKER, atomic_folder, write_marker
from correct_smooth.ids import find_ids
from correct_smooth.parsing import as_names, as_numbers
from correct_smooth.sources import load_data, read_movielens, read_movies_dataset, read_tables, write_tables
from correct_smooth.synthetic import synthetic_data, write_synthetic

SOME = tried(15, 200)
SPLITS = {
    "holdout": lambda r: holdout(r, 0.3, seed=3),
    "leave_last": lambda r: leave_last(r, 2),
    "by_time": lambda r: by_time(r, 0.3),
    "cold_items": lambda r: cold_items(r, 0.3, seed=3),
    "cold_users": lambda r: cold_users(r, 0.3, seed=3),
}
EACH_SPLIT = pytest.mark.parametrize("mark", SPLITS.values(), ids=SPLITS)


# splits


@st.composite
def ratings(draw, least=1):
    "Each user and item at most once; times may be equal; user ids are numbers or text."
    cells = st.tuples(st.integers(0, 7), st.integers(0, 9))
    cells = draw(st.lists(cells, min_size=least, max_size=40, unique=True))
    n = len(cells)
    user, item = np.array(cells).T
    stars = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0, 3.5, 5.0]), min_size=n, max_size=n))
    when = draw(st.lists(st.integers(0, 30), min_size=n, max_size=n))
    who = user if draw(st.booleans()) else np.array([f"u{o}" for o in user])
    table = {"user_id": who, "item_id": item, "rating": stars, "timestamp": when}
    return pd.DataFrame(table)


def with_movies(table):
    "The ratings as a data set of ten movies."
    return movie_data(pd.DataFrame({"item_id": range(10)}), table)


def by_user(table, column):
    "The column's values of each user."
    return {u: o[column].to_numpy() for u, o in table.groupby("user_id")}


@EACH_SPLIT
@SOME
@given(table=ratings())
def test_splits_partition_the_ratings(mark, table):
    "Training and held-out part hold every rating once, unchanged and in order."
    data = with_movies(table)
    hidden = mark(data.ratings)
    assert hidden.shape == (len(table),) and hidden.dtype == bool
    assume(not hidden.all())
    parts = split(data, hidden)
    for part, kept in zip(parts, (~hidden, hidden), strict=True):
        pd.testing.assert_frame_equal(part.ratings, data.ratings[kept].reset_index(drop=True))
        assert part.movies is data.movies
    assert sum(len(o.ratings) for o in parts) == len(table)


@EACH_SPLIT
@SOME
@given(table=ratings())
def test_splits_do_not_look_at_the_stars(mark, table):
    "Other ratings of the same movies at the same times are held back alike, time after time."
    other = table.assign(rating=5.5 - table["rating"])
    first = mark(table)
    assert_array_equal(mark(other), first)
    assert_array_equal(mark(table.copy()), first)


@SOME
@given(ratings(), st.floats(0.01, 0.99), st.integers(0, 99))
def test_holdout_hides_a_share_of_each_user(table, share, seed):
    "Of n ratings the rounded share is hidden, at least one if there are two, never all."
    hidden = holdout(table, share, seed)
    for marks in by_user(table.assign(hidden=hidden), "hidden").values():
        n = len(marks)
        assert marks.sum() == (0 if n == 1 else np.clip(np.round(share * n), 1, n - 1))
        assert not marks.all()


@SOME
@given(ratings(), st.integers(1, 5))
def test_leave_last_hides_the_latest(table, n):
    "The n latest of each user are hidden, never all; none kept is later than one hidden."
    table = table.assign(hidden=leave_last(table, n))
    when = by_user(table, "timestamp")
    for user, hidden in by_user(table, "hidden").items():
        assert hidden.sum() == min(n, len(hidden) - 1)
        if hidden.any():
            assert when[user][hidden].min() >= when[user][~hidden].max()


@SOME
@given(ratings(), st.floats(0.01, 0.99))
def test_by_time_cuts_at_one_moment(table, share):
    "Everything hidden is later than everything kept, and no more than the share is hidden."
    hidden, when = by_time(table, share), table["timestamp"]
    assert not hidden.all() and hidden.sum() <= np.ceil(share * len(table))
    if hidden.any():
        assert when[hidden].min() > when[~hidden].max()


KEYS = {
    "whole": st.integers(-3, 3),
    "real": st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, -0.0, np.inf, -np.inf]),
    "gaps": st.sampled_from([0.5, 1.5, np.nan]),
    "dates": st.sampled_from(np.array(["2000-01-01", "2001-01-01", "NaT"], "M8[s]").tolist()),
    "text": st.sampled_from(["a", "b", ""]),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@SOME
@given(data=st.data())
def test_places_are_those_of_a_sort_by_user_and_key(keys, data):
    "Equal keys stand in the order of their rows, gaps come last, in whatever order the users come."
    user = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=30)))
    key = np.array(data.draw(st.lists(keys, min_size=len(user), max_size=len(user))))
    key = key.astype("M8[s]") if key.dtype == object else key
    place, size = dataset._position_within(user, key)
    order = np.lexsort((key, user))
    for u in set(user):
        rows = order[user[order] == u]
        assert_array_equal(place[rows], np.arange(len(rows))[::-1])
        assert_array_equal(size[rows], len(rows))


def test_by_time_hides_the_share_where_times_differ():
    "Of a hundred ratings at different times the latest twenty are hidden."
    table = pd.DataFrame({"timestamp": np.random.default_rng(0).permutation(100)})
    assert_array_equal(by_time(table, 0.2), table["timestamp"] >= 80)


@pytest.mark.parametrize("column, cold", [("item_id", cold_items), ("user_id", cold_users)])
@SOME
@given(table=ratings(), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_cold_splits_hide_movies_or_users_whole(column, cold, table, share, seed):
    "A movie or user is hidden with all its ratings or not at all, and one is left on each side."
    hidden, values = cold(table, share, seed), table[column]
    inside = set(values[hidden])
    assert not inside & set(values[~hidden])
    n = values.nunique()
    assert len(inside) == (0 if n == 1 else np.clip(round(share * n), 1, n - 1))


@pytest.mark.parametrize("mark", [holdout, cold_items, cold_users])
def test_seeds_draw_differently(mark):
    "One seed gives one draw, two seeds two."
    table = synthetic_data(30, 40, 500).ratings
    assert_array_equal(mark(table, seed=1), mark(table, seed=1))
    assert (mark(table, seed=1) != mark(table, seed=2)).any()


def test_cold_splits_depend_on_ids_not_on_order():
    "Shuffled ratings hide the same users and movies."
    table = synthetic_data(30, 40, 500).ratings
    shuffled = table.sample(frac=1, random_state=0)
    for mark, column in ((cold_items, "item_id"), (cold_users, "user_id")):
        there, back = (set(o[column][mark(o, seed=5)]) for o in (table, shuffled))
        assert there == back


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.1, np.nan, "half"])
def test_shares_that_leave_nothing_are_named(share):
    "A share outside 0 to 1, or one that hides nothing or all, is refused by value."
    table = synthetic_data(5, 20, 50).ratings
    for mark in (holdout, by_time, cold_items, cold_users):
        with pytest.raises(InputError, match=str(share)):
            mark(table, share)


def test_splits_that_cannot_be_are_refused():
    "Nothing left to learn from, marks of another length, a rule of labels that is none."
    data = synthetic_data(5, 20, 50)
    n = len(data.ratings)
    with pytest.raises(InputError, match="every rating is held back"):
        split(data, np.ones(n, bool))
    with pytest.raises(InputError, match=f"2 marks for {n} ratings"):
        split(data, np.zeros(2, bool))
    with pytest.raises(InputError, match="'mean'"):
        split(data, np.zeros(n, bool), "mean")
    with pytest.raises(InputError, match="timestamp"):
        leave_last(data.ratings.drop(columns="timestamp"))


# labels


@EACH_SPLIT
@SOME
@given(table=ratings(least=2))
def test_standards_do_not_see_hidden_ratings(mark, table):
    "Each user's standard is that of their training ratings, whatever the hidden ones are."
    data = with_movies(table)
    hidden = mark(data.ratings)
    assume(hidden.any() and not hidden.all())
    train, test = split(data, hidden)
    assert train.thresholds.to_dict() == pytest.approx(standards(train.ratings))
    pd.testing.assert_series_equal(test.thresholds[train.users], train.thresholds)
    scrambled = data.ratings.assign(rating=data.ratings["rating"].mask(hidden, 0.5))
    again, _ = split(replace(data, ratings=scrambled), hidden)
    pd.testing.assert_series_equal(again.thresholds, train.thresholds)
    assert_array_equal(index_ratings(again).y, index_ratings(train).y)


def standards(table):
    "Means of users' ratings; of ratings all alike with the mean of these means as one more."
    found = {u: np.array(o, float) for u, o in by_user(table, "rating").items()}
    everybody = np.mean([o.mean() for o in found.values()])
    flat = {u: np.append(o, everybody).mean() for u, o in found.items() if (o == o[0]).all()}
    return {u: o.mean() for u, o in found.items()} | flat


def test_the_leaking_rule_does_see_them():
    "With labels='all' the standard is the mean of all of a user's ratings."
    table = pd.DataFrame({"user_id": 1, "item_id": [0, 1, 2], "rating": [2, 3, 5]})
    hidden = np.array([False, False, True])
    assert [split(with_movies(table), hidden, o)[0].thresholds[1] for o in ("train", "all")] == [
        2.5,
        pytest.approx(10 / 3),
    ]


@SOME
@given(ratings())
def test_labels_say_at_or_above_the_mean(table):
    "A rating is liked if it is at or above its user's standard; ids come back by position."
    pairs = index_ratings(with_movies(table))
    line = table["user_id"].map(standards(table))
    assert_array_equal(
        pairs.y, table["rating"] > line - 1e-6
    )  # ratings differ by more than that from any mean
    assert_array_equal(pairs.users[pairs.user], table["user_id"])
    assert_array_equal(pairs.items[pairs.item], table["item_id"])
    assert list(pairs.users) == sorted(set(table["user_id"]))


def test_equal_ratings_are_all_liked():
    "Somebody who always gives 3.3 stars is exactly at their mean, however often they do."
    for n in range(1, 10):
        table = pd.DataFrame({"user_id": 1, "item_id": range(n), "rating": 3.3})
        assert index_ratings(with_movies(table)).y.all()


def test_new_users_are_judged_by_the_mean_standard():
    "A user without training ratings is labelled by the mean of all users' means."
    table = pd.DataFrame({"user_id": [1, 1, 2, 3, 3], "item_id": [0, 1, 0, 0, 1]})
    data = with_movies(table.assign(rating=[1.0, 2.0, 4.0, 2.5, 3.0]))
    train, test = split(data, np.array([False, False, False, True, True]))
    assert train.thresholds.to_dict() == {1: 1.5, 2: 3.375}  # the one rating of 4.0, and 2.75 on the whole
    assert test.thresholds.to_dict() == {1: 1.5, 2: 3.375, 3: 2.75}
    assert index_ratings(test).y.tolist() == [0, 1]


def test_unknown_ids_and_mixed_ids_are_refused():
    "A user outside the vocabulary is named; ids without an order are explained."
    with pytest.raises(InputError, match="user 9 is unknown .2 such"):
        positions([1, 9, 8], pd.Index([1, 2]), "user")
    table = pd.DataFrame({"user_id": [1, "ann"], "item_id": [0, 1], "rating": [1, 2]})
    with pytest.raises(InputError, match="user_id of ratings must be all .* mixed"):
        with_movies(table)


# tables handed in

FILMS = pd.DataFrame({"item_id": [1, 2], "title": ["Heat", "Alien"]})
STARS = pd.DataFrame(
    {"user_id": [7, 7, 8], "item_id": [1, 2, 1], "rating": [3.0, 4.0, 5.0], "timestamp": [1, 2, 3]}
)


@pytest.mark.parametrize(
    "column, bad, message",
    [
        ("rating", "five", "rating of ratings row 1 is 'five'"),
        ("rating", None, "rating of ratings row 1 is"),
        ("rating", np.inf, "rating of ratings row 1 is 'inf'"),
        ("rating", [1, 2], "rating of ratings row 1 is"),
        pytest.param("rating", 10**400, "rating of ratings row 1 is", id="rating too large"),
        ("rating", 1 + 2j, "rating of ratings row 1 is"),
        ("rating", 1e300, "rating of ratings row 1 is '1e.300'"),
        ("user_id", None, "user_id of ratings row 1 is"),
        ("user_id", [7], "user_id"),
        ("item_id", None, "item_id of ratings row 1 is"),
        ("item_id", [2], "item_id"),
    ],
)
def test_unusable_ratings_are_named(column, bad, message):
    "A value that cannot be used stops the run with its column, row and value."
    values = STARS[column].astype(object).tolist()
    values[1] = bad
    with pytest.raises(InputError, match=message):
        movie_data(FILMS, STARS.assign(**{column: pd.Series(values, dtype=object)}))


@pytest.mark.parametrize("gone", ["user_id", "item_id", "rating"])
def test_missing_columns_of_ratings_are_named(gone):
    "The message says which column is missing and which were found."
    with pytest.raises(InputError, match=f"lack the column {gone}; found: .*timestamp"):
        movie_data(FILMS, STARS.drop(columns=gone))


def test_movies_without_a_column_of_ids_are_refused():
    "So are ids that match no rating, and empty tables."
    with pytest.raises(InputError, match="need a column item_id, found: number, title"):
        movie_data(FILMS.rename(columns={"item_id": "number"}), STARS)
    with pytest.raises(InputError, match="no rating is of a known item"):
        movie_data(FILMS.assign(item_id=["01", "02"]), STARS)
    for movies, stars in ((FILMS[:0], STARS), (FILMS, STARS[:0])):
        with pytest.raises(InputError, match=f"{len(movies)} items and {len(stars)} ratings"):
            movie_data(movies, stars)


def test_dates_become_seconds():
    "Timestamps may be dates, with or without a time zone."
    when = pd.DatetimeIndex(["1970-01-02 00:00:00", "2001-09-09 01:46:40", "1969-12-31 00:00:00"])
    for o in (when, when.tz_localize("UTC")):
        found = movie_data(FILMS, STARS.assign(timestamp=o)).ratings["timestamp"]
        assert found.tolist() == [86_400, 1_000_000_000, -86_400]


FAR = ["1970-01-02", "2001-09-09", "9999-12-31"]  # nanoseconds would end in 2262


@pytest.mark.parametrize(
    "kind", ["str", "object", "datetime64[s]", "datetime64[ms]", "date32[pyarrow]", "timestamp[us][pyarrow]"]
)
def test_dates_may_be_of_any_unit(kind):
    "Also one that a program wrote for never."
    when = pd.Series(FAR) if kind in ("str", "object") else pd.Series(np.array(FAR, "datetime64[s]"))
    found = movie_data(FILMS, STARS.assign(timestamp=when.astype(kind))).ratings["timestamp"]
    assert found.tolist() == [86_400, 999_993_600, 253_402_214_400]


def test_codes_stand_for_their_values():
    "Categories of pandas and dictionaries of Arrow are what they mean."
    for column in ("user_id", "item_id", "rating"):
        coded = pa.array(STARS[column]).dictionary_encode()
        for codes in (STARS[column].astype("category"), pd.Series(pd.arrays.ArrowExtensionArray(coded))):
            data = movie_data(FILMS, STARS.assign(**{column: codes}))
            assert_array_equal(data.ratings[column], STARS[column])


@pytest.mark.parametrize("ids", [[[7]], [{7}], [{}], np.array([[7]])], ids=repr)
def test_what_can_be_no_id_is_refused(ids):
    "By whoever looks ids up."
    with pytest.raises(InputError, match="a list of ids"):
        find_ids(ids, FILMS.set_index("item_id").index)


@pytest.mark.parametrize(
    "column, bad",
    [
        pytest.param("genres", [["Drama"], ["Crime"]], id="list of lists"),
        pytest.param("genres", [np.array([1, 2])], id="list of arrays"),
        pytest.param("genres", np.ones((2, 2)), id="array of two axes"),
        pytest.param("genres", "[{[]: 1}]", id="text that cannot be a dict"),
        pytest.param("genres", "[" * 9999 + "]", id="text too deep"),
        pytest.param("genres", {"name": "Drama"}, id="dict"),
        pytest.param("runtime", "long", id="word"),
        pytest.param("runtime", 1 + 2j, id="complex number"),
        pytest.param("runtime", 10**400, id="whole number beyond floats"),
        pytest.param("runtime", [90], id="list for a number"),
    ],
)
def test_odd_cells_of_movies_are_emptied_and_counted(column, bad):
    "A cell that is no list of names, or no number, becomes empty, and the count says so."
    cells = pd.Series([bad, None], dtype=object)
    data = movie_data(FILMS.assign(**{column: cells}), STARS)
    assert sum(data.dropped.values()) == 1
    found = data.movies[column].iloc[0]
    assert found == () if column == "genres" else np.isnan(found)


CELLS = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2), st.integers(0, 5))


@SOME
@given(st.lists(st.sampled_from([0, 1, 2, None])), st.lists(CELLS, max_size=20), st.booleans())
@example([0], [(0, 0, 0, 0), (1, 0, 0, 0)], False)  # ratings that are all equal
def test_every_dropped_row_is_counted(ids, cells, timed):
    "Rows in are rows kept and rows counted as dropped, and what was handed in is untouched."
    movies = pd.DataFrame({"item_id": pd.Series(ids, dtype=object)})
    stars = pd.DataFrame(cells, columns=["user_id", "item_id", "rating", "timestamp"])
    stars = stars if timed else stars.drop(columns="timestamp")
    held = movies.copy(), stars.copy()
    try:
        data = movie_data(movies, stars)
    except InputError:
        assert not set(stars["item_id"]) & set(ids)
        return
    finally:
        for now, then in zip((movies, stars), held, strict=True):
            pd.testing.assert_frame_equal(now, then)
    kept = len(data.ratings) + len(data.movies)
    lost = sum(n for reason, n in data.dropped.items() if not reason.startswith("note: "))
    assert kept + lost == len(stars) + len(movies)


@SOME
@given(st.lists(CELLS, min_size=1, max_size=20), st.booleans())
def test_the_latest_rating_counts(cells, timed):
    "Of two ratings of one movie by one user the later stands: by time, else by place."
    stars = pd.DataFrame(cells, columns=["user_id", "item_id", "rating", "timestamp"])
    last = {}
    for u, i, r, _ in sorted(cells, key=lambda o: o[3]) if timed else cells:
        last[u, i] = r
    stars = stars if timed else stars.drop(columns="timestamp")
    found = with_movies(stars).ratings
    assert dict(zip(zip(found["user_id"], found["item_id"]), found["rating"])) == last  # noqa: B905


WHOLE = st.sampled_from([0, 1, 7, 100])
WIDE = WHOLE | st.sampled_from([10**15 - 1, 10**15, 2**62])
REAL = WIDE | st.sampled_from([-0.5, 3.3, -1e300, np.inf, np.nan])
KINDS = {"i1": WHOLE, "i8": WIDE, "u8": WIDE, "f4": REAL.filter(lambda o: o != -1e300), "f8": REAL}
KINDS |= {"Int64": WIDE | st.none(), "Float64": REAL | st.none(), "object": REAL | st.none()}


@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(data=st.data())
def test_numbers_are_what_each_is_by_itself(kind, data):
    "Whatever holds them, numbers become the same float64, and what is missing or absurd is missing."
    column = pd.Series(data.draw(st.lists(KINDS[kind])), dtype=object).astype(kind)
    each = [np.nan if pd.isna(o) or not abs(float(o)) < 1e15 else float(o) for o in column.astype(object)]
    pd.testing.assert_series_equal(as_numbers(column), pd.Series(each, dtype=np.float64))


@SOME
@given(st.lists(CELLS, min_size=1, max_size=20), st.booleans(), st.sampled_from(["i8", "i4", "str", "Int64"]))
def test_repeated_ratings_are_told_from_single_ones(cells, timed, kind):
    "Rows kept are those that pandas keeps after a sort by time, numbered anew, whatever the ids are."
    stars = pd.DataFrame(cells, columns=["user_id", "item_id", "rating", "timestamp"])
    stars = stars.astype({"user_id": kind, "rating": "f4"})
    stars = stars if timed else stars.drop(columns="timestamp")
    ordered = stars.sort_values("timestamp", kind="stable") if timed else stars
    last = ordered.drop_duplicates(["user_id", "item_id"], keep="last").sort_index()
    found, lost = with_movies(stars).ratings, len(stars) - len(last)
    last = last.astype({"user_id": "str" if kind == "str" else "i8"}).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, last)
    dropped = {k: n for k, n in with_movies(stars).dropped.items() if "views or purchases" not in k}
    assert dropped == ({"ratings replaced by a later one of the same user and item": lost} if lost else {})


# files


def csv_of(table):
    "A table as the bytes of a CSV file."
    return table.to_csv(index=False).encode()


def parquet_of(table):
    "A table as the bytes of a Parquet file."
    out = io.BytesIO()
    table.to_parquet(out, index=False)
    return out.getvalue()


def zip_of(files):
    "Files as the bytes of a compressed archive."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():  # ZipInfo: always of the same date
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


NAMED = "\"[{'id': 1, 'name': 'Drama'}]\""
METADATA_HEAD = (
    "id,title,overview,genres,adult,popularity,runtime,vote_average,vote_count,release_date,"
    "original_language,production_countries,production_companies,belongs_to_collection"
)
METADATA = "".join(
    f"{k},Movie {k},Plot,{NAMED},False,3.5,90,7,10,1999-01-01,en,{NAMED},{NAMED},\n" for k in (1, 2)
)
STARS_CSV = "userId,movieId,rating,timestamp\n1,1,4.0,10\n1,2,2.5,11\n2,1,3.0,12\n"
MOVIELENS = {
    "movies.csv": b"movieId,title,genres\n1,Heat (1995),Crime|Drama\n2,Alien (1979),Horror\n",
    "ratings.csv": STARS_CSV.encode(),
    "tags.csv": b"userId,movieId,tag,timestamp\n1,1,Paris,12\n2,1,paris,13\n",
}
TABLES = {
    "movies": FILMS.assign(genres=["Crime|Drama", "Horror"], year=[1995, 1979], adult=False),
    "ratings": STARS,
}
LAYOUTS = {
    "movielens": (read_movielens, MOVIELENS),
    "movielens, old": (
        read_movielens,
        {
            "movies.dat": b"1::Heat (1995)::Crime|Drama\n2::Alien (1979)::Horror\n",
            "ratings.dat": b"1::1::4::10\n1::2::2::11\n2::1::3::12\n",
            "tags.dat": b"1::1::Paris::12\n",
        },
    ),
    "movies dataset": (
        read_movies_dataset,
        {
            "movies_metadata.csv": f"{METADATA_HEAD}\n{METADATA}".encode(),
            "keywords.csv": f"id,keywords\n1,{NAMED}\n".encode(),
            "links_small.csv": b"movieId,imdbId,tmdbId\n1,11,1\n2,12,2\n",
            "ratings_small.csv": STARS_CSV.encode(),
        },
    ),
    "tables, csv": (read_tables, {f"{o}.csv": csv_of(t) for o, t in TABLES.items()}),
    "tables, parquet": (read_tables, {f"{o}.parquet": parquet_of(t) for o, t in TABLES.items()}),
    "movielens, zip": (
        lambda o: read_movielens(o / "ml.zip"),
        {"ml.zip": zip_of({f"ml/{o}": c for o, c in MOVIELENS.items()})},
    ),
}
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def read_files(layout, changes, loads=False):
    "Read a layout with some files changed, or taken away; None where it was refused."
    read, files = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**files, **changes}.items():
            if content is not None:
                Path(folder, name).write_bytes(content)
        try:
            if loads:
                return load_data(Path(folder, "ml.zip") if "zip" in layout else folder)
            return read(Path(folder))
        except InputError as error:
            assert str(error)
            return None


@EACH_LAYOUT
@pytest.mark.parametrize("loads", [False, True])
def test_sound_layouts_are_read(layout, loads):
    "The reader, and `load_data` by itself, find both movies and all three ratings."
    data = read_files(layout, {}, loads)
    assert data.counts() == {**data.counts(), "users": 2, "items": 2, "ratings": 3, "dropped": {}}
    assert data.movies["title"].tolist()[0] in ("Heat", "Movie 1")
    assert data.movies["genres"].tolist()[0][-1] == "Drama"


ODD = ["", "NA", "nan", "inf", "-1", "0", "1", "2", "1.5", "1e400", "9" * 30, "\x00", '"', "a|b"]
ODD += ["(1995)", "[", "[" * 200, "[{'name': 1}]", "[{}]", "{'name': 'x'}", "é", "1::2", "0x1"]


@st.composite
def odd_table(draw, sound):
    "The first line of a text file, then rows of odd cells, some too short or too long."
    head = sound.split(b"\n")[0]
    between = "," if b"," in head else "::"
    wide = head.count(between.encode()) + 1
    cell = st.sampled_from(ODD) | st.text(max_size=5)
    rows = st.lists(st.lists(cell, min_size=wide - 1, max_size=wide + 1), max_size=5)
    lines = [between.join(o) for o in draw(rows)]
    return head + b"\n" + "\n".join(lines).encode(errors="surrogatepass")


@st.composite
def damaged(draw, sound):
    "A file cut short, changed in places, of anything, of odd cells, or gone."
    how = draw(st.sampled_from(["cut", "changed", "anything", "odd", "gone"]))
    if how == "cut":
        return sound[: draw(st.integers(0, len(sound) - 1))]
    if how == "changed":
        out = bytearray(sound)
        spots = st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255))
        for at, value in draw(st.lists(spots, min_size=1, max_size=4)):
            out[at] = value
        return bytes(out)
    if how == "odd":
        return draw(odd_table(sound))
    return draw(st.binary(max_size=60)) if how == "anything" else None


@EACH_LAYOUT
@tried(15, 200)
@given(data=st.data())
def test_damaged_files_are_refused_with_a_reason(layout, data):
    "Whatever is in a file of a layout, it is read or refused, never with another error."
    name = data.draw(st.sampled_from(sorted(LAYOUTS[layout][1])))
    change = {name: data.draw(damaged(LAYOUTS[layout][1][name]))}
    read_files(layout, change, loads=data.draw(st.booleans()))


def changed(content, offset, value):
    "An archive with a byte changed in the first entry of its directory."
    at = content.index(b"PK\x01\x02") + offset
    return content[:at] + bytes([value]) + content[at + 1 :]


ZIP = LAYOUTS["movielens, zip"][1]["ml.zip"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(ZIP[:-30], id="end missing"),
        pytest.param(b"?" + ZIP[1:], id="start changed"),
        pytest.param(b"", id="empty"),
        pytest.param(ZIP[:50] + b"\xff\xff\xff" + ZIP[53:], id="compressed data changed"),
        pytest.param(changed(ZIP, 8, 1), id="marked as encrypted"),
        pytest.param(changed(ZIP, 10, 99), id="unknown compression"),
        pytest.param(changed(ZIP, 16, ZIP[ZIP.index(b"PK\x01\x02") + 16] ^ 1), id="wrong sum"),
        pytest.param(zip_of({"ml/movies.csv": b"", "ml/ratings.csv": b""}), id="empty files"),
    ],
)
def test_broken_archives_are_refused(content):
    "Ways in which a zip file breaks in practice."
    assert read_files("movielens, zip", {"ml.zip": content}) is None


@EACH_LAYOUT
@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\xff\xfe", None])
@pytest.mark.parametrize("loads", [False, True])
def test_files_of_nothing_are_refused(layout, content, loads):
    "An empty first file, one of a bare line, one that is no text, or none."
    first = next(iter(LAYOUTS[layout][1]))
    assert read_files(layout, {first: content}, loads) is None


def test_rows_too_long_are_counted():
    "A rating with a column too many cannot be read, and is not passed over in silence."
    rows = MOVIELENS["ratings.csv"] + b"2,2,5.0,13,what,is,this\n"
    data = read_files("movielens", {"ratings.csv": rows})
    assert data is None or sum(data.dropped.values()) == 1


@pytest.mark.parametrize("end", [b",", b",7"])
def test_a_column_without_a_heading_shifts_nothing(end):
    "Where every row has a cell too many, the others keep their heading, or the file is refused."
    head, rows = b"userId,movieId,rating,timestamp", (b"1,1,2.0,10", b"1,2,1.0,11", b"2,1,1.0,12")
    data = read_files("movielens", {"ratings.csv": b"\n".join([head, *(o + end for o in rows)])})
    if data is not None:
        assert data.ratings["rating"].tolist() == [2.0, 1.0, 1.0]
        assert data.ratings["user_id"].tolist() == [1, 1, 2]


def test_text_that_is_no_text_is_refused():
    "Titles whose bytes are no UTF-8 are refused in Parquet, which knows better; a CSV is read otherwise."
    name, layout = "movies.parquet", "tables, parquet"
    content = LAYOUTS[layout][1][name].replace(b"Heat", b"\xff\xfeat")
    assert read_files(layout, {name: content}) is None


USUAL = st.sampled_from(["1", "2", "3.5", "007", " 1", "+2", "1.0", "1e0"])
ODD_NUMBER = st.sampled_from(
    [*ODD, "-0", ".5", "5.", "+inf", "9007199254740993", "999999999999999", '"1"', '""']
)


@pytest.mark.parametrize("layout", ["movielens", "movies dataset", "movielens, zip"])
@tried(25, 300)
@given(data=st.data())
def test_ratings_read_as_numbers_are_those_read_as_text(layout, data):
    "The quick way and the long way give the same ratings, counts and messages."
    cell = USUAL if data.draw(st.booleans()) else USUAL | ODD_NUMBER | st.decimals(0, 5).map(str)
    rows = data.draw(st.lists(st.lists(cell, min_size=3, max_size=5) | st.tuples(*[cell] * 4), max_size=5))
    content = "\n".join(
        ["userId,movieId,rating,timestamp", *(",".join(o) for o in rows), "1,1,4.5,9"]
    ).encode()
    change = {"ratings.csv": content, "ratings_small.csv": content}
    change = {"ml.zip": zip_of({**MOVIELENS, **change})} if "zip" in layout else change
    ways = []
    for read_numbers in (tables._read_numbers, lambda source, kinds: None):
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(tables, "_read_numbers", read_numbers)
            for name, what in {**LAYOUTS[layout][1], **change}.items():
                Path(folder, name).write_bytes(what)
            try:
                found = LAYOUTS[layout][0](Path(folder))
                ways.append((found.ratings.to_dict("list"), found.ratings.dtypes.to_dict(), found.dropped))
            except InputError as error:
                ways.append(str(error).replace(folder, ""))
    assert ways[0] == ways[1]


def test_sound_ratings_are_not_read_as_text(monkeypatch):
    "The quick way is taken where it can be, in a folder and in a zip."
    taken, quick = [], tables._read_numbers
    monkeypatch.setattr(tables, "_read_numbers", lambda *o: taken.append(quick(*o)) or taken[-1])
    for layout in ("movielens", "movielens, zip", "movies dataset"):
        read_files(layout, {})
    assert [len(o) for o in taken] == [3, 3, 3]


@SOME
@given(st.integers(1, 40), st.sampled_from(["i8", "i4", "Int64", "str", "category"]), st.booleans())
def test_parquet_may_come_in_pieces_of_any_size(rows, kind, gap):
    "Row groups of one row or of all of them: the same ratings, or the same message."
    world = synthetic_data(5, 12, 40)
    table = world.ratings.astype({"user_id": kind})
    if gap:
        table.loc[33, "rating"] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        write_tables(world, folder)
        table.to_parquet(Path(folder, "ratings.parquet"), index=False, row_group_size=rows)
        assert pq.read_metadata(Path(folder, "ratings.parquet")).num_row_groups == -(-40 // rows)
        if gap:
            with pytest.raises(InputError, match="rating of ratings row 33 is 'nan'"):
                read_tables(folder)
        else:
            whole = pd.read_parquet(Path(folder, "ratings.parquet"))
            found = read_tables(folder).ratings
            pd.testing.assert_frame_equal(found, movie_data(world.movies, whole).ratings)


def names_by_parser(text):
    "What Python makes of a literal list of dicts, or None."
    try:
        found = ast.literal_eval(text)
        return tuple(str(o["name"]) for o in ([found] if isinstance(found, dict) else found))
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError):
        return None


VALUES = st.text() | st.integers() | st.none() | st.floats() | st.booleans() | st.lists(st.integers())
ENTRIES = st.dictionaries(st.sampled_from(["name", "id", "names", "a-b"]) | st.text(), VALUES, max_size=4)
PIECES = [
    "[",
    "]",
    "{",
    "}",
    ", ",
    "'name': ",
    "'id': ",
    "'a'",
    "'b'",
    '"c\'s"',
    "1",
    "01",
    "None",
    "\\",
    "\n",
]
PIECES += [
    "'\\x41'",
    "'",
    '"',
    " ",
    "#",
    "\0",
    "\ud800",
    "\x0c",
    "\r",
    "\ufeff",
    "é",
    "{'name': 'x'}",
    "[{'name': 'y'}]",
]


@tried(100, 2000)
@given(
    st.lists(ENTRIES, max_size=3).map(repr)
    | ENTRIES.map(repr)
    | st.lists(st.sampled_from(PIECES)).map("".join)
)
def test_plain_names_are_what_the_parser_finds(text):
    "Where a cell is plain enough for the quick way, the parser would have found the same names."
    if sources._PLAIN.fullmatch(text):
        assert sources._names(text) == names_by_parser(text)


@pytest.mark.parametrize(
    "text",
    ["[]", "[{'id': 1, 'name': 'A'}, {'name': \"B's\", 'id': None}]", "{'name': '', 'logo_2': '/x.jpg'}"],
)
def test_usual_cells_are_plain(text):
    "What nearly every cell of the real files looks like takes the quick way."
    assert sources._PLAIN.fullmatch(text) and sources._names(text) == names_by_parser(text)


@tried(60, 1000)
@given(st.lists(st.tuples(st.text(), st.booleans()), max_size=3))
def test_names_of_any_text_come_back(names):
    "Escaped, quoted either way, or plain: a name written by Python is read as it was."
    entries = [{"name": o, "id": 7} if first else {"id": 7, "name": o} for o, first in names]
    assume(all(o.isprintable() or not any("\ud800" <= c <= "\udfff" for c in o) for o, _ in names))
    assert sources._names(repr(entries)) == tuple(o for o, _ in names)


def test_movies_with_ids_that_are_no_numbers_are_counted():
    "A movie whose id cannot be read is left out and counted."
    movies = MOVIELENS["movies.csv"] + b"three,Amelie (2001),Comedy\n"
    data = read_files("movielens", {"movies.csv": movies})
    assert len(data.movies) == 2 and sum(data.dropped.values()) == 1


IDS = {
    "numbers": [7, 12],
    "unsigned": np.array([7, 12], np.uint64),
    "small": np.array([7, 12], np.int8),
    "real": [7.0, 12.0],
    "gaps": pd.array([7, 12], "Int64"),
    "text": ["7", "12"],
    "padded": ["007", "012"],
    "names": ["tt7", "tt12"],
}


@pytest.mark.parametrize("kinds", ["csv csv", "csv parquet", "parquet csv", "parquet parquet"])
@pytest.mark.parametrize("ids", IDS)
def test_ids_are_the_same_in_every_pair_of_formats(tmp_path, ids, kinds):
    "Movies and ratings meet, whatever each is written in; numbers stay numbers, all other text as it is."
    pair = FILMS.assign(item_id=IDS[ids]), STARS.assign(item_id=[IDS[ids][o] for o in (0, 1, 0)])
    for name, kind, table in zip(("movies", "ratings"), kinds.split(), pair, strict=True):
        write = parquet_of if kind == "parquet" else csv_of
        (tmp_path / f"{name}.{kind}").write_bytes(write(table))
    data = read_tables(tmp_path)
    text = ids in ("padded", "names") or (ids == "text" and "parquet" in kinds)
    assert data.movies.index.tolist() == (list(IDS[ids]) if text else [7, 12])
    assert len(data.ratings) == 3 and not data.dropped


@pytest.mark.parametrize("movies, stars", [("text", "numbers"), ("numbers", "text"), ("real", "text")])
def test_text_meets_numbers(tmp_path, movies, stars):
    "In frames as in files the text side becomes numbers if it can, else the other text."
    given = FILMS.assign(item_id=IDS[movies]), STARS.assign(item_id=[IDS[stars][o] for o in (0, 1, 0)])
    assert movie_data(*given).ratings["item_id"].tolist() == [7, 12, 7]
    for name, table in zip(("movies", "ratings"), given, strict=True):
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert load_data(tmp_path).ratings["item_id"].tolist() == [7, 12, 7]
    if movies == "text":
        found = movie_data(pd.concat([given[0], FILMS[:1].assign(item_id="tt1")]), given[1])
        assert found.movies.index.tolist() == ["7", "12", "tt1"] and len(found.ratings) == 3


def test_text_that_stands_for_one_number_is_one_movie():
    "Two ways to write one number, seen only when text becomes numbers: the second is a repetition."
    data = movie_data(FILMS.assign(item_id=["1", "1.0"]), STARS)
    assert data.movies.index.tolist() == [1] and len(data.ratings) == 2
    assert data.dropped == {"items with an id seen before": 1, "ratings of items without metadata": 1}


TEXT_IDS = {"1": "tt1", "2": "tt2"}


@pytest.mark.parametrize("layout", ["movielens", "movielens, old", "movies dataset"])
def test_layouts_of_movielens_with_ids_of_text(layout):
    "Where most ids are no numbers all are text; one bad row among numbers is counted with what it held."
    between = "::" if "old" in layout else ","
    changes, bad = {}, {}
    for name, content in LAYOUTS[layout][1].items():
        rows = [o.split(between) for o in content.decode().splitlines()]
        if name.startswith("ratings"):
            user = [["ann" if o[0].isdigit() else o[0], TEXT_IDS.get(o[1], o[1]), *o[2:]] for o in rows]
            bad = {name: content + between.join(["?"] + rows[-1][1:]).encode() + b"\n"}
        elif name.startswith(("movies.", "links")):
            user = [[TEXT_IDS.get(o[0], o[0]), *o[1:]] for o in rows]
        elif name.startswith("tags"):
            user = [[o[0], TEXT_IDS.get(o[1], o[1]), *o[2:]] for o in rows]
        else:
            continue
        changes[name] = "\n".join(map(between.join, user)).encode() + b"\n"
    data = read_files(layout, changes)
    assert data.movies.index.tolist() == ["tt1", "tt2"] and set(data.ratings["user_id"]) == {"ann"}
    data = read_files(layout, bad)
    assert data.dropped == {"ratings whose id is not a whole number, such as '?'": 1}


@pytest.mark.parametrize("layout", ["movielens", "movielens, old", "movies dataset", "tables, csv"])
@pytest.mark.parametrize("when", [None, "2005-04-02 23:53:47", "2005-04-02", "yesterday", ""])
def test_times_are_optional(layout, when):
    "Ratings without times, with dates as text, or with times that nobody can read: all are kept."
    name = next(o for o in LAYOUTS[layout][1] if o.startswith("ratings"))
    between = "::" if "old" in layout else ","
    rows = [o.rpartition(between)[0] for o in LAYOUTS[layout][1][name].decode().splitlines()]
    if when is not None:
        first = "" if "old" in layout else f"{between}timestamp"
        rows = (
            [rows[0] + first, *(o + between + when for o in rows[1:])]
            if first
            else [o + between + when for o in rows]
        )
    data = read_files(layout, {name: "\n".join(rows).encode()})
    assert len(data.ratings) == 3
    assert ("timestamp" in data.ratings) == (when is not None and when.startswith("2005"))
    assert len(data.dropped) == (when == "yesterday")


def test_one_time_too_bad_costs_the_column_and_no_rating():
    "The count says how many, and the reason which."
    data = movie_data(FILMS, STARS.assign(timestamp=["1", "soon", None]))
    assert data.dropped == {"timestamps that cannot be read, such as 'soon', and the column with them": 2}
    with pytest.raises(InputError, match="split by time needs a timestamp"):
        leave_last(data.ratings)


@pytest.mark.parametrize("layout", ["movielens", "movielens, old", "movies dataset", "tables, csv"])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<html>", b"\xef\xbb\xbf \n<HTML lang=en>"])
def test_a_web_page_is_called_one(layout, page, tmp_path):
    "Whichever of the files it was saved as."
    for bad in LAYOUTS[layout][1]:
        for name, content in LAYOUTS[layout][1].items():
            (tmp_path / name).write_bytes(page if name == bad else content)
        with pytest.raises(InputError, match="web page"):
            load_data(tmp_path)


def test_the_error_that_nothing_is_left_says_what_was_lost(tmp_path):
    "Ids that are whole numbers in one file, and in the others not."
    (tmp_path / "movies.csv").write_text("movieId,title,genres\nx,A,Drama\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,5\n1,2,5\n")
    with pytest.raises(InputError, match="0 items.*left out: 1 movies whose id is not a whole .*'x'"):
        load_data(tmp_path)


@pytest.mark.parametrize("encoding, found", [("utf-16", "utf-16"), ("latin-1", "cp1252")])
def test_other_encodings_are_told(encoding, found, tmp_path):
    "A CSV in other letters than UTF-8 is read, and the remark says how."
    for name, table in (("movies", FILMS.assign(title=["Amélie", "Ran"])), ("ratings", STARS)):
        (tmp_path / f"{name}.csv").write_text(table.to_csv(index=False), encoding=encoding)
    data = read_tables(tmp_path)
    assert data.movies["title"].tolist() == ["Amélie", "Ran"]
    assert f"note: file read as a table in {found}: movies.csv" in data.dropped


def test_dat_files_are_utf8_or_latin1(tmp_path):
    "As one and the other are written, in MovieLens 10M and before."
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        movies = "1::Misérables, Les (1995)::Drama\n2::Amélie (2001)::Comedy\n".encode(encoding)
        data = read_files("movielens, old", {"movies.dat": movies})
        assert data.movies["title"].tolist() == ["Misérables, Les", "Amélie"]
    (tmp_path / "movies.dat").write_text("1::Heat (1995)::Drama\n", encoding="utf-16")
    (tmp_path / "ratings.dat").write_text("1::1::4\n")
    with pytest.raises(InputError, match="UTF-16"):
        read_movielens(tmp_path)


PRINTERS = [
    str,
    repr,
    lambda o: str(np.array(o, dtype=object)),
    lambda o: repr(np.array(o, dtype=object)),
    lambda o: repr(list(np.array(o, dtype=str))),
    lambda o: str(tuple(o)),
    lambda o: repr(set(o)),
]


@pytest.mark.parametrize("printed", PRINTERS)
@tried(20, 200)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=40))
def test_printed_lists_come_back(printed, names):
    "Whatever the names are, however often the line is broken: the same names, or none and a count."
    found = as_names(printed(names))
    assert found is None or sorted(set(found)) == sorted(set(names)) or (names == [] and found == ())
    if all(o.isalnum() for o in names) and (names or printed is not PRINTERS[-1]):
        assert found is not None


@pytest.mark.parametrize(
    "cell, names",
    [
        pytest.param(r'["Action\/Crime", "\ud83d\ude00", null]', ("Action/Crime", "\U0001f600"), id="json"),
        pytest.param(pd.Series(["War", "Drama"]).astype("str").unique(), ("War", "Drama"), id="unique"),
        pytest.param(pd.Categorical(["War", "War"]), ("War", "War"), id="categories"),
        pytest.param("['War', 'Dra...", None, id="cut off"),
    ],
)
def test_cells_that_are_lists(cell, names):
    "As other programs hold or write them."
    assert as_names(cell) == names


def test_printed_lists_tell_nothing_of_marks():
    "Commas within them are no marks between names in plain text."
    cells = ["array(['War', 'Drama'], dtype=object)", "['Action', 'Crime'"]
    data = movie_data(FILMS.assign(genres=cells), STARS)
    assert data.movies["genres"].tolist() == [("War", "Drama"), ()]
    assert data.dropped == {"cells of genres that are no list of names": 1}


@pytest.mark.parametrize("mark", [", ", ",", "; ", ";"])
def test_columns_of_lists_with_other_marks(mark):
    "The column decides, a single `|` in it speaks against, and the remark says how many cells."
    names = [("Drama", "Romance"), ("War",)]
    data = movie_data(FILMS.assign(genres=[mark.join(o) for o in names]), STARS)
    assert data.movies["genres"].tolist() == names
    assert data.dropped == {f"note: cells of genres read as lists with {mark.strip()!r} between the names": 1}
    data = movie_data(FILMS.assign(genres=["Drama, Romance", "War|Comedy"]), STARS)
    assert data.movies["genres"].tolist() == [("Drama, Romance",), ("War", "Comedy")] and not data.dropped


def test_csv_ids_mean_the_same_in_both_tables():
    "Where one movie has an id of text all ids are text, though every rated one is made of digits."
    movies = b"item_id,title\n1,Heat\ntt2,Alien\n"
    data = read_files("tables, csv", {"movies.csv": movies})
    assert data is not None and len(data.ratings) == 2  # those of movie 1


def test_hostile_names_in_an_archive_write_nothing(tmp_path):
    "A member called ../evil.csv is read by nobody and written nowhere."
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    hostile = {"../evil1.csv": b"x", "../../evil2.csv": b"x", "/evil3.csv": b"x"}
    (home / "ml.zip").write_bytes(zip_of({**hostile, **MOVIELENS}))
    assert len(read_movielens(home / "ml.zip").ratings) == 3
    assert [o.name for o in tmp_path.rglob("*")] == ["a", "b", "ml.zip"]
    assert not Path("/evil3.csv").exists()


def test_code_in_a_cell_is_not_run(tmp_path):
    "A call inside a list of genres is counted as unreadable."
    cell = f"\"__import__('pathlib').Path('{tmp_path}/ran').touch()\""
    rows = LAYOUTS["movies dataset"][1]["movies_metadata.csv"]
    rows = rows.replace(NAMED.encode(), cell.encode(), 1)
    data = read_files("movies dataset", {"movies_metadata.csv": rows})
    assert data.dropped == {"cells of genres that cannot be read": 1}
    assert not (tmp_path / "ran").exists()


def test_tables_come_back_as_they_were(tmp_path):
    "Written and read again, movies and ratings are the same."
    data = synthetic_data(10, 20, 100)
    write_tables(data, tmp_path / "world")
    again = read_tables(tmp_path / "world")
    pd.testing.assert_frame_equal(again.movies, data.movies, check_index_type=False)
    pd.testing.assert_frame_equal(again.ratings, data.ratings)


# made-up worlds


@st.composite
def shapes(draw):
    "Users, movies and ratings of a world that can be."
    n_users, n_items = draw(st.integers(1, 30)), draw(st.integers(10, 40))
    return n_users, n_items, draw(st.integers(5 * n_users, n_items * 3 // 4 * n_users))


@SOME
@given(shapes(), st.integers(0, 9))
def test_worlds_have_exactly_the_size_asked_for(shape, seed):
    "Every user and movie is there, each rating once, nobody with too few or too many."
    n_users, n_items, n_ratings = shape
    data = synthetic_data(*shape, seed=seed)
    assert len(data.movies) == n_items and len(data.ratings) == n_ratings and not data.dropped
    each = data.ratings.groupby("user_id").size()
    assert list(each.index) == list(range(n_users))
    assert each.min() >= 5 and each.max() <= n_items * 3 // 4
    assert set(data.ratings["rating"] * 2) <= set(range(1, 11))


@pytest.mark.parametrize("n_ratings", [4 * 7, 5 * 7 - 1, 15 * 7 + 1, 10**9])
def test_worlds_that_cannot_be_are_refused(tmp_path, n_ratings):
    "Fewer than five ratings a user, or more than three quarters of the movies, and nothing is written."
    with pytest.raises(InputError, match=f"n_ratings must be a whole number from 35 to 105, got {n_ratings}"):
        write_synthetic(tmp_path / "world", 7, 20, n_ratings)
    assert not list(tmp_path.iterdir())


def test_a_world_on_disk_is_the_one_in_memory(tmp_path):
    "Users of several blocks, written one block after another."
    shape = {"n_users": 12_000, "n_items": 30, "n_ratings": 72_000, "theme_words": 9, "plot_words": 5}
    write_synthetic(tmp_path / "world", **shape)
    there, here = read_tables(tmp_path / "world"), synthetic_data(**shape)
    pd.testing.assert_frame_equal(there.ratings, here.ratings)
    pd.testing.assert_frame_equal(there.movies, here.movies, check_index_type=False)


def test_worlds_have_long_tails():
    "A few movies, users and words are met much more often than most; every word can occur."
    data = synthetic_data(2_000, 1_000, 100_000, n_themes=3, theme_words=300, plot_words=40)
    words = data.movies["overview"].str.split()
    assert (words.str.len() == 40).all() and words.explode().nunique() == 900
    for column in (words.explode(), data.ratings["item_id"], data.ratings["user_id"]):
        count = column.value_counts()
        assert count.quantile(0.99) > 5 * count.median()


# writing cut short


def earlier(folder):
    "A result that is there already."
    folder.mkdir()
    (folder / "done").write_text("1")
    (folder / "more").write_text("earlier")
    write_marker(folder, "tables")
    return {"done": "1", "more": "earlier"}


def inside(folder):
    "What a folder holds besides its list."
    return {o.name: o.read_text() for o in folder.iterdir() if o.name != MARKER}


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_killed_writer_leaves_the_earlier_folder_whole(tmp_path):
    "A process killed half way, which can clean up nothing, has not touched the earlier result."
    before = earlier(tmp_path / "out")
    code = """
import os, signal, sys
from correct_smooth.files import atomic_folder
with atomic_folder(sys.argv[1], "tables") as fresh:
    (fresh / "done").write_text("2")
    print("half way", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "half way\n"), done.stderr
    assert inside(tmp_path / "out") == before
    with atomic_folder(tmp_path / "out", "tables") as fresh:
        (fresh / "done").write_text("3")
    assert inside(tmp_path / "out") == {"done": "3"}
    assert [o.name for o in tmp_path.iterdir()] == ["out"]  # what it left behind is gone


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_writer_leaves_the_earlier_folder_whole(tmp_path, error):
    "An error half way leaves the earlier result and nothing else."
    before = earlier(tmp_path / "out")
    with pytest.raises(error), atomic_folder(tmp_path / "out", "tables") as fresh:
        (fresh / "done").write_text("2")
        raise error
    assert inside(tmp_path / "out") == before
    assert [o.name for o in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_leaves_the_earlier_folder_whole(tmp_path, monkeypatch):
    "Where there is no exchange, and the fresh folder cannot take its place, the earlier one is put back."
    monkeypatch.setattr("correct_smooth.files._exchange", lambda *_: False)
    before, rename = earlier(tmp_path / "out"), Path.rename

    def fresh_fails(self, target):
        if inside(self) == {"done": "2"}:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fresh_fails)
    with pytest.raises(OSError), atomic_folder(tmp_path / "out", "tables") as fresh:
        (fresh / "done").write_text("2")
    assert (tmp_path / "out").is_dir() and inside(tmp_path / "out") == before


def test_folders_of_other_things_are_not_replaced(tmp_path):
    "A folder that holds more, or a file, is refused and left as it is; an empty one is used."
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years")
    (tmp_path / "file").write_text("mine")
    for name in ("thesis", "file"):
        with pytest.raises(InputError, match=name), atomic_folder(tmp_path / name, "tables"):
            pass
    assert inside(tmp_path / "thesis") == {"chapter": "years"}
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", "tables") as fresh:
        (fresh / "done").write_text("1")
    assert inside(tmp_path / "empty") == {"done": "1"}
