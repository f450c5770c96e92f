"""Titles as people write them: any text at all, every movie by its own title, and what must be understood."""

import numpy as np
import pandas as pd
import pytest
from effort import LONG, tried
from hypothesis import example, given
from hypothesis import strategies as st

from correct_smooth import titles as module
from correct_smooth.checks import InputError
from correct_smooth.sources import load_data
from correct_smooth.titles import _match_exact, find_movies, movie_id, plain_title, split_names, split_year

SOME = tried(60, 1000)
ANY = st.text(st.characters(exclude_categories=()), max_size=40)
PIECES = st.lists(
    st.sampled_from(
        ["the", "heat", "1995", "(1995)", "(", ")", ",", ", The", "#", "…", "\ud800", "\0", " ", "II"]
    )
).map("".join)
MOVIES = pd.DataFrame(
    {
        "title": ["Heat", "Heat", "Toy Story", "…", "七人の侍", "", None, "300"],
        "year": [1995, 1986, None] + [2000] * 5,
    },
    index=pd.Index([6, 7, 1, 2, 3, 4, 300, 9], name="item_id"),
)


@pytest.fixture(scope="module")
def demo():
    data = load_data()
    if data.name != "demo":
        pytest.skip("these movies are of the demo")
    return data.movies


@SOME
@given(ANY | PIECES, st.sampled_from(["both", "no year", "none", "text ids"]))
def test_any_text_gives_a_movie_or_a_question(title, kind):
    movies = {
        "both": MOVIES,
        "no year": MOVIES[["title"]],
        "none": MOVIES[:0],
        "text ids": MOVIES.set_axis([f"tt{o}" for o in MOVIES.index]),
    }[kind]
    found = find_movies(movies, title)
    assert found.columns.tolist() == ["item_id", "title", "year", "match"]
    assert found["match"].between(60, 100).all() and found["match"].is_monotonic_decreasing
    assert set(found["item_id"]) <= set(movies.index) and found["item_id"].is_unique
    try:
        assert movie_id(movies, title) in movies.index
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        str(error).encode()


@SOME
@given(ANY | PIECES)
def test_any_text_has_a_plain_form(title):
    plain = plain_title(title)
    assert plain == " ".join(plain.split())
    assert bool(plain) or not any(o.isalnum() for o in split_names(split_year(title)[0])[0])
    assert split_year(title)[0] in title and split_names(title)[0] in title


@SOME
@given(st.lists(ANY | PIECES, min_size=1, max_size=5))
@example(["000", "000(1800)(1800)"])  # only the last year is off
def test_any_titles_find_themselves(titles):
    movies = pd.DataFrame({"title": pd.Series(titles, dtype=object)})
    plain = [plain_title(o) for o in titles]
    for i, title in enumerate(titles):
        try:
            item = movie_id(movies, title)
            assert (
                item == i
                or plain[item] == plain[i]
                or title.strip().startswith("#")
                or plain.count(plain[i]) > 1
            )
        except InputError:
            assert (
                plain.count(plain[i]) > 1
                or not plain[i]
                or title.strip().startswith("#")
                or split_year(title)[1]
            )


@pytest.mark.parametrize(
    "title",
    ["x" * 10_000, "a b " * 2500, "(a) " * 2500, "(" * 10_000, ")" * 10_000, ", the" * 2000, "." * 10_000],
)
def test_ten_thousand_characters(title):
    find_movies(MOVIES, title)
    with pytest.raises(InputError, match="no item is called"):
        movie_id(MOVIES, title)
    long = pd.concat([MOVIES, pd.DataFrame({"title": [title]}, index=[77])])
    assert movie_id(long, title) == 77


@pytest.mark.parametrize("value", [None, 318, 3.5, b"heat", ["heat"], pd.NA, np.str_])
def test_a_title_that_is_no_text(value):
    for look in (find_movies, movie_id):
        with pytest.raises(InputError, match="a title must be text"):
            look(MOVIES, value)
        with pytest.raises(InputError, match="no column title"):
            look(MOVIES[["year"]], "heat")


def test_every_unique_title_finds_its_movie(demo):
    names = module._names(tuple(demo["title"]))
    unique = pd.Series(names.plain)[lambda o: ~o.duplicated(keep=False)].index
    assert len(unique) > 8000
    for i in unique[:: 1 if LONG else 10]:
        assert np.flatnonzero(_match_exact(names, demo["title"].iloc[i]) == 100).tolist() == [i]
    odd = demo["title"].iloc[unique].str.contains(r"\d|#|^\W").to_numpy() | (np.arange(len(unique)) % 20 == 0)
    for i in unique[odd][:: 1 if LONG else 4]:  # where a year or an id may be seen, and some of the rest
        assert movie_id(demo, demo["title"].iloc[i]) == demo.index[i]


def test_every_year_finds_its_movie(demo):
    plain = demo["title"].map(plain_title)
    shared = demo[plain.duplicated(keep=False) & (plain != "") & demo["year"].notna()]
    keys = plain[shared.index] + shared["year"].map(" ({:.0f})".format)
    for item, title in keys[~keys.duplicated(keep=False)][:: 1 if LONG else 3].items():
        assert movie_id(demo, title) == item, title


@pytest.mark.parametrize(
    "written, title, year",
    [
        ("the matrix", "Matrix, The", 1999),
        ("matrix", "Matrix, The", 1999),
        ("shawshank redemtion", "Shawshank Redemption, The", 1994),
        ("toy storey", "Toy Story", 1995),
        ("toy story", "Toy Story", 1995),
        ("Heat 1995", "Heat", 1995),
        ("les miserables (1998)", "Misérables, Les", 1998),
        ("la cite des enfants perdus", "City of Lost Children, The (Cité des enfants perdus, La)", 1995),
        ("rocky 2", "Rocky II", 1979),
        ("Godfather Part 2", "Godfather: Part II, The", 1974),
        ("Titanic (1997)", "Titanic", 1997),
        ("se7en", "Seven (a.k.a. Se7en)", 1995),
        ("spiderman", "Spider-Man", 2002),
        ("schindlers lst", "Schindler's List", 1993),
        ("fast & furious", "Fast & Furious (Fast and the Furious 4, The)", 2009),
        ("300", "300", 2007),
        ("8 1/2", "8 1/2 (8½)", 1963),
        ("monty python and the holy grale", "Monty Python and the Holy Grail", 1975),
    ],
)
def test_the_movie_that_is_meant(demo, written, title, year):
    found = demo.loc[movie_id(demo, written)]
    assert (found["title"], found["year"]) == (title, year)


@pytest.mark.parametrize(
    "written, said",
    [
        ("titanic", r"may be Titanic \(1997, id 1721\), Titanic \(1953, id 3404\)\. Write the year too"),
        ("star wars", "near it: Star Wars"),
        ("toy story 4", "near it: Toy Story"),
        ("Heat (1996)", r"near it: Heat \(1995, id 6\)"),
        ("318", "For the movie with the id 318 write '#318'"),
        ("#299999", "there is no item with the id 299999"),
        ("qwxz", "none comes near; the nearest is"),
    ],
)
def test_a_question_back(demo, written, said):
    with pytest.raises(InputError, match=said):
        movie_id(demo, written)
    assert movie_id(demo, "#318") == 318
