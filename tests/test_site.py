"""The pages as readers get them, on a phone and in the dark: links, captions, nothing cut off, contrast.

Quarto is not on a tester's machine. What is looked at are the notebooks as nbdev hands them to Quarto, turned
into HTML by nbconvert, with the site's own style sheet, in a headless Chromium where there is one.
"""

import os
import re
import shutil
import subprocess
import sys
from json import dumps, loads
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbdev.config import get_config

from correct_smooth._modidx import d

ROOT = Path(__file__).parents[1]
NBS = sorted((ROOT / "nbs").glob("*.ipynb"))
ENV = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
CONFIG = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
STYLES = (ROOT / "nbs" / "styles.css").read_text(encoding="utf-8")
WIDTH = 88


def cells(path, kind="code"):
    found = loads(path.read_text(encoding="utf-8"))["cells"]
    return [(o["id"], "".join(o["source"]), o) for o in found if o["cell_type"] == kind]


def option(source, name):
    found = re.search(rf'^#\|\s*{name}:\s*(?:"(.*)"|(.*))$', source, re.MULTILINE)
    return found and (found[1] or found[2])


def listed(offenders):
    return "\n" + "\n".join(offenders)


# rows of files as they come
WIDE_CODE = {("07e_sources", "c015"), ("07n_published", "l24")}


def test_code_is_as_wide_as_a_page():
    long = {
        (path.stem, name)
        for path in NBS
        for name, source, _ in cells(path)
        if any(len(line) > WIDTH and not line.startswith("#|") for line in source.splitlines())
    }
    assert long == WIDE_CODE


def test_every_picture_has_a_caption_and_says_what_it_shows():
    wanting = []
    for path in NBS:
        for name, source, cell in cells(path):
            pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
            if not pictures or re.search(r"^#\|\s*hide\s*$", source, re.MULTILINE):
                continue
            caption, alt = option(source, "fig-cap"), option(source, "fig-alt")
            if not caption or not alt or not 20 <= len(alt) <= 400 or alt == caption:
                wanting.append(f"{path.name} {name}: caption {caption!r}, alt {alt!r}")
    assert not wanting, listed(wanting)


def test_options_of_cells_are_yaml():
    for path in NBS:
        for name, source, _ in cells(path):
            lines = re.findall(r"^#\|\s*([\w-]+:.*)$", source, re.MULTILINE)
            keys = list(yaml.safe_load("\n".join(lines)) or {})
            assert len(keys) == len(lines), (path.name, name)  # none twice, none on a second line


def test_every_page_ends_with_what_was_learned():
    wanting = []
    for path in NBS:
        if path.stem in ("index", "notation", "api", "settings", "evidence"):
            continue  # these are looked things up in
        text = "\n".join(source for _, source, _ in cells(path, "markdown"))
        if "\n## Summary" not in text or "**Next:**" not in text.partition("\n## Summary")[2]:
            wanting.append(path.name)
    assert not wanting, listed(wanting)


def test_site_is_set_up():
    html, site, cfg = CONFIG["format"]["html"], CONFIG["website"], get_config(path=ROOT)
    assert set(html["theme"]) == {"light", "dark"} and site["page-navigation"]
    assert html["from"] == "markdown-smart"  # flags such as --data keep two hyphens
    assert CONFIG["format"]["commonmark"]["variant"] == "+tex_math_dollars"
    assert site["site-url"] == f"{cfg.doc_host}{cfg.doc_baseurl}" and site["repo-url"] == cfg.git_url
    for name in (site["favicon"], site["image"], html["css"]):
        assert (ROOT / "nbs" / name).is_file(), name
    for rule in ('mjx-container[display="true"]', ".math.display"):  # a long formula scrolls by itself
        assert re.search(re.escape(rule) + r"[^}]*overflow-x: auto", STYLES)


def processed(path):
    "A notebook from _proc; nbdev leaves seconds there, a number where nbformat wants text."
    page = loads(path.read_text(encoding="utf-8"))
    for cell in page["cells"]:
        cell["metadata"].pop("execution", None)
    return nbformat.reads(dumps(page), as_version=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The notebooks as nbdev hands them to Quarto, by name."
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs")  # the link to _quarto.yml becomes a file
    shutil.copytree(
        ROOT / "correct_smooth", folder / "correct_smooth", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0, force=True)"
    path = os.pathsep.join([str(ROOT / "tools"), ENV.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], cwd=folder, env={**ENV, "PYTHONPATH": path}, check=True)
    return {o.stem: processed(o) for o in (folder / "_proc").glob("*.ipynb")}


@pytest.fixture(scope="module")
def pages(made):
    "Those as HTML: what is not code."
    exporter = HTMLExporter(template_name="basic", exclude_input=True)  # code has no links, and takes long
    return {stem: exporter.from_notebook_node(notebook)[0] for stem, notebook in made.items()}


def test_every_notebook_becomes_a_page(pages):
    assert sorted(pages) == [o.stem for o in NBS]
    assert all(len(o) > 2_000 for o in pages.values()), {k: len(o) for k, o in pages.items()}


def test_pages_refer_to_what_exists(pages):
    cfg = get_config(path=ROOT)
    site = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    names = {re.sub(r"^\d+[a-z]?_", "", o) for o in pages}
    symbols = {k.rsplit(".", 1)[-1].lower() for mod in d["syms"].values() for k in mod}
    for stem, page in pages.items():
        own = {o["id"] for o in BeautifulSoup(page, "html.parser").find_all(id=True)}
        for link in re.findall(r'href="([^"]+)"', page):
            target, _, anchor = link.partition("#")
            if link.startswith(site):
                target = target[len(site) :]
                assert target.removesuffix(".html") in names, (stem, link)
                assert anchor.rsplit(".", 1)[-1] in symbols, (stem, link)
            elif link.startswith("#"):
                assert anchor in own, (stem, link)
            elif not link.startswith("http"):
                assert (ROOT / "nbs" / target).is_file(), (stem, link)


def test_code_that_teaches_is_on_the_page(made):
    shown = {
        stem: "\n".join(o.source for o in notebook.cells if o.cell_type == "code")
        for stem, notebook in made.items()
    }
    assert "out[item, user] += alpha[user] * R.data" in shown["05_correct_smooth"]
    assert "def item_graph(" in shown["02_graph"] and "def train(" in shown["04_train"]


def test_entries_are_readable(made):
    entries = [
        (stem, "".join(out["data"]["text/markdown"]))
        for stem, notebook in made.items()
        for cell in notebook.cells
        if re.search(r"^show_doc", cell.source, re.MULTILINE)
        for out in cell.outputs
        if "text/markdown" in out.get("data", {})
    ]
    exporting = {o.stem for o in NBS if any("#| default_exp" in source for _, source, _ in cells(o))}
    assert {stem for stem, _ in entries} == exporting
    for stem, text in entries:
        assert "__main__." not in text and "<factory>" not in text, (stem, text[:300])
        code = text.split("```")[1].splitlines() if "```" in text else []
        assert all(len(line) <= WIDTH for line in code), (stem, text[:300])


def test_html_is_sound(pages):
    for stem, page in pages.items():
        soup = BeautifulSoup(page, "html.parser")
        ids = [o["id"] for o in soup.find_all(id=True) if o.name[0] != "h"]  # Quarto numbers headings
        assert len(ids) == len(set(ids)), (stem, sorted(o for o in ids if ids.count(o) > 1)[:4])
        levels = [int(o.name[1]) for o in soup.find_all(re.compile("^h[1-6]$"))]
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), (stem, levels)
        assert all(o.get_text(strip=True) or o.find("img") for o in soup.find_all("a", href=True)), stem
        assert not soup.find_all("script"), stem


BROWSER = next(
    (found for o in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(o))), None
)

# Text whose colour differs too little from what is behind it (WCAG 2, level AA)
CONTRAST = """
const light = c => { const v = c.map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
                     return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
const parts = s => s.match(/[\\d.]+/g).map(Number);
const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
                      if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
const poor = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n; (n = walk.nextNode()); ) {
  const e = n.parentElement;
  if (!n.data.trim() || !e.getClientRects().length) continue;
  const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.add(ratio.toFixed(1) + " " + n.data.trim().slice(0, 40));
}
return [...poor];
"""
WIDE = """
return [...document.querySelectorAll("main *")].filter(e => {
  if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p; p = p.parentElement) {
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX)) return false;
  }
  return true;
}).map(e => e.tagName + " " + e.textContent.trim().slice(0, 60));
"""
SHEET = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font-family: sans-serif; margin: 0; padding: 0 12px; background: {paper}; color: {ink} }}
a {{ color: {link} }} {styles}</style></head><body class="{theme}"><main>{body}</main></body></html>"""
# the colours of Quarto's cosmo and darkly
THEMES = {
    "quarto-light": {"paper": "#ffffff", "ink": "#373a3c", "link": "#2761e3"},
    "quarto-dark": {"paper": "#222222", "ink": "#ffffff", "link": "#00bc8c"},
}


@pytest.fixture(scope="module")
def browser():
    if not BROWSER:
        pytest.skip("no Chromium is installed here: how pages look on a phone is not checked")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = shutil.which("chromedriver")
    try:
        chrome = webdriver.Chrome(options, webdriver.ChromeService(driver) if driver else None)
    except Exception as error:  # a browser without its driver
        pytest.skip(f"Chromium does not start here: {str(error).splitlines()[0]}")
    yield chrome
    chrome.quit()


@pytest.mark.parametrize("theme", THEMES)
def test_pages_fit_a_phone_and_can_be_read(pages, browser, tmp_path, theme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    faults = []
    for stem, body in sorted(pages.items()):
        file = tmp_path / f"{stem}.html"
        sheet = SHEET.format(title=stem, body=body, styles=STYLES, theme=theme, **THEMES[theme])
        file.write_text(sheet, encoding="utf-8")
        browser.get(file.as_uri())
        assert browser.execute_script("return innerWidth") == 400
        faults += [f"{stem}: too wide: {o}" for o in browser.execute_script(WIDE)[:3]]
        faults += [f"{stem}: contrast {o}" for o in browser.execute_script(CONTRAST)[:3]]
    assert not faults, listed(faults)
