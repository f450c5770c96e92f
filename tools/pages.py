"""What the site needs beside what nbdev does; nbdev calls `Entries` (doc_procs in pyproject.toml).

nbdev writes a signature with every type in full and every setting of a default. Here it is the one in the
source, comments and all; where the source stands below it anyway, the entry is the name and what it does.
"""

import ast
import inspect
import re
from importlib import import_module
from operator import attrgetter
from textwrap import dedent

from nbdev.process import Processor

ENTRY = re.compile(
    r"^---\n\n(\[source\]\(\S+?/correct_smooth/(\w+)\.py\S*?\)\S*.*?\n\n)?(#+) (\S+)\n", re.DOTALL
)


def plain(text):
    "A docstring as Markdown: one paragraph where it was one, nothing emphasised by accident."
    paragraphs = (" ".join(o.split()) for o in text.split("\n\n"))
    outside = re.compile(r"(`[^`]*`)")
    return "\n\n".join(
        "".join(o if o.startswith("`") else re.sub(r"([*_$<])", r"\\\1", o) for o in outside.split(paragraph))
        for paragraph in paragraphs
    )


def header(thing):
    "The lines of a definition before its body; of a class its fields, or how one is made."
    lines = dedent(inspect.getsource(inspect.unwrap(thing))).splitlines()
    node = ast.parse("\n".join(lines)).body[0]
    body = node.body
    if ast.get_docstring(node):
        body = body[1:]
    start = node.lineno - 1
    if isinstance(node, ast.ClassDef):
        first = next((o for o in body if isinstance(o, ast.FunctionDef)), None)
        top = lines[start : node.body[0].lineno - 1] or [lines[start]]
        if first is not None and first.name == "__init__":
            return [*top, *lines[first.lineno - 1 : first.body[0].lineno - 1]]
        fields = [o for o in body if isinstance(o, ast.AnnAssign)]
        if not fields:
            return top
        begin, end = node.body[0].end_lineno, fields[-1].end_lineno
        return [*top, *(o for o in lines[begin:end] if o.strip())]
    return lines[start : max(node.body[0].lineno - 1, node.lineno)]


def entry(text, shown):
    "An entry as it should be, of one as nbdev wrote it; `shown` are names whose source stands on the page."
    found = ENTRY.match(text)
    if not found or not found[2]:
        return text
    thing = attrgetter(found[4])(import_module(f"correct_smooth.{found[2]}"))
    thing = thing.fget if isinstance(thing, property) else thing
    parts = [text[: found.end()].rstrip()]
    if found[4] not in shown:
        parts.append("\n".join(["```python", *header(thing), "```"]))
    if thing.__doc__:
        parts.append(plain(inspect.getdoc(thing)))
    return "\n\n".join(parts) + "\n"


def open_names(cells):
    "Names whose source stands open on the page."
    shown = set()
    for cell in cells:
        if "exports" in getattr(cell, "directives_", {}) and "code-fold: true" not in cell.source:
            kinds = ast.FunctionDef | ast.ClassDef
            shown |= {o.name for o in ast.parse(cell.source).body if isinstance(o, kinds)}
    return shown


def own_ids(html, seen):
    "A styled table whose ids no other table of the page has; `seen` counts them."
    found = re.search(r'<table id="(T_\w+)"', html)
    if not found:
        return html
    name = found[1]
    seen[name] = seen.get(name, 0) + 1
    return html if seen[name] == 1 else re.sub(rf"\b{name}(?=_|\b)", f"{name}x{seen[name]}", html)


class Entries(Processor):
    "Writes every entry of a page anew, and gives each styled table ids of its own."

    def end(self):
        cells = [o for o in self.nb.cells if getattr(o, "source", None) is not None]
        shown, seen = open_names(cells), {}
        for cell in cells:
            for out in cell.get("outputs", []):
                data = out.get("data", {})
                if "text/markdown" in data and re.search(r"^show_doc", cell.source, re.MULTILINE):
                    data["text/markdown"] = entry("".join(data["text/markdown"]), shown)
                if "text/html" in data:
                    data["text/html"] = own_ids("".join(data["text/html"]), seen)
