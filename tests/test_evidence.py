"""Whether the studies were run on the method as it is now, and what counts as a change of it."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import evidence  # noqa: E402

STUDY = """
from correct_smooth.train import train

def gain(scores: list, alpha: float = 0.8) -> float:
    "How much is gained."
    if alpha < 0:
        raise ValueError(f"{alpha} is below 0")
    low, high = min(scores), max(scores)
    return alpha * sum(scores)  # of all users

def plot_gain(ax, scores):
    ax.plot(scores)
"""


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("a docstring", "How much is gained", "What a user gains"),
        ("a comment", "of all users", "over users"),
        ("a type", "scores: list", "scores: tuple"),
        ("the text of an error", "is below 0", "must not be below 0"),
        (
            "two assignments in one",
            "low, high = min(scores), max(scores)",
            "low = min(scores)\n    high = max(scores)",
        ),
        ("what draws", "ax.plot(scores)", "ax.bar(scores)"),
        ("a line break", "return alpha * sum(scores)", "return (\n        alpha * sum(scores)\n    )"),
    ],
)
def test_what_computes_the_same_is_no_change(what, old, new):
    assert old in STUDY
    assert evidence.essence(STUDY) == evidence.essence(STUDY.replace(old, new)), what


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("a default", "0.8", "0.9"),
        ("an operation", "alpha * sum", "alpha + sum"),
        ("a condition", "alpha < 0", "alpha <= 0"),
        ("what is computed first", "min(scores), max(scores)", "max(scores), min(scores)"),
        ("what is imported", "train import train", "model import embeddings"),
    ],
)
def test_what_computes_something_else_is_a_change(what, old, new):
    assert old in STUDY
    assert evidence.essence(STUDY) != evidence.essence(STUDY.replace(old, new)), what


def test_a_study_depends_on_what_it_uses_indirectly():
    used = evidence.modules_of("09a_lists")
    assert {"recommender", "train", "model", "watch", "audience", "products", "diffusion"} <= set(used)
    assert not {"service", "report", "commands", "checks", "distributed"} & set(used)
    assert evidence.imported("from .train import x\nfrom correct_smooth import hold_back, split") == {
        "train", "validation", "dataset",
    }  # fmt: skip


def test_advice_names_study_and_module():
    page = evidence.STUDIES["lists"][0]
    now = evidence.fingerprint(page)
    manifest = {"lists": {"code": now | {"watch": "another"}}}
    stale = evidence.outdated(manifest)
    assert stale["lists"] == ["watch"] and stale["speed"] == ["never run"]
    assert "lists: watch; run python tools/evidence.py lists" in evidence.advice(stale)


def test_every_study_is_of_today():
    stale = evidence.outdated(evidence.load())
    assert not stale, f"these studies were run on another method than this:\n{evidence.advice(stale)}"


@pytest.mark.parametrize("name", evidence.STUDIES)
def test_an_entry_says_what_it_was_run_on(name):
    entry = evidence.load()[name]
    page, _, sources, seeds = evidence.STUDIES[name]
    assert entry["page"] == page and entry["seeds"] == seeds and entry["seconds"] > 0
    assert re.fullmatch("[0-9a-f]{40}", entry["commit"])
    assert set(entry["data"]) == set(sources) - {"made up"}
    assert all(o["ratings"] > 0 and re.fullmatch("[0-9a-f]{12}", o["sha"]) for o in entry["data"].values())
    assert entry["machine"]["cores"] > 0 and "torch" in entry["machine"]["packages"]
    assert entry["figures"], "the page's last cell says what its key figures are: evidence = {...}"
