"""Which column is what: said goes before guessed, a guess is told, and two candidates are never one."""

import string

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st

from correct_smooth.checks import InputError
from correct_smooth.data import movie_data
from correct_smooth.roles import (
    _KNOWN_MOVIES,
    _KNOWN_RATINGS,
    ROLES,
    _plain,
    both_renamed,
    renamed,
)

KNOWN = {"movies": _KNOWN_MOVIES, "ratings": _KNOWN_RATINGS}
MANY = {"overview", "genres", "keywords", "companies", "countries", "creators", "numbers", "vector"}


def written(word, how):
    "A name as one file or another writes it."
    parts = word.split("_")
    return {
        "plain": word,
        "title": "-".join(part.capitalize() for part in parts),
        "camel": parts[0] + "".join(part.capitalize() for part in parts[1:]),
        "shout": " ".join(parts).upper(),
    }[how]


@pytest.mark.parametrize("what", KNOWN)
@pytest.mark.parametrize("how", ["plain", "title", "camel", "shout"])
def test_every_well_known_name_is_understood(what, how):
    "However it is written, alone in its table, and with a note unless it is ours already."
    for ours, groups in KNOWN[what].items():
        for word in " ".join(groups).split():
            name = written(word, how)
            assert _plain(name) == word
            notes = {}
            table = pd.DataFrame({name: [1.5]})
            found = renamed(table, what, dropped=notes)
            expected = f"numbers: {name}" if ours == "numbers" else ours
            assert list(found) == [expected]
            if name != ours:
                (note,) = notes
                assert note.startswith("note: ") and repr(name) in note and note.endswith(f"read as {ours}")
            assert list(table) == [name]


@st.composite
def tables(draw):
    "Columns of well-known and unknown names, and what is said of some of them."
    what = draw(st.sampled_from(list(KNOWN)))
    words = [word for groups in KNOWN[what].values() for word in " ".join(groups).split()]
    free = st.text(string.ascii_lowercase, min_size=12, max_size=14)
    names = draw(st.lists(st.sampled_from(words) | free, min_size=1, max_size=8, unique=True))
    roles = st.sampled_from([*ROLES, "genres", "language", "ignore"])
    said = draw(st.dictionaries(st.sampled_from(names), roles, max_size=3))
    return what, names, said


def outcome(table, what, said, notes):
    "The table, or None where it is refused."
    try:
        return renamed(table, what, said, notes)
    except InputError:
        return None


@tried(150, 3000)
@given(tables(), st.randoms(use_true_random=False))
def test_any_table(drawn, random):
    "What was said holds; order does not matter; nothing is lost without being ignored; once is enough."
    what, names, said = drawn
    notes = {}
    table = pd.DataFrame({name: [f"{k}"] for k, name in enumerate(names)})
    found = outcome(table, what, said, notes)
    shuffled = random.sample(names, len(names))
    other = outcome(table[shuffled], what, said, {})
    assert (found is None) == (other is None)
    assert list(table) == names and (table.iloc[0] == [str(k) for k in range(len(names))]).all()
    if found is None:
        return
    assert found.columns.is_unique and len(found) == 1
    assert sorted(found) == sorted(other)
    again = renamed(found, what, {}, {})
    guessed_later = set(again) - set(found)  # a column that made room, or was ignored, is not there any more
    assert not guessed_later
    for name, role in said.items():
        ours = ROLES.get(role, role)
        in_table = ours in KNOWN[what]
        if role == "ignore":
            assert name not in found or name in KNOWN[what]
        elif in_table and ours == "numbers":
            assert found[f"numbers: {name}"].iloc[0] == table[name].iloc[0]
        elif in_table and ours not in MANY and ours != "year":
            assert found[ours].iloc[0] == table[name].iloc[0]


@pytest.mark.parametrize(
    ("what", "names", "ours"),
    [
        ("ratings", ["user_id", "isbn", "asin", "rating"], "item_id"),
        ("ratings", ["reader_id", "customer_id", "book_id", "rating"], "user_id"),
        ("ratings", ["user", "book_id", "score", "stars"], "rating"),
        ("movies", ["isbn", "isbn13"], "item_id"),
    ],
)
def test_two_candidates_are_refused(what, names, ours):
    "Where there is nothing to learn without the column; and what the message says is the way out."
    table = pd.DataFrame(columns=names)
    with pytest.raises(InputError, match=f"could each be {ours}; say which, as in columns=") as error:
        renamed(table, what)
    said = eval(str(error.value).partition("columns=")[2])
    assert ours in renamed(table, what, said)


def test_two_candidates_for_what_can_be_missing():
    "They are noted, and none is taken, until one is said."
    table = pd.DataFrame({"book_id": [1], "release_year": [1999], "publication_year": [2001]})
    notes = {}
    assert "year" not in renamed(table, "movies", None, notes)
    assert any("each of which could be year, and none is taken" in note for note in notes)
    assert renamed(table, "movies", {"publication_year": "year"})["year"].tolist() == [2001]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"authors": "writers"}, "cannot be 'writers': roles are item, user"),
        ({"creators": "authors"}, "write {'authors': 'creators'}"),
        ({"autors": "creators"}, "items have no column 'autors'; found: book_id, authors"),
        ({"authors": "year", "pages": "year"}, "cannot both be year; choose one"),
        ({"authors": 7}, "cannot be 7"),
        ({"authors": None}, "cannot be None"),
        ({"authors": ["creators"]}, "cannot be \\['creators'\\]"),
        (["authors"], "must be a dict"),
        ("authors", "must be a dict"),
        (7, "must be a dict"),
        ({"authors": "vector", "pages": "vector"}, "column 'authors' is to be one number of a vector"),
    ],
)
def test_what_cannot_be_meant(said, message):
    books = pd.DataFrame({"book_id": [1], "authors": ["Woolf"], "pages": [209]})
    stars = pd.DataFrame({"user": ["a"], "book_id": [1], "rating": [5]})
    with pytest.raises(InputError, match=message):
        movie_data(books, stars, columns=said)


def test_one_dict_serves_both_tables():
    "A word for a column of one table is no error in the other, wherever ids are."
    books = pd.DataFrame({"nr": [1, 2], "blurb": ["a sea", "a war"], "wrote": ["Woolf", "Mann"]})
    stars = pd.DataFrame({"who": ["a", "b"], "nr": [1, 2], "liked it": [5, 1], "day": ["2020-01-01"] * 2})
    said = {"nr": "item", "wrote": "creators", "who": "user", "liked it": "rating", "day": "time"}
    data = movie_data(books, stars, columns=said, noun="book")
    assert data.movies["creators"].tolist() == [("Woolf",), ("Mann",)]
    assert data.ratings["timestamp"].tolist() == [1_577_836_800] * 2
    indexed = movie_data(books.set_index("nr"), stars, columns=said)
    pd.testing.assert_frame_equal(indexed.movies, data.movies)


def test_ratings_say_which_id_counts():
    "The movies' column of the same name is taken, though another would have come first."
    books = pd.DataFrame({"book_id": [1, 2], "isbn": ["x", "y"], "isbn13": ["p", "q"]})
    for column, ids in (("isbn", ["x", "y"]), ("isbn13", ["p", "q"]), ("book_id", [1, 2])):
        stars = pd.DataFrame({"user": [1, 1], column: ids, "rating": [1, 2]})
        movies, ratings = both_renamed(books, stars)
        assert movies["item_id"].tolist() == ratings["item_id"].tolist() == ids


def test_several_columns_become_one():
    "Texts are joined, names put together each by its own mark, and numbers stay apart."
    table = pd.DataFrame(
        {
            "id": [1, 2],
            "description": ["A sea.", None],
            "summary": ["It sinks.", "War."],
            "director": ["Lang|Harbou", "Kurosawa"],
            "cast": ["Helm, Klein", None],
            "pages": [1, 2],
            "price": ["3.5", "?"],
        },
        index=[5, 5],
    )
    data = movie_data(table, pd.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [1, 2]}))
    assert data.movies["overview"].tolist() == ["A sea. It sinks.", "War."]
    assert data.movies["creators"].tolist() == [("Lang", "Harbou", "Helm", "Klein"), ("Kurosawa",)]
    assert data.movies["numbers: pages"].tolist() == [1, 2]
    assert np.isnan(data.movies["numbers: price"]).tolist() == [False, True]
    assert data.dropped["values of numbers: price that are not numbers"] == 1


def test_embedding_columns():
    "In order of their numbers, not of their names; or as lists in one column; the same vectors either way."
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 12)).round(3)
    stars = pd.DataFrame({"user": [1, 2, 3], "item": [0, 1, 29], "rating": [1, 2, 3]})
    names = [f"emb_{k}" for k in range(12)]
    wide = pd.DataFrame(rows, columns=names).sample(frac=1, axis=1, random_state=0).assign(item=range(30))
    expected = rows.astype(np.float32)
    for table in (
        wide,
        pd.DataFrame({"item": range(30), "embedding": list(rows)}),
        pd.DataFrame({"item": range(30), "embedding": [str(row.tolist()) for row in rows]}),
        pd.DataFrame({"item": range(30), "embedding": [" ".join(map(str, row)) for row in rows]}),
        pd.DataFrame({"item": range(30), "vector": [np.array2string(row) for row in rows]}),
    ):
        found = movie_data(table, stars).vectors
        np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)
    read = movie_data(wide.astype(str), stars).vectors  # out of a CSV everything is text
    np.testing.assert_allclose(read.toarray(), expected, atol=1e-6)
