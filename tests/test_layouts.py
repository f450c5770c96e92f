"""Files that people have: every layout packed in every way, dirt in them, and tables of other libraries."""

import csv
import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st

from correct_smooth import (
    CorrectSmoothRecommender,
    InputError,
    TrainConfig,
    checks,
    json_lines,
    load_data,
    movie_data,
)
from correct_smooth.exports import export_films
from correct_smooth.newcomers import add_ratings
from correct_smooth.rating_files import ratings_for
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.table_files import find_table, read_table, table_files


def lines(*objects):
    "Objects as JSON lines."
    return "".join(json.dumps(o) + "\n" for o in objects)


HUNDRED = {
    "u.data": "7\t1\t5\t978300760\n7\t2\t1\t978300761\n8\t1\t4\t978300762\n",
    "u.item": "1|Léon (1994)|01-Jan-1994||http://x|0|0|1\n2|Heat (1995)|01-Jan-1995||http://y|0|1|1\n",
    "u.genre": "unknown|0\nAction|1\nCrime|2\n\n",
    "u.user": "7|24|M|technician|85711\n8|53|F|other|94043\n",
}
KAGGLE = {
    "movie.csv": '"movieId","title","genres"\n1,"Léon (1994)","Crime"\n2,"Heat (1995)","Action|Crime"\n',
    "rating.csv": '"userId","movieId","rating","timestamp"\n7,1,5,"2001-01-01 00:00:00"\n'
    '7,2,1,"2001-01-01 00:00:01"\n8,1,4,"2001-01-01 00:00:02"\n',
    "tag.csv": '"userId","movieId","tag","timestamp"\n7,1,"Paris","2001-01-01 00:00:00"\n',
    "link.csv": '"movieId","imdbId","tmdbId"\n1,110413,101\n2,113277,949\n',
    "genome_scores.csv": '"movieId","tagId","relevance"\n1,1,0.025\n',
}
STARS = "user_id,book_id,rating\n7,1,5\n7,2,1\n8,1,4\n"
GOODBOOKS = {
    "books.csv": "book_id,goodreads_book_id,best_book_id,work_id,books_count,isbn,isbn13,authors,"
    "original_publication_year,original_title,title,language_code,average_rating,ratings_count\n"
    '1,2,2,9,3,1,1,"Anne Brontë, Emily Brontë",1847.0,,Léon,eng,4.1,99\n'
    "2,1,1,8,3,2,2,Mann,1901.0,,Heat,ger,3.9,50\n",
    "ratings.csv": STARS,
    "book_tags.csv": "goodreads_book_id,tag_id,count\n2,1,5\n2,2,50\n1,1,7\n1,9,3\n",
    "tags.csv": "tag_id,tag_name\n1,classics\n2,gothic\n",
    "to_read.csv": "user_id,book_id\n8,2\n",
}
CROSSING = {
    "BX-Books.csv": '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S"\n'
    '"01";"Léon";"Anne &amp; Emily";"1994";"DK";"x"\n'
    '"0X";"Heat \\"95\\"; the book\\\\";"Mann, T.";"0";"DK";"x"\n',
    "BX-Book-Ratings.csv": '"User-ID";"ISBN";"Book-Rating"\n"7";"01";"5"\n'
    '"7";"0X";"1"\n"8";"01";"4"\n"8";"0X";"0"\n',
    "BX-Users.csv": '"User-ID";"Location";"Age"\n"7";"nyc, new york, usa";NULL\n',
}
AMAZON = {
    "Movies_5.json": lines(
        {"reviewerID": "A7", "asin": "01", "overall": 5.0, "unixReviewTime": 978300760, "reviewText": "Oh"},
        {"reviewerID": "A7", "asin": "B2", "overall": 1.0, "unixReviewTime": 978300761, "summary": "No"},
        {"reviewerID": "A8", "asin": "01", "overall": 4.0, "unixReviewTime": 978300762},
    ),
    "meta_Movies.json": lines(
        {
            "asin": "01",
            "title": "Léon",
            "brand": "Gaumont",
            "category": ["Movies", "Crime"],
            "price": "$9.99",
        },
        {"asin": "B2", "title": "Heat", "description": ["A heist.", "A cop."], "also_buy": ["01"]},
    ),
}
AMAZON_2023 = {
    "Movies.jsonl": lines(
        {
            "user_id": "A7",
            "asin": "B9",
            "parent_asin": "01",
            "rating": 5.0,
            "timestamp": 978300760123,
            "title": "Oh",
        },
        {
            "user_id": "A7",
            "asin": "B2",
            "parent_asin": "B2",
            "rating": 1.0,
            "timestamp": 978300761123,
            "title": "No",
        },
        {
            "user_id": "A8",
            "asin": "B8",
            "parent_asin": "01",
            "rating": 4.0,
            "timestamp": 978300762123,
            "title": "",
        },
    ),
    "meta_Movies.jsonl": lines(
        {
            "parent_asin": "01",
            "title": "Léon",
            "store": "Gaumont",
            "categories": ["Movies", "Crime"],
            "price": 9.99,
        },
        {"parent_asin": "B2", "title": "Heat", "description": ["A heist.", "A cop."], "price": None},
    ),
}
AMAZON_2014 = {
    "reviews.json": AMAZON["Movies_5.json"],
    "meta.json": "{'asin': '01', 'title': 'Léon', 'categories': [['Movies', 'Crime']], 'price': 9.99}\n"
    "{'asin': 'B2', 'title': 'Heat', 'description': \"A cop's heist.\"}\n",
}
SHOP = {
    "interactions.csv": "customer_id;sku;stars;date\nann;7;5;2001-01-01\n"
    "ann;8;1;2001-01-02\nbob;7;4;2001-01-03\n",
    "items.csv": "sku;name;description;brand\n7;Léon;A soap;Acme\n8;Heat;A heater;Mann\n",
}
FLAT = {
    "ratings.tsv": "user\titem\trating\ttitle\tgenre\n7\t1\t5\tLéon\tCrime\n"
    "7\t2\t1\tHeat\tAction\n8\t1\t4\tLéon\tCrime\n"
}
# files, letters, titles, item ids, user ids, noun, notes
LAYOUTS = {
    "movielens 100k": (HUNDRED, "latin-1", ["Léon", "Heat"], [1, 2], [7, 7, 8], "movie", 0),
    "movielens, kaggle": (KAGGLE, "utf-8", ["Léon", "Heat"], [1, 2], [7, 7, 8], "movie", 0),
    "goodbooks": (GOODBOOKS, "utf-8", ["Léon", "Heat"], [1, 2], [7, 7, 8], "book", 1),
    "book-crossing": (
        CROSSING,
        "latin-1",
        ["Léon", 'Heat "95"; the book\\'],
        ["01", "0X"],
        [7, 7, 8],
        "book",
        5,
    ),
    "amazon": (AMAZON, "utf-8", ["Léon", "Heat"], ["01", "B2"], ["A7", "A7", "A8"], "product", 0),
    "amazon, 2023": (AMAZON_2023, "utf-8", ["Léon", "Heat"], ["01", "B2"], ["A7", "A7", "A8"], "product", 1),
    "amazon, 2014": (AMAZON_2014, "utf-8", ["Léon", "Heat"], ["01", "B2"], ["A7", "A7", "A8"], "product", 0),
    "shop": (SHOP, "cp1252", ["Léon", "Heat"], [7, 8], ["ann", "ann", "bob"], "product", 9),
    "flat": (FLAT, "utf-8", ["Léon", "Heat"], [1, 2], [7, 7, 8], "item", 5),
}
EACH = pytest.mark.parametrize("layout", LAYOUTS)


def raw_files(layout, changes=None):
    files, encoding, *_ = LAYOUTS[layout]
    raw = {name: text.encode(encoding) for name, text in files.items()}
    return {name: content for name, content in (raw | (changes or {})).items() if content is not None}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


def zip_of(files, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"data/{name}", content)
    return path


@EACH
@pytest.mark.parametrize("packed", ["folder", "zip", "gz", "zip of gz", "zip with samples"])
def test_every_layout_in_every_packing(layout, packed, tmp_path):
    "The same two items and three ratings, whatever they are packed in."
    files = raw_files(layout)
    if "gz" in packed:
        files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    write(tmp_path, files)
    source = tmp_path
    if "zip" in packed:
        source = zip_of(files, tmp_path / "all.zip")
        if "samples" in packed:
            with zipfile.ZipFile(source, "a") as archive:
                for name in files:
                    archive.writestr(f"data/samples/{name}", b"nothing, of, use\n1\n")
    data = load_data(source)
    _, _, titles, items, users, noun, notes = LAYOUTS[layout]
    assert data.movies["title"].tolist() == titles and data.movies.index.tolist() == items
    assert data.ratings["user_id"].tolist() == users
    assert data.ratings["item_id"].tolist() == [items[0], items[1], items[0]]
    assert data.ratings["rating"].tolist() == [5, 1, 4]
    assert data.noun == noun
    assert load_data(source, noun="thing").noun == "thing"
    said = [reason for reason in data.dropped if reason.startswith("note: ")]
    assert len(said) <= notes and all(data.dropped.values())


def test_what_each_layout_tells_of_items(tmp_path):
    "Genres, creators, years, prices and shelves, from wherever each has them."

    def movies(layout):
        folder = tmp_path / layout
        folder.mkdir()
        write(folder, raw_files(layout))
        return load_data(folder).movies.iloc[0]

    hundred, kaggle, good = movies("movielens 100k"), movies("movielens, kaggle"), movies("goodbooks")
    assert (hundred["year"], hundred["genres"]) == (1994, ("Crime",))
    assert (kaggle["year"], kaggle["genres"], kaggle["keywords"]) == (1994, ("Crime",), ("paris",))
    assert good["creators"] == ("Anne Brontë", "Emily Brontë") and good["keywords"] == ("gothic", "classics")
    assert (good["year"], good["language"], good["vote_count"]) == (1847, "eng", 99)
    crossing = movies("book-crossing")
    assert (crossing["creators"], crossing["companies"], crossing["year"]) == (
        ("Anne & Emily",),
        ("DK",),
        1994,
    )
    for layout in ("amazon", "amazon, 2023", "amazon, 2014"):
        product = movies(layout)
        assert product["genres"] == ("Movies", "Crime") and product["numbers: price"] == 9.99
        assert product.get("creators", ("Gaumont",)) == ("Gaumont",)
    assert movies("shop")["creators"] == ("Acme",) and movies("flat")["genres"] == ("Crime",)


def test_no_opinion_in_book_crossing(tmp_path):
    "A rating of 0 says nothing there, however few they are; who knows better may say so."
    write(tmp_path, raw_files("book-crossing"))
    data = load_data(tmp_path)
    assert data.no_opinion == 0 and data.seen["item_id"].tolist() == ["0X"]
    assert load_data(tmp_path, no_opinion="keep").no_opinion is None


def test_book_crossing_without_years_and_publishers(tmp_path):
    "What is known by three columns is read with no more than these."
    short = '"ISBN";"Book-Title";"Book-Author"\n"01";"Léon";"Anne"\n"0X";"Heat";"Mann"\n'.encode()
    write(tmp_path, raw_files("book-crossing", {"BX-Books.csv": short}))
    data = load_data(tmp_path)
    assert data.movies["creators"].tolist() == [("Anne",), ("Mann",)] and data.movies["year"].isna().all()


def test_times_are_seconds(tmp_path):
    "In seconds, in thousandths, as dates and as texts."
    for layout, first in (("amazon", 978300760), ("amazon, 2023", 978300760), ("shop", 978307200)):
        folder = tmp_path / layout
        folder.mkdir()
        write(folder, raw_files(layout))
        assert load_data(folder).ratings["timestamp"].iloc[0] == first
    folder = tmp_path / "kaggle"
    folder.mkdir()
    write(folder, raw_files("movielens, kaggle"))
    assert load_data(folder).ratings["timestamp"].tolist() == [978307200, 978307201, 978307202]


def test_goodbooks_first_release(tmp_path):
    "There `id` is what ratings call `book_id`, and `book_id` is Goodreads' own number."
    first = GOODBOOKS["books.csv"].replace("book_id,goodreads_book_id", "id,book_id", 1).encode()
    write(tmp_path, raw_files("goodbooks", {"books.csv": first}))
    data = load_data(tmp_path)
    assert data.movies["title"].tolist() == ["Léon", "Heat"] and data.movies.index.tolist() == [1, 2]
    assert data.movies["keywords"].tolist() == [("gothic", "classics"), ("classics",)]
    assert "note: books whose column 'id' is what ratings call book_id" in data.dropped


OLDER = "A1B2C3D4E5F6G,B00ABCDEF0,5.0,978300760\nA1B2C3D4E5F6G,0123456789,1.0,978300761\n"
NEWER = "B00ABCDEF0,A1B2C3D4E5F6G,5.0,978300760\n0123456789,A1B2C3D4E5F6G,1.0,978300761\n"


@pytest.mark.parametrize("text", [OLDER, NEWER, "user,item,rating,timestamp\n" + OLDER])
@pytest.mark.parametrize("name", ["ratings_Beauty.csv", "ratings_Beauty.csv.gz", "Beauty.zip"])
def test_ratings_alone(text, name, tmp_path):
    "Items are known by their ids, either way round; a model says what it needs."
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())
    if name.endswith(".zip"):
        zip_of({"ratings.csv": text.encode()}, path)
    data = load_data(path)
    assert data.movies.index.tolist() == ["B00ABCDEF0", "0123456789"] and not len(data.movies.columns)
    assert data.ratings["user_id"].tolist() == ["A1B2C3D4E5F6G"] * 2
    assert data.ratings["timestamp"].tolist() == [978300760, 978300761]
    assert any("known by their id only" in reason for reason in data.dropped)
    with pytest.raises(InputError, match="nothing to learn from"):
        CorrectSmoothRecommender(progress=False).fit(data)


def test_ratings_alone_in_a_folder_are_an_error(tmp_path):
    "There the other table may have been forgotten."
    (tmp_path / "ratings.csv").write_text(STARS)
    with pytest.raises(InputError, match="no table tells about the items; bring one"):
        load_data(tmp_path)


def test_columns_may_be_said(tmp_path):
    "What cannot be guessed, for both tables at once; a name that is nowhere is an error."
    (tmp_path / "a.csv").write_text("kunde,artikel,sterne\nann,7,5\nbob,8,2\n")
    (tmp_path / "b.csv").write_text("artikel,beschreibung\n7,Seife\n8,Kamm\n")
    with pytest.raises(
        InputError, match="no table in .* has people and items in it: a.csv has kunde, artikel"
    ):
        load_data(tmp_path)
    said = {"kunde": "user", "artikel": "item", "sterne": "rating", "beschreibung": "text"}
    data = load_data(tmp_path, columns=said, noun="Artikel")
    assert data.movies["overview"].tolist() == ["Seife", "Kamm"] and data.noun == "Artikel"
    with pytest.raises(InputError, match="no table has the column 'client'; found: artikel, beschreibung"):
        load_data(tmp_path, columns={**said, "client": "user"})
    with pytest.raises(InputError, match="roles are item, user"):
        load_data(tmp_path, columns={**said, "kunde": "person"})
    with pytest.raises(InputError, match="columns, sep and encoding are for files"):
        load_data("demo", sep=";")


def test_columns_without_a_heading_may_be_said(tmp_path):
    "By their number."
    (tmp_path / "r.csv").write_text("5,7,ann\n2,7,bob\n4,8,bob\n")
    data = load_data(tmp_path / "r.csv", columns={"1": "rating", "2": "item", "3": "user"})
    assert data.ratings["rating"].tolist() == [5, 2, 4] and data.ratings["user_id"].tolist() == [
        "ann",
        "bob",
        "bob",
    ]


def test_separator_and_letters_may_be_said(tmp_path):
    "And are not looked for then."
    (tmp_path / "ratings.csv").write_text("user;item;rating\n1;7;4,5\n1;8;2,0\n")
    (tmp_path / "items.csv").write_bytes("item;title\n7;Žižkov\n8;Ran\n".encode("cp1250"))
    assert load_data(tmp_path).movies["title"].tolist() == ["Žižkov".encode("cp1250").decode("cp1252"), "Ran"]
    data = load_data(tmp_path, encoding="cp1250")
    assert data.movies["title"].tolist() == ["Žižkov", "Ran"] and data.ratings["rating"].tolist() == [4.5, 2]
    assert load_data(tmp_path, sep=";", encoding="cp1250").movies["title"].tolist() == ["Žižkov", "Ran"]
    for wrong in (
        {"sep": ""},
        {"sep": ";;"},
        {"sep": 1},
        {"encoding": "klingon"},
        {"encoding": "hex"},
        {"encoding": 8},
    ):
        with pytest.raises(InputError, match="sep must be|encoding must be"):
            load_data(tmp_path, **wrong)
    with pytest.raises(InputError):
        load_data(tmp_path, sep="\t")


def pair_of(items, ratings=None):
    "A folder's two files as bytes."
    stars = b"user,item,rating\n1,7,5\n1,8,2\n2,7,3\n" if ratings is None else ratings
    return {"items.csv": items if isinstance(items, bytes) else items.encode(), "ratings.csv": stars}


TITLES = ['A "quoted" title', "Two\nlines", "Comma, semicolon; tab\tbar| colons::", "  spaces ", "NA", "'=x"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_dirt_in_texts(end, bom, last, sep, tmp_path):
    "Marks, line ends, quotes and line breaks within, no end of the last line."
    out = io.StringIO(newline="")
    rows = [[str(7 + k), title] for k, title in enumerate(TITLES)]
    csv.writer(out, delimiter=sep, lineterminator=end).writerows([["item", "title"], *rows])
    text = bom + (out.getvalue() if last else out.getvalue().removesuffix(end))
    write(tmp_path, pair_of(text))
    assert load_data(tmp_path).movies["title"].tolist() == TITLES


def test_letters_of_two_kinds_in_one_file(tmp_path):
    "Most are UTF-8, so all are; the odd one is shown as such, and counted."
    write(tmp_path, pair_of("item,title\n7,Amélie à Nîmes\n".encode() + "8,Léon\n".encode("latin-1")))
    data = load_data(tmp_path)
    assert data.movies["title"].tolist() == ["Amélie à Nîmes", "L�on"]
    assert "note: file read as a table with letters that are no UTF-8, shown as �: items.csv" in data.dropped


PACKED = gzip.compress(b"item,title\n7,Heat\n8,Ran\n" * 50, mtime=0)  # the same at any time


@pytest.mark.parametrize(
    "items, message",
    [
        ("item,title,title\n7,a,b\n", "items.csv has the column 'title' twice"),
        ("", "items.csv cannot be read: No columns"),
        ("item,title\n7,Heat,x\n", "more cells than its header"),
        (PACKED[:-12], "cannot be read: Compressed file ended"),
        (PACKED[:20] + b"\xff" * 30, "items.csv cannot be read"),
        ("<!doctype html><html>", "items.csv is a web page"),
        ("nothing but a line", "items.csv has one column only"),
        ("{'a': [1, 2", "items.csv cannot be read"),
        ('{"item": 7, "title": "Heat"}\n{"item": 8', "items.csv cannot be read"),
        ('item,title\n7,"Heat\n', "items.csv cannot be read"),
    ],
)  # fmt: skip
def test_faults_are_named(items, message, tmp_path):
    "The file, and what is wrong with it."
    write(tmp_path, pair_of(items))
    with pytest.raises(InputError, match=message):
        load_data(tmp_path)


def test_two_layouts_in_one_folder(tmp_path):
    "Whichever has a name of its own counts; two tables of ratings that look alike are an error."
    write(tmp_path, raw_files("movielens 100k") | raw_files("goodbooks"))
    assert load_data(tmp_path).movies.index.tolist() == [1, 2]
    for name in raw_files("goodbooks"):
        (tmp_path / name).unlink()
    for name in raw_files("movielens 100k"):
        (tmp_path / name).unlink()
    write(tmp_path, pair_of("item,title\n7,Heat\n8,Ran\n") | {"ratings2.csv": b"user,item,rating\n1,7,5\n"})
    with pytest.raises(InputError, match="ratings.csv and ratings2.csv could each be the table of ratings"):
        load_data(tmp_path)


@pytest.mark.parametrize("name", ["items.csv", "ratings.csv", "items.json"])
@pytest.mark.parametrize("packed", ["gz", "zip", "gz in zip"])
def test_bombs(name, packed, tmp_path, monkeypatch):
    "What unpacks to a thousand times its size is refused, wherever it lies."
    monkeypatch.setattr(checks, "_LARGE", 2**22)  # the bound is the same for small and large
    files = pair_of("item,title\n7,Heat\n8,Ran\n")
    if name == "items.json":
        del files["items.csv"]
    row = b'{"item": 7, "title": "a"}\n' if name == "items.json" else b"7,8,1\n"
    files[name] = (
        b"user,item,rating\n" if name == "ratings.csv" else b"" if "json" in name else b"item,title,n\n"
    ) + row * 2**16
    block = files[name]
    path = tmp_path / "data.zip"
    if packed != "zip":
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb") as file:
            for _ in range(2**24 // len(block)):
                file.write(block)
        files = {o: content for o, content in files.items() if o != name} | {f"{name}.gz": out.getvalue()}
    if packed == "gz":
        path = tmp_path / "folder"
        path.mkdir()
        write(path, files)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for o, content in files.items():
                with archive.open(o, "w") as member:
                    for _ in range(2**24 // len(block) if o == name else 1):
                        member.write(content)
    with pytest.raises(InputError, match="would unpack from"):
        load_data(path)


CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from('\n",;|\t:'), max_size=12
)
WORD = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=6)


@st.composite
def tables(draw):
    "A table of texts that a first row can be the heading of."
    width = draw(st.integers(2, 5))
    names = draw(st.lists(WORD, min_size=width, max_size=width, unique=True))
    rows = draw(st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=6))
    return names, [row for row in rows if any(cell.strip() for cell in row)]


@tried(80, 2000)
@given(
    tables(),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.booleans(),
)
def test_tables_come_back(table, sep, encoding, packed, told):
    "Written with any separator, in any Unicode, packed or not: the same cells, separator found or said."
    names, rows = table
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=sep, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([names, *rows])
    content = out.getvalue().encode(encoding)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d, "a.csv.gz" if packed else "a.csv")
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
        (file,) = table_files(path).values()
        found = read_table(find_table(file, sep if told else None), {})
    assert list(found.columns) == names
    wanted = [[cell or None for cell in row] for row in rows]
    assert found.astype(object).where(found.notna(), None).to_numpy().tolist() == wanted


LATIN = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=9)


@tried(40, 1000)
@given(st.lists(LATIN, min_size=1, max_size=6), st.booleans())
def test_letters_of_one_byte_come_back(titles, packed):
    "Unless the bytes happen to be UTF-8 as well."
    content = "id,title\n" + "".join(
        f'{k},"{title.replace(chr(34), "")}"\n' for k, title in enumerate(titles)
    )
    raw = content.encode("latin-1")
    try:
        wanted = raw.decode()
    except UnicodeDecodeError:
        wanted = content
    if wanted != content or len(raw.decode("utf-8", "ignore").encode()) > len(raw.decode("ascii", "ignore")):
        return
    with tempfile.TemporaryDirectory() as d:
        path = Path(d, "a.csv")
        path.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
        (file,) = table_files(path).values()
        found = read_table(find_table(file), {})
    assert found["title"].fillna("").tolist() == [title.replace('"', "") for title in titles]


RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.sampled_from("abc"),
            "item": st.sampled_from("xyz"),
            "rating": st.sampled_from([1, 2.5, 4]),
        },
        optional={
            "text": st.text(max_size=9),
            "extra": st.none() | st.integers() | st.lists(st.integers(), max_size=2),
        },
    ),
    min_size=1,
    max_size=8,
)


@tried(40, 1000)
@given(RECORDS, st.booleans(), st.booleans())
def test_json_comes_back(records, as_list, packed):
    "Lines or one list, packed or not."
    text = json.dumps(records) if as_list else lines(*records)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d, "a.json")
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
        (file,) = table_files(path).values()
        try:
            found = read_table(find_table(file), {}, ["user", "item", "rating", "text"])
        except InputError as error:
            assert "Value is too" in str(error)  # of 64 bits
            return
    assert found[["user", "item", "rating"]].to_dict("list") == {
        name: [record[name] for record in records] for name in ("user", "item", "rating")
    }


SCALARS = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6),
    st.lists(st.sampled_from([1.5, -2.25, 4.0, 1e10]), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 2.5, "a", None, True, [1]]), min_size=1, max_size=6),
)


@tried(60, 1500)
@given(st.dictionaries(st.sampled_from(["user", "item", "rating"]), SCALARS, min_size=1))
def test_columns_picked_out_of_json_are_those_of_the_long_way(columns):
    "Whatever is in them; where they are of several kinds, none is picked."
    n = min(len(cells) for cells in columns.values())
    text = lines(*({name: cells[k] for name, cells in columns.items()} | {"text": "x" * k} for k in range(n)))
    picked = json_lines.pick_json(io.BytesIO(text.encode()), list(columns))
    whole = pd.concat(json_lines.json_blocks(io.BytesIO(text.encode())), ignore_index=True)
    if picked is not None:
        pd.testing.assert_frame_equal(picked[list(columns)], whole[list(columns)])


def test_a_column_that_changes_its_kind_late(tmp_path):
    "Read the long way, then, and refused only if it can be no id."
    rows = [{"user": k, "item": "a", "rating": 5} for k in range(3_000)]
    (tmp_path / "items.jsonl").write_text(
        lines({"item": "a", "title": "Heat"}, {"item": "b", "title": "Ran"})
    )
    (tmp_path / "ratings.jsonl").write_text(lines(*rows, {"user": 1, "item": "b", "rating": 4.5}))
    assert load_data(tmp_path).ratings["rating"].iloc[-1] == 4.5
    (tmp_path / "ratings.jsonl").write_text(lines(*rows, {"user": "ann", "item": "a", "rating": 4}))
    with pytest.raises(InputError, match="user_id of ratings must be all whole numbers"):
        load_data(tmp_path)


ODD = [
    b"",
    b"\0",
    b'"',
    b"\\",
    b'\\"',
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"::",
    b";",
    b",",
    b"\t",
    b"|",
    b"\r",
    b"\n",
]
ODD += [
    b"{",
    b"[",
    b"}",
    b"]",
    b"PAR1",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"9" * 400,
    b"1e400",
    b"nan",
    b"user",
    b"item",
    b"<html>",
]
ODD += [
    b"a" * 200_000,
    b"[" * 3_000,
    b"{'a': 1}\n",
    b"&amp;",
    b"&#x110000;",
    b'\\";',
    b"title",
    b"rating",
    b"\xc3\xa9",
]


@st.composite
def damaged(draw, whole):
    "Bytes cut, changed, or with something odd put in."
    for _ in range(draw(st.integers(1, 3))):
        at, n = draw(st.integers(0, len(whole))), draw(st.sampled_from([0, 1, 3, 20]))
        how = draw(st.sampled_from(["cut", "odd", "any", "bit"]))
        if how == "cut":
            whole = whole[:at]
        elif how == "bit" and at < len(whole):
            whole = whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
        else:
            more = draw(st.sampled_from(ODD) if how == "odd" else st.binary(max_size=9))
            whole = whole[:at] + more + whole[at + n :]
    return whole


@EACH
@tried(25, 600)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(layout, data):
    "Whatever is in a file, packed or not: data, or our error."
    files = raw_files(layout)
    name = data.draw(st.sampled_from(sorted(files)))
    packed = data.draw(st.booleans())
    content = gzip.compress(files[name], mtime=0) if packed else files[name]
    files[name] = data.draw(damaged(content))
    options = data.draw(
        st.sampled_from([{}, {}, {"sep": "|"}, {"encoding": "utf-16"}, {"columns": {"title": "text"}}])
    )
    with tempfile.TemporaryDirectory() as d:
        write(Path(d), files)
        try:
            found = load_data(d, **options)
        except InputError as error:
            assert 0 < len(str(error)) < 5_000
            return
    assert len(found.ratings) and found.ratings["item_id"].isin(found.movies.index).all()


@tried(60, 2000)
@given(
    st.dictionaries(
        st.sampled_from(["a.csv", "ratings.csv", "items.json", "u.data", "b.txt.gz"]),
        st.lists(st.sampled_from(ODD)).map(b"".join),
        min_size=1,
    )
)
def test_any_bytes_are_read_or_refused(files):
    with tempfile.TemporaryDirectory() as d:
        write(Path(d), files)
        for source in (d, *(Path(d, name) for name in files)):
            try:
                load_data(source)
            except InputError:
                pass


# tables of other libraries


@pytest.fixture(scope="module")
def frames():
    movies = pd.DataFrame(
        {
            "item_id": [1, 2, 3],
            "title": ["Heat", None, "Ran"],
            "genres": [["Crime", "Drama"], [], ["War"]],
            "language": pd.Categorical(["en", "en", "ja"]),
            "year": pd.array([1995, None, 1985], dtype="Int64"),
            "adult": [False, True, False],
            "vote_average": [7.5, 8.25, np.nan],
        }
    )
    ratings = pd.DataFrame(
        {
            "user_id": pd.Categorical(["ann", "bob", "ann"]),
            "item_id": np.array([1, 1, 3], np.int32),
            "rating": np.array([4.5, 2, 5], np.float32),
            "timestamp": pd.to_datetime(["2001-01-01", "2001-01-02", "2001-01-03"]),
        }
    )
    return movies, ratings


class Capsule:
    "A table of a library that nobody knows, and that speaks Arrow."

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


MADE = {
    "polars": lambda frame: pl.from_pandas(frame),
    "arrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "arrow, in pieces": lambda frame: pa.concat_tables(
        [pa.Table.from_pandas(frame, preserve_index=False).slice(k, 1) for k in range(len(frame))]
    ),
    "capsule": lambda frame: Capsule(pa.Table.from_pandas(frame, preserve_index=False)),
    "pandas of arrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False).to_pandas(
        types_mapper=pd.ArrowDtype
    ),
}


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_tables_of_other_libraries_are_those_of_pandas(frames, make):
    "Categories, lists, dates, gaps and small types: the same data."
    plain, other = movie_data(*frames), movie_data(*map(make, frames))
    pd.testing.assert_frame_equal(other.movies, plain.movies)
    pd.testing.assert_frame_equal(other.ratings, plain.ratings)
    assert other.dropped == plain.dropped


def test_dates_and_large_ids_of_polars():
    "Ids beyond 2**53 with a gap among them are not rounded; days are dates."
    big = 2**60 + 1
    movies = pl.DataFrame({"item_id": [big, None, big + 1], "title": ["Heat", "None", "Ran"]})
    ratings = pl.DataFrame(
        {"user_id": [1, 1], "item_id": [big, big + 1], "rating": [5, 1], "timestamp": ["2001-01-01"] * 2}
    )
    data = movie_data(movies, ratings.with_columns(pl.col("timestamp").str.to_date()))
    assert data.movies.index.tolist() == [big, big + 1] and data.ratings["item_id"].tolist() == [big, big + 1]
    assert data.ratings["timestamp"].tolist() == [978307200] * 2
    assert data.dropped["items without an id"] == 1


@pytest.mark.parametrize(
    "table", [None, 5, [1], {"item_id": [1]}, pl.LazyFrame({"item_id": [1]}), pl.Series([1])]
)
def test_what_is_no_table_is_refused(table, frames):
    with pytest.raises(InputError, match="items must be a pandas DataFrame"):
        movie_data(table, frames[1])
    with pytest.raises(InputError, match="ratings must be a pandas DataFrame"):
        movie_data(frames[0], table)


def test_columns_of_polars_may_be_said():
    books = pl.DataFrame({"isbn": ["a", "b"], "who": ["Woolf", "Mann"]})
    stars = pl.DataFrame({"reader": ["x", "x"], "isbn": ["a", "b"], "stars": [5, 1]})
    data = movie_data(books, stars, columns={"who": "creators", "reader": "user"}, noun="book")
    assert data.movies["creators"].tolist() == [("Woolf",), ("Mann",)] and len(data.ratings) == 2


# what services give


@pytest.fixture(scope="module")
def model():
    world = synthetic_data(40, 60, 900, seed=0)
    movies = world.movies.assign(title=[f"Film {k}" for k in range(60)], year=[1950 + k for k in range(60)])
    movies.loc[movies.index[:3], "title"] = ["Léon", "The Twins", "The Twins"]
    movies.loc[movies.index[1:3], "year"] = 1951
    data = movie_data(movies, world.ratings)
    quick = {"ensemble": 1, "validation": 0.0, "training": TrainConfig(epochs=1), "progress": False}
    return CorrectSmoothRecommender(**quick).fit(data)


def test_ids_of_other_libraries(model):
    "Asked for by polars, Arrow, pandas or NumPy: the same lists."
    ids = model.users_[[3, 1]]
    wanted = model.recommend(list(ids), n=3)
    for asked in (
        pl.Series(ids.to_numpy()),
        pa.array(ids.to_numpy()),
        pd.Series(ids),
        ids.to_numpy(),
        tuple(ids),
    ):
        pd.testing.assert_frame_equal(model.recommend(asked, n=3), wanted)
    new = pl.DataFrame(
        {"user_id": [900, 900], "item_id": model.items_[[0, 1]].to_numpy(), "rating": [5.0, 1.0]}
    )
    assert 900 in add_ratings(model.data_, new).users


HEAD = "Date,Name,Year,Letterboxd URI,Rating\n"


def boxed(*films):
    return HEAD + "".join(
        f'2024-01-01,"{name}",{year},https://boxd.it/x,{stars}\n' for name, year, stars in films
    )


@pytest.mark.parametrize("packed", ["csv", "gz", "zip", "folder"])
def test_letterboxd(model, packed, tmp_path):
    "Known films are used, the year may be off by one; unknown and unclear ones are listed."
    films = [("leon", 1950, 5), ("Film 10", 1961, 4.5), ("The Twins", 1951, 1), ("Film 5", 1990, 2)]
    films += [(f"Zzz {k}", 2000, 3) for k in range(5)]
    path = tmp_path / "ratings.csv"
    path.write_text(boxed(*films))
    if packed == "gz":
        path = tmp_path / "r.csv.gz"
        path.write_bytes(gzip.compress(boxed(*films).encode(), mtime=0))
    elif packed == "zip":
        path = zip_of(
            {"ratings.csv": boxed(*films).encode(), "diary.csv": b"", "likes/films.csv": b"x"},
            tmp_path / "l.zip",
        )
    found, notes = ratings_for(model, tmp_path if packed == "folder" else path)
    items = model.items_
    assert found["item_id"].tolist() == [items[0], items[10]] and found["rating"].tolist() == [5, 4.5]
    assert found["user_id"].nunique() == 1
    assert notes[0].startswith(
        "left out: 7 titles that this model does not know: 'The Twins (1951)' (perhaps #"
    )
    assert "'Film 5 (1990)' (perhaps #" in notes[0] and notes[0].endswith(", and 2 more")
    assert notes[1:] == ["note: 1 films taken for those of the year before or after"]


def test_watched_films(tmp_path):
    "Seen, where the model has a rating that says so; else left out, and said."
    world = synthetic_data(40, 60, 900, seed=0)
    movies = world.movies.assign(title=[f"Film {k}" for k in range(60)], year=1990)
    stars = world.ratings["rating"].where(np.arange(len(world.ratings)) % 9 > 0, 0)
    path = zip_of(
        {
            "ratings.csv": boxed(("Film 1", 1990, 4)).encode(),
            "watched.csv": b"Date,Name,Year,Letterboxd URI\n1,Film 1,1990,x\n1,Film 2,1990,x\n",
        },
        tmp_path / "export.zip",
    )
    for ratings, ids, silent in ((world.ratings, [1], None), (world.ratings.assign(rating=stars), [1, 2], 0)):
        data = movie_data(movies, ratings, no_opinion="keep" if silent is None else silent)
        quick = {"ensemble": 1, "validation": 0.0, "training": TrainConfig(epochs=1), "progress": False}
        fitted = CorrectSmoothRecommender(**quick).fit(data)
        found, notes = ratings_for(fitted, path)
        assert found["item_id"].tolist() == [movies.index[k] for k in ids]
        assert len(notes) == 1 and "watched and not rated" in notes[0]
        user = found["user_id"].iloc[0]
        listed = fitted.fold_in(found).recommend([user], n=60)["item_id"]
        assert (movies.index[2] in listed.tolist()) == (silent is None)


IMDB = "Const,Your Rating,Date Rated,Title,Original Title,URL,Title Type,IMDb Rating,Minutes,Year,Genres\n"


def test_imdb(model, tmp_path):
    "Ten is five; series are no films; an original title is a name as good; letters may be Latin-1."
    rows = 'tt1,10,2024-01-01,The Professional,Léon,u,Movie,8,1,1950,"Crime, Drama"\n'
    rows += "tt2,7,2024-01-01,Film 7,Film 7,u,Video,8,1,1957,Drama\n"
    rows += "tt3,9,2024-01-01,Film 8,Film 8,u,TV Series,8,1,1958,Drama\n"
    path = tmp_path / "imdb.csv"
    path.write_text(IMDB + rows, encoding="latin-1")
    found, notes = ratings_for(model, path)
    items = model.items_
    assert found["item_id"].tolist() == [items[0], items[7]] and found["rating"].tolist() == [5, 3.5]
    assert "left out: 1 rows that are no films, such as a TV Series" in notes
    assert any("of IMDb's ratings up to 10, brought to the model's, 0.5 to 5" in note for note in notes)
    kept, notes = ratings_for(model, path, as_rated=True)
    assert kept["rating"].tolist() == [10, 7] and not any("brought to" in note for note in notes)


@pytest.mark.parametrize(
    "text, message",
    [
        (boxed(("Zzz", 2000, 3)), "of Letterboxd's titles this model knows none; left out: 1 .*'Zzz .2000.'"),
        (boxed(("Film 10", 1960, "five")), "a rating must be a number: row 2: 'five'"),
        (boxed(("Film 10", 1960, "")), "holds what was watched, and no ratings"),
        (HEAD, "Letterboxd.s file holds nothing of use"),
    ],
)  # fmt: skip
def test_exports_without_anything_of_use(model, text, message, tmp_path):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        ratings_for(model, tmp_path / "r.csv")


def test_other_zips_are_no_exports(model, tmp_path):
    path = zip_of({"ratings.csv": b"title,rating\nFilm 10,5\n"}, tmp_path / "mine.zip")
    with pytest.raises(InputError, match="holds no ratings.csv of Letterboxd or IMDb"):
        ratings_for(model, path)


@tried(60, 2000)
@given(data=st.data())
def test_damaged_exports_are_read_or_refused(data):
    rows = (
        boxed(("Léon", 1950, 5), ('Film "10"', 1960, 4.5))
        if data.draw(st.booleans())
        else IMDB + "tt1,9,d,T,O,u,Movie,8,1,1990,x\n"
    )
    with tempfile.TemporaryDirectory() as d:
        path = Path(d, "ratings.csv")
        path.write_bytes(data.draw(damaged(rows.encode())))
        for source in (path, Path(d)):
            try:
                found = export_films(source, {})
            except InputError:
                continue
            assert found is None or found[1]["title"].notna().all()


def test_written_tables_are_read_from_a_zip(tmp_path):
    "What `write_tables` wrote, zipped by hand."
    world = synthetic_data(20, 30, 200, seed=0)
    write_tables(world, tmp_path / "t")
    path = zip_of({o.name: o.read_bytes() for o in (tmp_path / "t").iterdir()}, tmp_path / "t.zip")
    data = load_data(path)
    pd.testing.assert_frame_equal(data.movies, load_data(tmp_path / "t").movies)
    pd.testing.assert_frame_equal(data.ratings, load_data(tmp_path / "t").ratings)
