"""Run the studies, store their pages, and note in nbs/evidence.json what they were run on.

    CORRECT_SMOOTH_DATA=the-movies-dataset python tools/evidence.py            # all studies: some hours
    CORRECT_SMOOTH_DATA=the-movies-dataset python tools/evidence.py lists      # one of them
    python tools/evidence.py --check                                           # which of them are out of date

A study is a page under Evidence. Its tables and pictures are the page's stored outputs (with --out FOLDER
also files of their own), its key figures what it calls `evidence`. A study is out of date when its page, or a
module of the method that the page uses, would compute something else: comments, types, texts for people,
assertions and what draws do not count.
"""

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from base64 import b64decode
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import correct_smooth

ROOT = Path(__file__).parents[1]
NBS, LIB = ROOT / "nbs", ROOT / "correct_smooth"
MANIFEST = NBS / "evidence.json"

# name: (page, flag of its cells, data it reads, seeds)
CUT, FIVE = "the-movies-dataset", [0, 1, 2, 3, 4]
STUDIES = {
    "case-study": ("08_movies_dataset", "movies", [CUT], FIVE),
    "newcomers": ("08a_newcomers_measured", "movies", [CUT], FIVE),
    "books": ("08b_books", "", ["made up"], [0]),
    "benchmarks": ("09_benchmarks", "bench", [CUT, "demo"], FIVE),
    "lists": ("09a_lists", "bench", [CUT, "demo", "synthetic"], FIVE),
    "latency": ("09b_latency", "bench", ["demo"], [0]),
    "speed": ("09c_speed", "bench", [CUT], [0]),
    "readme": ("index", "slow", ["demo"], [0]),  # the last: it quotes the others
}
# Modules that say, draw, read and write, and compute no result of a study.
AROUND = set(
    """
    checks arrays ids parsing files tables json_lines table_files tensors jobs layouts published fetch titles
    formats item_tensors model_folder saving plots report shell exports rating_files commands messages service
    serve ranks partition distributed shared_run
    """.split()
)
PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "torch", "numba", "sparse_dot_topn")


class Essence(ast.NodeTransformer):
    "Leaves of a program what decides its results: no texts for people, no types, nothing that draws."

    def _body(self, node):
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:]
        return node

    visit_Module = visit_ClassDef = _body

    def visit_FunctionDef(self, node):
        if node.name.startswith("plot_"):
            return None
        node.returns = None
        return self._body(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Assign(self, node):
        "a, b = x, y becomes a = x and b = y, unless y reads a."
        self.generic_visit(node)
        (target, *more), value = node.targets, node.value
        pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if more or not pair or len(target.elts) != len(value.elts):
            return node
        for at, one in enumerate(target.elts):
            later = (o for other in value.elts[at + 1 :] for o in ast.walk(other))
            if ast.unparse(one) in {ast.unparse(o) for o in later if isinstance(o, ast.Name | ast.Attribute)}:
                return node
        return [ast.Assign([t], v) for t, v in zip(target.elts, value.elts, strict=True)]

    def visit_Raise(self, node):
        return ast.Raise()

    def visit_Assert(self, node):
        return None

    def visit_Expr(self, node):
        "What a page asserts about its results is no part of them."
        call = node.value.func if isinstance(node.value, ast.Call) else None
        asserts = isinstance(call, ast.Name) and call.id.startswith("test_")
        return None if asserts else self.generic_visit(node)

    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) and len(node.value) > 40 else node


def flat(node):
    "A tree as nested tuples, alike under every version of Python."
    if isinstance(node, ast.AST):
        parts = ((k, flat(v)) for k, v in ast.iter_fields(node) if k not in ("ctx", "kind", "type_params"))
        return (type(node).__name__, *((k, v) for k, v in parts if v not in (None, ())))
    return tuple(flat(o) for o in node) if isinstance(node, list) else node


def essence(source):
    "A short hash of what a piece of Python computes."
    tree = flat(Essence().visit(ast.parse(source)))
    return hashlib.sha256(repr(tree).encode()).hexdigest()[:12]


def code_of(page):
    "All code of a page, without what its cells are told to do."
    cells = json.loads((NBS / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(o["source"]) for o in cells if o["cell_type"] == "code"]


HOMES = {name: module for module, names in correct_smooth._HOMES.items() for name in names}


def imported(source):
    "Modules of the package that a piece of Python imports from, by name."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            name = f"{LIB.name}.{node.module or ''}" if node.level else node.module
            head, _, tail = name.partition(".")
            if head == LIB.name:
                found |= {tail} if tail else {HOMES[o.name] for o in node.names if o.name in HOMES}
    return found


@cache
def module(name):
    "What a module of the package computes, and which others it imports from; None if there is none."
    path = LIB / f"{name}.py"
    text = path.read_text(encoding="utf-8") if path.exists() else None
    return text and (essence(text), imported(text))


def modules_of(page):
    "Modules of the method that a page uses, however indirectly."
    todo = set().union(*(imported(o) for o in code_of(page)))
    done = set()
    while todo:
        name = todo.pop()
        if name not in done and module(name):
            done.add(name)
            todo |= module(name)[1]
    return sorted(done - AROUND)


def fingerprint(page):
    "What a study's results depend on in the code: the page and each module, by hash."
    return {"page": essence("\n".join(code_of(page))), **{o: module(o)[0] for o in modules_of(page)}}


def outdated(manifest):
    "Studies whose code is another now, with what has changed; a study never run is new."
    stale = {}
    for name, (page, *_) in STUDIES.items():
        now, then = fingerprint(page), manifest.get(name, {}).get("code", {})
        changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        if changed:
            stale[name] = changed if then else ["never run"]
    return stale


def advice(stale):
    "How to bring studies up to date, in a line each."
    return "\n".join(
        f"{name}: {', '.join(changed)}; run python tools/evidence.py {name}"
        for name, changed in stale.items()
    )


def data_of(source):
    "Size and hash of a data set."
    import pandas as pd

    from correct_smooth.sources import load_data

    data = load_data(os.environ["CORRECT_SMOOTH_DATA"] if source == CUT else source)
    rows = pd.util.hash_pandas_object(data.ratings[["user_id", "item_id", "rating"]], index=False)
    titles = "\n".join(data.movies["title"].astype(str)) + "\n".join(data.movies.index.astype(str))
    sha = hashlib.sha256(rows.to_numpy().tobytes() + titles.encode()).hexdigest()[:12]
    return {k: int(v) for k, v in data.counts().items() if k in ("users", "items", "ratings")} | {"sha": sha}


def machine():
    "What the numbers were computed on."
    cpu, memory = platform.processor() or platform.machine(), None
    if Path("/proc/cpuinfo").exists():
        cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cpu = cpu.group(1) if cpu else platform.machine()
        memory = round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20)
    return {
        "processor": cpu, "cores": os.cpu_count(), "memory_gib": memory,
        "python": platform.python_version(), "packages": {o: version(o) for o in PACKAGES},
    }  # fmt: skip


def git(*args):
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def clean(page):
    "Whether the package and a page's code are those of the last commit."
    text = git("show", f"HEAD:nbs/{page}.ipynb")
    kept = ["".join(o["source"]) for o in json.loads(text)["cells"] if o["cell_type"] == "code"]
    return kept == code_of(page) and not git("status", "--porcelain", "--", LIB.name)


def write_out(page, folder):
    "Tables of a page as CSV, its pictures as PNG."
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    for cell in json.loads((NBS / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]:
        for n, out in enumerate(cell.get("outputs", [])):
            data, name = out.get("data", {}), f"{cell['id']}-{n}"
            if "image/png" in data:
                (folder / f"{name}.png").write_bytes(b64decode("".join(data["image/png"])))
            elif "<table" in "".join(data.get("text/html", "")):
                for k, table in enumerate(pd.read_html(StringIO("".join(data["text/html"])))):
                    table.to_csv(folder / f"{name}-{k}.csv", index=False)


def figures(values):
    "Key figures in four digits; what could not be computed is none."
    return {k: float(f"{float(v):.4g}") for k, v in values.items() if math.isfinite(v)}


def study(name, out=None):
    "Run a study, store its page, return its entry."
    from run_nbs import run

    page, flag, sources, seeds = STUDIES[name]
    if not clean(page):
        sys.exit(f"{page} or the package differs from the last commit: commit first, so that it can be named")
    if CUT in sources and not os.environ.get("CORRECT_SMOOTH_DATA"):
        sys.exit(f"{name} needs The Movies Dataset: set CORRECT_SMOOTH_DATA to its folder")
    entry = {
        "page": page, "version": version("correct_smooth"), "commit": git("rev-parse", "HEAD"),
        "code": fingerprint(page), "data": {o: data_of(o) for o in sources if o != "made up"},
        "seeds": seeds, "machine": machine(),
    }  # fmt: skip
    start = time.time()
    found = run(NBS / f"{page}.ipynb", {"slow", "movies", "bench"} - {flag})
    entry |= {"seconds": round(time.time() - start), "figures": figures(found.get("evidence", {}))}
    if out:
        write_out(page, out / name)
    return entry


def load():
    return json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--check", action="store_true", help="only say which studies are out of date")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures as files of their own")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(STUDIES):
        parser.error(f"there is no study {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    if args.check:
        stale = outdated(load())
        sys.exit(advice(stale) if stale else 0)
    os.environ |= {"IN_TEST": "1", "TQDM_DISABLE": "1"}
    if source := os.environ.get("CORRECT_SMOOTH_DATA"):
        os.environ["CORRECT_SMOOTH_DATA"] = os.path.abspath(source)
    for one in args.studies or STUDIES:
        done = study(one, args.out)
        manifest = load() | {one: done}
        text = json.dumps({k: manifest[k] for k in STUDIES if k in manifest}, indent=1, ensure_ascii=False)
        MANIFEST.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
        MANIFEST.with_suffix(".part").replace(MANIFEST)
        print(f"{one}: {done['seconds'] / 60:.0f} minutes")
