"""Whether the studies were run on the method as it is now, and what counts as a change of it."""

import re
import sys
from pathlib import Path

import pandas as pd
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


def found(study, *names):
    "Figures of a study whose names begin and end so: what stands between them, and the value."
    first, last = names
    figures = evidence.load()[study]["figures"]
    return {
        k[len(first) : len(k) - len(last)]: v
        for k, v in figures.items()
        if k.startswith(first) and k.endswith(last)
    }


def others(table):
    return {k: v for k, v in table.items() if not k.startswith("our")}


DATA = ("the-movies-dataset", "demo")


@pytest.mark.parametrize("on", DATA)
def test_scores_are_ahead_where_movies_are_given(on):
    "09_benchmarks and the README."
    for end in ("low", "splits low"):
        behind = found("benchmarks", f"{on}, ", f", {end}")
        assert min(others(behind).values()) > 0 and behind["ours, base"] > 0, end
    auc = found("benchmarks", f"{on}, ", ", roc_auc")
    assert max(others(auc), key=auc.get).startswith("LightFM, ids + ")


def test_content_counts_and_the_idea_not_our_version():
    auc, low, high = (found("benchmarks", f"{DATA[0]}, ", f", {o}") for o in ("roc_auc", "low", "high"))
    for package in ("LightFM", "myFM"):
        assert auc[f"{package}, ids + content"] > auc[f"{package}, ids"] + 0.01
    assert low["our base, geometric C+S"] < 0 < high["our base, geometric C+S"]


@pytest.mark.parametrize("on", DATA)
def test_lists_are_ahead(on):
    "09a_lists and the README: liked by both measures; watched by NDCG, and nobody ahead by recall."
    for end in ("low", "splits low"):
        for metric in ("ndcg_at_10", "recall_at_20"):
            assert min(others(found("lists", f"{on}, liked, {metric}, ", f", {end}")).values()) > 0
        assert min(others(found("lists", f"{on}, watched, ndcg_at_10, ", f", {end}")).values()) > 0
    assert min(others(found("lists", f"{on}, watched, recall_at_20, ", ", high")).values()) > 0
    ndcg = found("lists", f"{on}, liked, ndcg_at_10, ", ", ndcg_at_10")
    assert ndcg["ours, both"] > 2 * ndcg["popularity"] > 2 * ndcg["ours, like"]


def test_popularity_wins_where_nothing_is_personal():
    ndcg = found("lists", "synthetic, watched, ndcg_at_10, ", ", ndcg_at_10")
    assert max(ndcg, key=ndcg.get) == "popularity"
    low, high = (
        found("lists", "synthetic, liked, ndcg_at_10, ", f", {o}")["ALS on liked"] for o in ("low", "high")
    )
    assert low < 0 < high


def test_newcomers_are_served_alike():
    "08a_newcomers_measured."
    low, high = (found("newcomers", "", f" known, folded minus trained in, {o}") for o in ("low", "high"))
    assert set(low) == {"1", "2", "5", "10", "20", "50"}
    assert all(-0.01 < low[k] <= 0 <= high[k] for k in low)
    ahead = found("newcomers", "new movies, ", ", low")
    assert ahead["content kNN"] > 0.03 and ahead["vote average"] > 0.02 and ahead["base"] > 0


def test_the_case_study_says_so():
    "08_movies_dataset: what is passed on must be errors, and kept small; the test."
    low, high = (found("case-study", "", f", {o}") for o in ("low", "high"))
    assert (
        low["the recipe: own labels, smoothed once"]
        < 0
        < high["the recipe: own labels, smoothed once"]
        < 0.005
    )
    assert high["residuals spread, autoscale"] < 0 and high["residuals spread, one scale a user"] < 0
    assert low["residuals of labelled neighbours"] > 0 and low["residuals spread, fixed scale"] > 0
    assert low["the same, both graphs (default)"] > 0
    delta = found("case-study", "split ", ", delta")
    assert 0.0035 < delta["mean"] < 0.0045 and sum(low[f"split {o}"] > 0 for o in range(5)) == 5


def test_what_is_said_of_speed():
    "09c_speed: what was required of epochs is kept; ALS is faster."
    times, slope, reached = (
        found("speed", a, b) for a, b in (("", ", times faster"), ("slope, ", ""), ("reached, ", ""))
    )
    assert 50 <= times["epoch; the plain way"] < times["the plain way; ours with all defaults"]
    assert (
        times["C+S and metrics of all users; the plain way"]
        >= 150
        <= times["the same, ours by its default rule"]
    )
    assert times["epoch; LightFM"] >= 3 and times["metrics; scikit-learn"] >= 1000
    assert max(times["epoch; a sweep of implicit ALS"], times["lists of ten; implicit ALS"]) < 0.9
    assert times["graph; scikit-learn, exact"] > 1 < times["graph; pynndescent"]
    assert max(v for k, v in slope.items() if k.startswith(("ratings", "users"))) <= 1.05
    assert min(reached["epoch"], reached["scores of pairs"]) > 0.3
    assert max(reached["lists of ten"], reached["graph"]) < 0.5 and reached["metrics"] < 0.1


def test_tables_and_pictures_can_be_had_as_files(tmp_path):
    evidence.write_out("08b_books", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    truth = pd.read_csv(tmp_path / "b014-0-0.csv", index_col=0)
    assert truth.loc["what I will like", "loved authors"] > 2 * truth.loc["at random", "loved authors"]
