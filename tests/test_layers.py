"""Who may import whom, how long a piece may be, which words stay out of which pages, what an import costs.

Every test lists all offenders at once.
"""

import ast
import re
import subprocess
import sys
from json import loads
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIB = ROOT / "correct_smooth"
PAGES = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(o for o in LIB.glob("*.py") if o.stem not in ("__init__", "_modidx"))

# A module imports only modules before it. The table in CONTRIBUTING.md is this list, explained.
LAYERS = """
    checks arrays ids parsing files tables json_lines table_files tensors jobs
    roles vectors data synthetic layouts published sources fetch dataset features audience
    products graph edges
    embeddings model encoders train checkpoint
    correct_smooth best diffusion any_model watch explain topn one_user own_metrics evaluate lists plots
    newcomers tuning titles answers formats item_tensors model_folder saving ready visitors
    tracking recommender validation report results
    shell experiment exports rating_files commands messages
    service serve
    ranks partition distributed shared_run
""".split()
COMMANDS = re.findall(r"^ *(cs_\w+)=", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.MULTILINE)
RANKS = {"ranks", "partition", "distributed", "shared_run"}
# Inside a function these may reach up: they start the job, and only they learn that it has several processes.
STARTERS = {
    "experiment": "cs_run, when torchrun has started it, hands over to the rank layer",
    "commands": "cs_partition is a command that writes one folder for all ranks",
}
HEAVY = {"torch", "pandas", "numpy", "scipy", "sklearn", "numba", "pyarrow", "matplotlib"}
LONGEST_MODULE, LONGER_MODULES, LONGEST_CELL = 540, 1, 80  # of 88 columns

# Words that speak of several processes. `rank` is a column of a list and a term of statistics as well: which
# is meant shows in the words beside it.
BESIDE = "all|another|any|between|each|every|fewer|many|more|on|other|own|several|this|two|whose"
COUNTED = "a|each|every|many|of|one|other|several|two"
RANK_WORDS = re.compile(
    rf"""
    torchrun | all_?reduce | process[ _]?groups? | world[ _]?size | torch\.distributed | \b(gloo|nccl)\b
    | \bcorrect_smooth\.(ranks|partition|distributed|shared_run)\b
    | \b\d\d\w?_(ranks|partition|distributed|shared_run)\b
    | (?<![\w.])(rank|all_gather|gather_table|count_before|broadcast|broadcast_table|barrier|joined)\(
    | \b({BESIDE})\ \*?ranks?\b | \branks?\ ?(\d|\{{) | \branks:\ int | \brank['’]s\b | \branks['’]\ \w
    | \b({COUNTED})\ process(es)?\b
    """,
    re.VERBOSE | re.IGNORECASE,
)


def imports(path):
    "Modules of the package that a module imports: (name, line, whether inside a function)."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(node) for top in ast.walk(tree) if isinstance(top, functions) for node in ast.walk(top)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith(LIB.name)):
            home = (node.module or "").removeprefix(LIB.name).lstrip(".") if node.level == 0 else node.module
            names = [home] if home else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix(f"{LIB.name}.") for alias in node.names]
            names = [name for alias, name in zip(node.names, names, strict=True) if alias.name != name]
        yield from ((name.split(".")[0], node.lineno, id(node) in inside) for name in names)


def cells(path, kinds=("code", "markdown")):
    "Cells of a page, as (id, source)."
    for cell in loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] in kinds:
            yield cell["id"], "".join(cell["source"])


def listed(offenders):
    "One offender a line, for the message of a failed test."
    return "\n" + "\n".join(offenders)


def test_every_module_has_a_layer():
    names = {o.stem for o in MODULES}
    assert names == set(LAYERS), f"not in LAYERS: {names - set(LAYERS)}; no module: {set(LAYERS) - names}"
    assert len(LAYERS) == len(set(LAYERS))


def test_contributing_shows_the_layers():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| layer |")[2].partition("\n\n")[0]
    rows = [row.split("|")[2] for row in table.splitlines() if row.count("|") >= 4]
    assert re.findall(r"`(\w+)`", " ".join(rows)) == LAYERS


def test_imports_go_down():
    wrong = []
    for path in (o for o in MODULES if o.stem in LAYERS):
        for name, line, inside in imports(path):
            if name in LAYERS and LAYERS.index(name) < LAYERS.index(path.stem):
                continue
            if not (inside and name in RANKS and path.stem in STARTERS):
                wrong.append(f"{path.name}:{line} imports {name}")
    assert not wrong, listed(wrong)


def test_ranks_are_on_top():
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in MODULES
        if path.stem not in RANKS
        for name, line, inside in imports(path)
        if name in RANKS and not (inside and path.stem in STARTERS)
    ]
    assert not wrong, listed(wrong)


def test_modules_are_short():
    lengths = {o.name: len(o.read_text(encoding="utf-8").splitlines()) for o in MODULES}
    longer = [f"{name}: {n} lines" for name, n in lengths.items() if n > LONGEST_MODULE]
    assert len(longer) <= LONGER_MODULES, listed(longer)


def is_long(source):
    "Whether an exported cell holds more than one should read at once; a class is as long as its methods."
    if not re.search(r"^#\| *exports?\b", source, re.MULTILINE):
        return False
    tree = ast.parse(re.sub(r"^#\|.*$", "", source, flags=re.MULTILINE))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    spans = {name: 0 for name in ("import", "class", "rest")}
    for node in tree.body:
        kind = (
            "import"
            if isinstance(node, ast.Import | ast.ImportFrom)
            else "class"
            if node in classes
            else "rest"
        )
        spans[kind] += node.end_lineno - node.lineno + 1
    methods = [m for one in classes for m in one.body if isinstance(m, ast.FunctionDef)]
    lengths = [m.end_lineno - m.lineno + 1 for m in methods]
    return (
        len(classes) > 1
        and sum(spans.values()) > LONGEST_CELL
        or max(spans["rest"], *lengths, 0) > LONGEST_CELL
    )


def test_exported_cells_are_short():
    longer = [
        f"{path.name} {name}: {len(source.splitlines())} lines"
        for path in PAGES
        for name, source in cells(path, ("code",))
        if is_long(source)
    ]
    assert not longer, listed(longer)


def test_the_first_pages_know_no_ranks():
    found = [
        f"{path.name} {name}: {line.strip()[:100]}"
        for path in PAGES
        if re.match("0[0-7]", path.name)
        for name, source in cells(path)
        for line in source.splitlines()
        if RANK_WORDS.search(line)
    ]
    assert not found, listed(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("if rank() == 0:", True),
        ("all of several ranks together", True),
        ("a tenth of the users, as in many processes", True),
        ("from correct_smooth.ranks import world_size", True),
        ("started by `torchrun`", True),
        ("the order of this rank's users", True),
        ('table.groupby("u")["z"].rank() * table["y"]', False),
        ('recommender.recommend([busy], n=5)[["rank", "title"]]', False),
        ("the sum of ranks of what is liked; it ranks movies, a ranking, ranked", False),
        ("rank = (rankdata(popularity) - 0.5) / len(popularity); matrix_rank(A)", False),
        ("the model processes each movie once; np.broadcast_to(a, b); len(a.size())", False),
    ],
)
def test_what_speaks_of_ranks(text, found):
    assert bool(RANK_WORDS.search(text)) == found


def loaded(code):
    "Modules that a new Python has loaded after running code."
    code += "\nimport sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_loads_nothing_heavy():
    found = HEAVY & loaded("import correct_smooth")
    assert not found


@pytest.mark.parametrize(
    ("names", "torch"),
    [
        ("data sources dataset features graph edges", False),
        ("embeddings correct_smooth diffusion watch topn one_user answers model_folder commands", False),
        (
            "model train correct_smooth diffusion explain topn evaluate plots newcomers tuning recommender",
            True,
        ),
    ],
)
def test_core_modules_load_no_ranks_and_no_pyplot(names, torch):
    names = [f"correct_smooth.{name}" for name in names.split()]
    found = loaded(f"import {', '.join(names)}")
    # torch loads most of torch.distributed by itself; of this a core module may add nothing
    more = {"matplotlib.pyplot"} & found | {f"correct_smooth.{name}" for name in RANKS} & found
    if torch:
        more |= {name for name in found - loaded("import torch") if name.startswith("torch.distributed")}
    else:
        more |= {"torch"} & found
    assert not more, listed(sorted(more))


@pytest.mark.parametrize("flag, code", [("--help", 0), ("--version", 0), ("--nothing", 2)])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_takes_is_said_at_once(name, flag, code):
    "Its flags, and that one of them is wrong, with nothing heavy loaded."
    found = loaded(f"""
import sys
from correct_smooth.shell import {name}
sys.argv = ["{name}", "{flag}"]
try:
    {name}()
except SystemExit as end:
    assert end.code == {code}, end.code""")
    assert not HEAVY & found


def messages(path):
    "The texts of all errors a module raises, with their lines."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("InputError", "refuse"):
            texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            yield node.lineno, " ".join(text for text in texts if isinstance(text, str))


def test_errors_do_not_speak_of_films():
    "Items may be books; what functions and classes are called is another matter."
    names = re.compile(r"movie_data\(movies, ratings\)|movies\.(?:csv|parquet|dat)|movies and ratings")
    wrong = [
        f"{path.name}:{line} {text[:80]}"
        for path in MODULES
        for line, text in messages(path)
        if re.search(r"\b(?:movie|film)s?\b", names.sub("", text), re.IGNORECASE)
    ]
    assert not wrong, listed(wrong)
