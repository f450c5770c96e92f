"""What newcomers get wrong, and what they are told: before any training, and never something silent."""

import warnings
from copy import copy

import pandas as pd
import pytest

from correct_smooth.checks import InputError
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.sources import load_data
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

QUICK = dict(training=TrainConfig(epochs=1), ensemble=1, validation=0.0, progress=False)
STAGES = ("features", "graph", "model", "training", "refinement", "audience", "watch")


@pytest.fixture(scope="module")
def world():
    return synthetic_data(40, 60, 800, seed=0)


@pytest.fixture(scope="module")
def fitted(world):
    return CorrectSmoothRecommender(**QUICK).fit(world)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", [{}, "own", 3])
def test_a_stage_of_another_kind(world, stage, value):
    with pytest.raises(InputError, match=f"{stage} must be a "):
        CorrectSmoothRecommender(**{**QUICK, stage: value}).fit(world)


@pytest.mark.parametrize("callbacks", [["log"], print, "log", [print], 3])
def test_callbacks_that_are_none(world, callbacks):
    with pytest.raises(InputError, match="callback"):
        CorrectSmoothRecommender(**QUICK).fit(world, callbacks=callbacks)


@pytest.mark.parametrize("rating", [500, -3, 9, 1e6])
def test_ratings_off_the_scale(fitted, rating):
    with pytest.raises(InputError, match="off the scale of the model, 0.5 to 5"):
        fitted.recommend_for({1: rating, 2: 4})
    with pytest.warns(UserWarning, match="off the scale of the model"):
        newcomer = pd.DataFrame({"user_id": [900], "item_id": [1], "rating": [rating]})
        copy(fitted).fold_in(newcomer)


def test_ratings_on_the_scale_are_no_news(fitted):
    with warnings.catch_warnings(action="error"):
        fitted.recommend_for({1: 0.5, 2: 5, 3: 3})
        copy(fitted).fold_in(pd.DataFrame({"user_id": [900], "item_id": [1], "rating": [5.0]}))


def test_reasons_for_a_stranger_say_so(fitted):
    with pytest.warns(UserWarning, match="user 'zz' is unknown"):
        fitted.explain("zz", 1)


def folder(path, items, ratings):
    path.mkdir()
    (path / "katalog.csv").write_text(items, encoding="utf-8")
    (path / "noten.csv").write_text(ratings, encoding="utf-8")
    return path


ITEMS = "sku;Benennung;Verfasser;Preis\n1;Heat;Mann;12,50\n2;Ran;Kurosawa;7\n3;Up;Docter;9,25\n"
RATINGS = "kunde;sku;note\n" + "".join(f"{u};{i};{1 + (u + i) % 5}\n" for u in range(5) for i in (1, 2, 3))
SAID = {"kunde": "user", "sku": "item", "note": "rating", "Benennung": "title"}


def test_numbers_with_a_comma(tmp_path):
    data = load_data(folder(tmp_path / "shop", ITEMS, RATINGS), columns={**SAID, "Preis": "numbers"})
    assert data.movies["numbers: Preis"].tolist() == [12.5, 7.0, 9.25]
    assert "note: numbers of numbers: Preis with a comma, read as a point" in data.dropped


def test_two_columns_for_one_role(tmp_path):
    with pytest.raises(InputError, match="'Benennung' and 'Verfasser' cannot both be title"):
        load_data(folder(tmp_path / "shop", ITEMS, RATINGS), columns={**SAID, "Verfasser": "title"})


def test_what_was_said_is_not_overruled(tmp_path):
    books = "book_id,title\n" + "".join(f"{k},Book {k}\n" for k in range(1, 9))
    stars = "user_id,book_id,rating\n" + "".join(
        f"{u},{1 + (u * k) % 8},{k}\n" for u in range(9) for k in range(1, 6)
    )
    with pytest.raises(InputError, match="no column of items is the item's id but 'book_id'"):
        load_data(folder(tmp_path / "books", books, stars), columns={"user_id": "item", "book_id": "user"})
