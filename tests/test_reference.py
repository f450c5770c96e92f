"""The page of the recommender documents what users call: every method, and every argument of it."""

import ast
import inspect
from json import loads
from pathlib import Path

import pytest
from fastcore.docments import docments

from correct_smooth.recommender import CorrectSmoothRecommender

PAGE = Path(__file__).parents[1] / "nbs" / "07_recommender.ipynb"


def own(name):
    "Whether a member is written in the module of the class; scikit-learn adds some to each estimator."
    found = inspect.getattr_static(CorrectSmoothRecommender, name)
    function = getattr(found, "fget", None) or getattr(found, "__func__", found)
    return getattr(function, "__module__", "") == CorrectSmoothRecommender.__module__


MEMBERS = sorted(name for name in vars(CorrectSmoothRecommender) if name[0] != "_" and own(name))
METHODS = [name for name in MEMBERS if callable(getattr(CorrectSmoothRecommender, name))]


def cells():
    "Code of the page, without lines that are options of a cell."
    for cell in loads(PAGE.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(line for line in cell["source"] if not line.startswith("#|"))


def documented(code):
    "What a cell shows by `show_doc`, for instance CorrectSmoothRecommender.fit."
    for one in ast.parse(code).body:
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call):
            if getattr(one.value.func, "id", "") == "show_doc":
                yield ast.unparse(one.value.args[0])


SHOWN = [name for code in cells() for name in documented(code)]


def test_members_are_found():
    assert {"fit", "predict", "recommend", "explain", "evaluate", "save", "load"} <= set(METHODS)
    assert {"users_", "items_", "models_"} <= set(MEMBERS) - set(METHODS)


@pytest.mark.parametrize("name", MEMBERS)
def test_member_is_on_the_page_once(name):
    assert SHOWN.count(f"CorrectSmoothRecommender.{name}") == 1


def test_page_shows_nothing_that_is_gone():
    names = {name.removeprefix("CorrectSmoothRecommender.") for name in SHOWN}
    assert names == set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_member_has_a_docstring_with_a_short_first_line(name):
    found = inspect.getattr_static(CorrectSmoothRecommender, name)
    first, _, rest = (inspect.getdoc(found) or "").partition("\n")
    assert first.endswith(".") and len(first) <= 80, first
    assert not rest or rest.startswith("\n")  # the first line is a sentence of its own


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_every_argument_has_a_meaning(name):
    method = getattr(CorrectSmoothRecommender, name)
    meanings = docments(method, args_kwargs=True)
    arguments = [one for one in inspect.signature(method).parameters if one not in ("self", "cls")]
    assert not [one for one in arguments if not (meanings.get(one) or "").strip()]


@pytest.mark.parametrize("name", METHODS)
def test_result_says_what_it_holds(name):
    method = getattr(CorrectSmoothRecommender, name)
    if "DataFrame" in str(inspect.signature(method).return_annotation):
        assert docments(method)["return"]
