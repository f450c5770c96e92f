"""The page about a run: whatever ids and titles hold stays text, nothing is fetched, and it renders."""

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from correct_smooth.checks import InputError
from correct_smooth.dataset import index_ratings
from correct_smooth.evaluate import METRICS
from correct_smooth.experiment import run
from correct_smooth.graph import GraphConfig
from correct_smooth.lists import LIST_METRICS, list_table
from correct_smooth.plots import plot_gains
from correct_smooth.recommender import CorrectSmoothRecommender
from correct_smooth.report import (
    _ORDERINGS,
    Example,
    finding,
    html_report,
    list_finding,
    list_lines,
    metric_name,
)
from correct_smooth.results import calibration, report
from correct_smooth.sources import write_tables
from correct_smooth.synthetic import synthetic_data
from correct_smooth.train import TrainConfig

SOME = tried(15, 200)
VOID = {"meta", "img"}
TAGS = set(
    "html head meta title style body main header p h1 h2 h3 bdi dl div dt dd nav ul li a section table "
    "caption span thead tbody tr th td small code strong figure img figcaption details summary footer".split()
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: how the page looks in a browser is not tested"
)


class Page(HTMLParser):
    "A page taken apart: tags, attributes, the text of each element."

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, []))

    def handle_endtag(self, tag):
        name, parts = self.open.pop()
        assert name == tag
        self.texts.append((tag, "".join(parts)))

    def handle_data(self, data):
        for _, parts in self.open:
            parts.append(data)

    def of(self, *tags):
        return [text for tag, text in self.texts if tag in tags]


def found_on_lists(liked, watched):
    "What one ordering has over popular ones, liked and watched."
    over = {"ndcg_liked": list(liked), "ndcg_watched": list(watched)}
    return {"ndcg_liked": 0.1 + liked[0], "ndcg_watched": 0.2 + watched[0], "over_popular": over}


def summary(name="some data", interval=(0.01, 0.03), **changes):
    "What a run tells, made up."
    facts = dict(coverage=0.1, popularity=80.0, catalogue=9.0, percentile=0.7, overlap=0.2, novelty=3.25)
    lists = {
        "popular": {**facts, "ndcg_liked": 0.1, "ndcg_watched": 0.2},
        "base": {**facts, **found_on_lists(liked=(-0.06, -0.07, -0.05), watched=(0, -0.01, 0.01))},
        "both": {**facts, "overlap": float("nan"), **found_on_lists((0.06, 0.05, 0.07), (0.1, 0.08, 0.12))},
    }
    return {
        "data": {"name": name, "noun": "movie", "users": 1234, "items": 10, "ratings": 56789, "dropped": {}},
        "base": dict.fromkeys(METRICS, 0.7),
        "refined": dict.fromkeys(METRICS, 0.72),
        "delta": dict.fromkeys(METRICS, 0.02),
        "ci95": dict.fromkeys(METRICS, list(interval)),
        "users_evaluated": 1200,
        "users_skipped": 34,
        "by_history": [dict(fewest=1, most=2000, users=1200, delta=-0.01, low=-0.02, high=0.01)],
        "calibration": {
            "base": dict(score=0.5, liked=0.4, confidence=0.75, accuracy=0.7, error=0.1),
            "refined": dict(score=0.5, liked=0.4, confidence=0.72, accuracy=0.7, error=0.05),
        },
        "epochs": 3,
        "reading": ["ROC AUC is up."],
        "lists": lists,
        "seconds": {"fit": 1.25},
        "config": {"seed": 0, "graph": {"blocks": ["a", "b"], "k": 20}, "model": {"alpha": None}},
        "versions": {"python": "3.11"},
        **changes,
    }


def example(user="ann", titles=("Alien", "Heat"), recommended=("Up",), **scores):
    n, m = len(titles), len(recommended)
    titles, recommended = (pd.Series(o, dtype=object) for o in (titles, recommended))
    history = {"title": titles, "rating": np.linspace(1, 5, n), "liked": np.arange(n) % 2 == 0}
    got = {"rank": range(1, m + 1), "title": recommended, "base": 0.5, "refined": 0.625, **scores}
    return Example(user, pd.DataFrame(history), pd.DataFrame(got))


def drawn(n=50):
    figure = Figure(figsize=(6, 3), layout="constrained")
    gain = pd.Series(np.random.default_rng(0).normal(size=n))
    plot_gains(0 * gain, gain, figure.subplots())
    return figure


NASTY = [
    "<script>alert(1)</script>",
    "</td></table></main><img src=x onerror=alert(1)>",
    "\"' onload='alert(1)",
    "&lt;b&gt; &amp; {{ told }} {% raw %}",
    "<!-- ]]> --> ${x} `y`",
    "</style><style>* { display: none }",
    "\u202eright to left\u202c עברית 七人の侍 🎬",
]


@pytest.mark.parametrize("text", NASTY)
def test_text_stays_text(text):
    "In every place where data come in, markup is shown and not obeyed."
    told = summary(
        name=text,
        reading=[text],
        versions={text: text},
        config={text: {text: text}},
        seconds={text: 1.0},
    )
    told["data"]["dropped"] = {text: 3}
    told["lists"] = {"popular": told["lists"]["popular"], text: told["lists"]["both"]}
    for part in ("base", "refined", "delta", "ci95"):
        told[part] = {**told[part], text: told[part]["f1"]}
    page = Page(html_report(told, {text: drawn()}, [example(text, [text], [text])]))
    assert set(page.tags) <= TAGS and page.tags.count("img") == 1 and page.tags.count("style") == 1
    assert {k for k, _ in page.attributes} <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "role", "tabindex"),
        *("aria-label", "scope", "src", "alt", "id", "href", "open"),
    }
    assert page.of("h1") == [text] and f"User {text}" in page.of("h3") and text in page.of("figcaption")
    # metric, ordering twice, movie rated, movie recommended, package, stage
    assert page.of("th").count(text) == 7
    assert ("alt", text) in page.attributes


@SOME
@given(st.text(), st.lists(st.text(), max_size=4), st.text())
def test_any_ids_and_titles(user, titles, name):
    "Any text at all gives a page that can be written as UTF-8 and read back, each title in its cell."
    page = html_report(summary(name=name), {}, [example(user, titles, titles)])
    page.encode("utf-8")
    read = Page(page)
    assert set(read.tags) <= TAGS
    shown = [
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", o) for o in titles
    ]
    for original, title in zip(titles, shown, strict=True):
        assert read.of("th").count(title if original.strip() else "(no title)") >= 2
    assert html_report(summary(name=name), {}, [example(user, titles, titles)]) == page


def test_what_a_page_cannot_hold_is_replaced():
    "Control characters and halves of surrogate pairs; titles that are missing or are numbers."
    page = html_report(summary(), {}, [example("a\x00\ud83d", ["x\x1b[0m", None, 1984], ["\udc00"])])
    page.encode("utf-8")
    read = Page(page)
    assert "User a\ufffd\ufffd" in read.of("h3")
    assert {"x\ufffd[0m", "(no title)", "1984", "\ufffd"} <= set(read.of("th"))


def test_nothing_is_fetched():
    "No address but pictures inside the page; and the page itself forbids any other."
    page = html_report(summary(), {"gains": drawn(), "more": drawn()}, [example()])
    read = Page(page)
    sources = [v for k, v in read.attributes if k in ("src", "srcset", "action", "data")]
    assert len(sources) == 2 and all(o.startswith("data:image/svg+xml;base64,") for o in sources)
    assert {v[0] for k, v in read.attributes if k == "href"} == {"#"}
    rest = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|javascript:", rest)
    assert "default-src 'none'" in page
    svg = base64.b64decode(sources[0].partition(",")[2]).decode()
    assert not re.search(r'(href|src)="(?!#)', svg) and "<script" not in svg and "<dc:date>" not in svg


def test_the_same_input_gives_the_same_page():
    "Figures drawn before, drawn again or never drawn; and the input is left as it was."
    figure, told = drawn(), summary()
    pages = [html_report(told, {"gains": figure}, [example()]) for _ in range(3)]
    pages.append(html_report(summary(), {"gains": drawn()}, [example()]))
    assert len(set(pages)) == 1 and str(told) == str(summary())


def test_a_picture_of_many_users_is_stored_as_pixels():
    "A page stays small however many users there are."
    page = html_report(summary(), {"gains": drawn(100_000)})
    assert "data:image/png;base64," in page and len(page) < 500_000


def test_what_the_page_says():
    "Numbers, verdicts, movies in the order of their ratings, settings by their full names."
    titles = [f"movie {o}" for o in range(15)]
    read = Page(html_report(summary(), {}, [example("ann", titles)]))
    cells = read.of("td", "th")
    assert {"1,234", "56,789", "10"} <= set(read.of("dd"))
    # more log loss is worse
    assert cells.count("+0.0200 gain+0.0100, +0.0300") == 8
    assert cells.count("+0.0200 loss+0.0100, +0.0300") == 1
    wanted = {"0.7000", "0.7200", "1–2,000", "−0.0100−0.0200, +0.0100", "20.0%", "–"}
    assert wanted <= set(cells)
    assert [o for o in cells if o.startswith("movie")] == titles[::-1][:10]
    assert "15 movies rated, 8 liked" in read.of("span")
    for name, value in (("seed", "0"), ("graph__blocks", '["a", "b"]'), ("model__alpha", "null")):
        assert cells[cells.index(name) + 1] == value


def test_metrics_have_the_names_that_people_use():
    "In the table, with what is measured and the key of the summary; and one of the user's own keeps its key."
    told = summary()
    for part in ("base", "refined", "delta", "ci95"):
        told[part] = {**told[part], "my_metric": told[part]["f1"]}
    cells = Page(html_report(told, {})).of("th")
    for key in METRICS:
        (cell,) = (one for one in cells if one.startswith(metric_name(key)) and one.endswith(f" {key}"))
        assert len(cell) > len(metric_name(key)) + len(key) + 10
    assert metric_name("ndcg_at_10") == "NDCG@10" and "my_metric" in cells


def test_what_the_page_says_of_histories_and_probabilities():
    "Sentences from the numbers; none about what a summary does not have."
    text = " ".join(Page(html_report(summary(), {})).of("p"))
    assert "significantly above 0 in 0 of 1 groups of users, and significantly below 0 in none." in text
    assert "over-confident by 2.0 points (base: +5.0)" in text
    assert "mean score is 50.0%, and 40.0% of the held-out movies are liked" in text
    assert "5.0 points apart on average (base: 10.0)" in text
    bare = summary(by_history=[])
    del bare["calibration"]
    read = Page(html_report(bare, {}))
    assert "confident" not in " ".join(read.of("p")) and "Are scores probabilities?" not in read.of("h2")


@SOME
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
def test_calibration_by_counting(pairs):
    "Mean score, share liked, confidence and accuracy as a loop finds them; the distance is no more than one."
    label, score = (np.array(values, float) for values in zip(*pairs, strict=True))
    told, n = calibration(label, score), len(pairs)
    close = partial(pytest.approx, abs=1e-9)
    assert told["score"] == close(sum(z for _, z in pairs) / n)
    assert told["liked"] == close(sum(y for y, _ in pairs) / n)
    assert told["confidence"] == close(sum(max(z, 1 - z) for _, z in pairs) / n)
    assert told["accuracy"] == sum((z >= 0.5) == y for y, z in pairs) / n
    assert abs(told["score"] - told["liked"]) - 1e-9 <= told["error"] <= 1
    backwards = calibration(label[::-1], score[::-1])
    assert backwards == pytest.approx(told)


def test_users_are_folded_and_sorted():
    "From the shortest history to the longest, the first one open, and each with its ROC AUC."
    users = [example(name, NASTY[:n]) for name, n in (("long", 5), ("short", 1), ("middle", 3))]
    users[0] = replace(users[0], roc_auc=(0.5, 0.75))
    page = html_report(summary(), {}, users)
    assert Page(page).of("h3") == ["User short", "User middle", "User long"]
    folds = re.findall(r"<details( open)?>\n<summary><h3>", page)
    assert folds == [" open", "", ""]
    assert "5 movies rated, 3 liked; ROC AUC 0.750 with the graph, 0.500 without" in Page(page).of("span")


def test_headings_and_contents():
    "One h1, no level is skipped, and the contents name every part by a link to its heading."
    for told, figures in ((summary(), {"gains": drawn(), "mine": drawn()}), (summary(lists={}), {})):
        page = html_report(told, figures, [example()])
        read = Page(page)
        levels = [int(tag[1]) for tag in read.tags if tag in ("h1", "h2", "h3")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        ids = [value for key, value in read.attributes if key == "id"]
        assert [value for key, value in read.attributes if key == "href"] == [f"#{one}" for one in ids]
        assert len(set(ids)) == len(ids) and read.of("li")[: len(ids)] == read.of("a") == read.of("h2")
        assert all(value for key, value in read.attributes if key == "alt")


def colours(text):
    "Custom properties of the style sheet: of light, and of dark where they differ."
    light, dark = re.findall(r":root \{([^}]*)\}", text)[:2]
    found = [dict(re.findall(r"(--\w+): (#\w+)", block)) for block in (light, dark)]
    return found[0], found[0] | found[1]


def contrast(one, other):
    "Of two colours, by the formula of WCAG 2."

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    "Every colour of text on both grounds, in light and dark."
    chosen = colours(html_report(summary(), {}))[scheme]
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    for ground in ("--paper", "--card"):
        for name in ("--ink", "--soft", "--accent", "--good", "--bad"):
            assert contrast(chosen[name], chosen[ground]) >= 4.5, (name, ground)


def test_no_gain_is_said_to_be_no_gain():
    "An interval that holds zero, and one that does not exist."
    open_, single = (summary(interval=o) for o in ((-0.01, 0.05), (float("nan"),) * 2))
    assert "not significantly different from 0 (95% interval −1.00 to +5.00)" in finding(open_)
    assert "not significantly different from 0 (95% interval – to –)" in finding(single)
    assert "a loss of 2.00 points (95% interval 1.00 to 3.00)" in finding(
        summary(interval=(-0.03, -0.01), delta={"roc_auc": -0.02})
    )
    for told in (open_, single):
        cells = Page(html_report(told, {})).of("td")
        assert sum("not significant" in cell for cell in cells) == 9 and "gain" not in "".join(cells)


def test_what_the_page_says_of_lists():
    "A row an ordering with its interval, a column an ordering with its facts, a sentence about the last."
    read = Page(html_report(summary(), {}))
    cells = read.of("td", "th")
    assert "bothmost likely to be watched, and then liked" in cells
    assert {"0.160+0.050, +0.070", "0.300+0.080, +0.120", "0.040−0.070, −0.050", "3.25"} <= set(cells)
    # popular is not compared with itself, and one overlap is nan
    assert {"0.100–", "0.200–", "–"} <= set(cells) and cells.count("–") == 1
    assert any(o.startswith("Against the most popular items") for o in read.of("p"))
    assert "What is on the lists?" in read.of("h2")
    bare = summary()
    del bare["lists"]
    assert "What is on the lists?" not in Page(html_report(bare, {})).of("h2")


def test_lists_are_judged_by_their_interval():
    "More, less, or neither; nothing is said of lists that nobody has judged."
    told = summary()
    assert list_finding(told) == (
        'Against the most popular items, lists by "both" hold more of what users liked (NDCG@10 0.160 '
        "against 0.100), and more of what users watched (NDCG@10 0.300 against 0.200)."
    )
    del told["lists"]["both"]
    assert 'by "base" hold less of what users liked' in list_finding(told)
    assert "and not significantly more or less of what users watched" in list_finding(told)
    assert list_finding({}) == list_finding({"lists": {"popular": told["lists"]["popular"]}}) == ""


def test_lists_on_a_terminal():
    "A line an ordering, marked where it has more than popular; dashes where nothing was judged."
    table = {line.split()[0]: line.split()[1:] for line in list_lines(summary()) if line}
    assert table["popular"] == ["0.100", "0.200", "10.0%", "70.0%", "20.0%"]
    assert table["base"][:2] == ["0.040", "0.200"] and table["both"][:2] == ["0.160*", "0.300*"]
    assert table["both"][-1] == "–" and list_lines({}) == []
    facts = {"coverage": 0.5, "percentile": 0.25, "overlap": 1.0}
    (line,) = (o for o in list_lines({"lists": {"refined": facts}}) if o.startswith("refined"))
    assert line.split()[1:] == ["–", "–", "50.0%", "25.0%", "100.0%"]


@pytest.mark.parametrize(
    ("scores", "head"),
    [
        ({}, ["Rank", "Movie", "Base", "C+S"]),
        ({"watch": np.nan, "score": 0.5}, ["Rank", "Movie", "Base", "C+S", "Score"]),
        ({"score": 0.25, "watch": 0.5}, ["Rank", "Movie", "Base", "C+S", "Watch", "Score"]),
    ],
)
def test_scores_of_what_is_recommended(scores, head):
    "All that there are, in one order; none of which nothing is known."
    cells = Page(html_report(summary(), {}, [example(**scores)])).of("td", "th")
    at = cells.index("Rank")
    assert cells[at : at + len(head)] == head
    shown = ["1", "Up", "0.500", "0.625", *(f"{scores[o.lower()]:.3f}" for o in head[4:])]
    assert cells[at + len(head) :][: len(head)] == shown


@pytest.mark.parametrize("key", ["data", "ci95", "by_history", "versions"])
def test_a_summary_that_lacks_something_is_refused(key):
    with pytest.raises(InputError, match=f"the summary has no '{key}'"):
        html_report({k: v for k, v in summary().items() if k != key}, {})


def test_an_example_that_lacks_a_column_is_refused():
    one = example()
    with pytest.raises(InputError, match="history of user 'ann' has no column 'liked'"):
        Example("ann", one.history.drop(columns="liked"), one.recommended)
    with pytest.raises(InputError, match="recommended of user 'ann' has no column 'refined'"):
        Example("ann", one.history, one.recommended.drop(columns="refined"))


def chromium(path, profile, *what):
    "What Chromium prints of a page; it says nothing on its console."
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run", "--enable-logging=stderr"),
        *(f"--user-data-dir={profile}", "--window-size=1280,2000"),
    ]
    done = subprocess.run([*command, *what, path.as_uri()], capture_output=True, timeout=600)
    assert done.returncode == 0 and b"CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout.decode()


LONG = ["Donaudampfschifffahrtsgesellschaftskapitän" * 4, "word " * 60, "七人の侍" * 40]


def full_page():
    "A page with every part, and with titles, ids and settings that are hard to fit."
    told = summary(name=LONG[0], reading=[LONG[0]])
    told["config"]["long"] = {"list": [0.123456] * 40, LONG[0]: LONG[0]}
    told["versions"][LONG[0]] = LONG[0]
    told["data"]["dropped"] = {f"ratings of {LONG[0]}": 12}
    told["by_history"] = 3 * [dict(fewest=1000, most=2000, users=1200, delta=-0.01, low=-0.02, high=0.01)]
    users = [example(text, NASTY + LONG, NASTY + LONG, watch=0.1, score=0.2) for text in NASTY + LONG]
    figures = ("gains", "history", "metrics", "calibration", "lists", "diversity", LONG[0])
    return html_report(told, {name: drawn() for name in figures}, users)


@NEEDS_CHROMIUM
def test_a_browser_shows_it(tmp_path):
    "Chromium reads the page as we do, says nothing on its console, and draws something."
    path, text = tmp_path / "page.html", full_page()
    path.write_text(text, encoding="utf-8")
    dom = chromium(path, tmp_path / "profile", "--dump-dom")
    seen, wanted = Page(dom.removeprefix("<!DOCTYPE html>")), Page(text)
    assert seen.tags == wanted.tags
    assert seen.of("th", "td", "h3") == wanted.of("th", "td", "h3")
    chromium(path, tmp_path / "profile", f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 50_000


LOOK = """
const numbers = text => text.match(/[\\d.]+/g).map(Number);
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
function ground(node) {  // the first colour behind a text that can be seen
  for (; node; node = node.parentElement) {
    const colour = numbers(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
  }
  return [255, 255, 255];
}
function look(page) {
  const width = page.documentElement.clientWidth, found = {wide: [], pale: [], texts: 0};
  found.width = [width, page.documentElement.scrollWidth];
  found.dark = page.defaultView.matchMedia("(prefers-color-scheme: dark)").matches;
  for (const one of page.querySelectorAll("details")) one.open = true;
  for (const one of page.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect(), inside = one.parentElement.closest(".scroll");
    if (!inside && (box.right > width + 1 || box.left < -1)) found.wide.push(one.outerHTML.slice(0, 80));
    if (![...one.childNodes].some(o => o.nodeType == 3 && o.data.trim())) continue;
    const style = getComputedStyle(one), colour = numbers(style.color);
    const [low, high] = [luminance(colour), luminance(ground(one))].sort((a, b) => a - b);
    found.texts += 1;
    if ((high + .05) / (low + .05) < 4.5) found.pale.push(one.outerHTML.slice(0, 80));
    if (parseFloat(style.fontSize) < 11) found.pale.push("small: " + one.outerHTML.slice(0, 80));
  }
  return found;
}
"""


@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(tmp_path, scheme):
    "At 320, 400 and 1200 px nothing sticks out but in boxes that scroll; text has a contrast of 4.5."
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{escape(full_page())}"></iframe>'
        for width in (320, 400, 1200)
    )
    script = (
        "addEventListener('load', () => { const seen = [...document.querySelectorAll('iframe')].map("
        "frame => look(frame.contentDocument)); document.body.textContent = JSON.stringify(seen); })"
    )
    style = "<style>iframe { border: 0 }</style>"
    head = f"<head>{style}<script>{LOOK}{script}</script></head>"
    html = f"<!DOCTYPE html><html>{head}<body>{frames}</body></html>"
    path = tmp_path / "frames.html"
    path.write_text(html, encoding="utf-8")
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom = chromium(path, tmp_path / "profile", setting, "--hide-scrollbars", "--dump-dom")
    all_seen = json.loads(unescape(dom[dom.index("<body>") + 6 : dom.index("</body>")]))
    assert [seen["width"][0] for seen in all_seen] == [320, 400, 1200]
    for seen in all_seen:
        assert seen["dark"] == (scheme == "dark") and seen["texts"] > 500
        assert seen["width"][1] <= seen["width"][0] and seen["wide"] == [] and seen["pale"] == []


def test_nothing_of_the_method_loads_pyplot():
    "Nor any other part of matplotlib: it is imported when something is drawn."
    names = "features graph edges model encoders evaluate lists plots topn report"
    code = f"""
import sys
from importlib import import_module
for name in {names.split()}:
    import_module("correct_smooth." + name)
assert not [name for name in sys.modules if name.startswith("matplotlib")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Watching(CorrectSmoothRecommender):
    "A recommender whose lists and scores by watching are made up."

    orderings = ("popular", "base", "like", "watch", "both")

    def evaluate(self, test):
        found, rng = super().evaluate(test), np.random.default_rng(0)
        held, users = index_ratings(test), found.users["user_id"].to_numpy()
        n_items = len(self.items_)
        lists = {o: rng.random((len(users), n_items)).argsort(axis=1)[:, :10] for o in self.orderings}
        item = self.items_.get_indexer(held.items)[held.item]
        table = list_table(lists, users, held.users[held.user], item, held.y, n_items)
        return replace(found, lists=lists, list_users=table, n_users=len(self.users_))

    def recommend(self, *args, **kwargs):
        found = super().recommend(*args, **kwargs).drop(columns=["watch", "score"], errors="ignore")
        return found.assign(watch=0.125, score=0.0625) if "watch" in self.orderings else found


class Unwatching(Watching):
    "The same without a watch score."

    orderings = ("popular", "base", "like")


@pytest.mark.parametrize("kind", [Watching, Unwatching])
def test_a_run_tells_of_every_ordering(tmp_path, kind):
    "In the summary, on the terminal, on the page, in a picture."
    write_tables(synthetic_data(60, 80, 1_500, seed=0), tmp_path / "world")
    quick = kind(graph=GraphConfig(k=5), training=TrainConfig(epochs=2), ensemble=1, progress=False)
    told = run(tmp_path / "world", tmp_path / "out", seed=3, recommender=quick)
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert kept["lists"] == told["lists"] and list(kept["lists"]) == list(kind.orderings)
    last = kept["lists"][kind.orderings[-1]]
    wanted = set(LIST_METRICS) | {"coverage", "percentile", "overlap", "novelty", "unrated", "ci95"}
    assert wanted | {"over_popular"} <= set(last)
    low, high = last["ci95"]["ndcg_liked"]
    assert low <= last["ndcg_liked"] <= high
    lines = report(kept).splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("top tens by"))
    rows = lines[at + 1 : at + 1 + len(kind.orderings)]
    assert [row.split()[0] for row in rows] == [*kind.orderings] and not any("–" in row for row in rows)
    assert (tmp_path / "out" / "figures" / "lists.png").stat().st_size > 5_000
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert {f"{o}{words}" for o, words in _ORDERINGS.items() if o in kind.orderings} <= set(page.of("th"))
    heads = page.of("th")
    assert heads.count("Watch") == heads.count("Score") == (10 if kind is Watching else 0)
