"""The chapters as files: where they are, their cells, and their parameters.

A chapter is two notebooks: the lesson, `NN_name`, and the evidence for its claims,
`NN_name_evidence`. Both are "chapters" to the tools.
"""

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from latentspace import runs

__all__ = [
    "EVIDENCE", "NOTEBOOKS", "ROOT", "TEXTS", "complaints", "is_evidence", "lessons", "meanings",
    "minutes", "names", "parameters", "read", "tagged", "title", "type_name",
]  # fmt: skip

# The checkout that this process works in, else the one that this file belongs to.
ROOT = runs.project_root() or Path(__file__).resolve().parents[3]
TEXTS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
EVIDENCE = "_evidence"


def names() -> list[str]:
    """Return the notebooks' names, such as "02_deepkde", in the book's order.

    Raises SystemExit if there is no checkout of the book.
    """
    if not TEXTS.is_dir():
        raise SystemExit(
            "The book is not here: this needs its checkout, not only the library. Get it by "
            "`git clone`, go there, and say `make run`, or `pip install -e '.[book]'`."
        )
    return sorted(path.stem for path in TEXTS.glob("[0-9][0-9]_*.md"))


def is_evidence(name: str) -> bool:
    """Tell whether this is the name of an evidence notebook."""
    return name.endswith(EVIDENCE)


def lessons() -> list[str]:
    """Return the names of the lessons, in order."""
    return [name for name in names() if not is_evidence(name)]


def read(name: str) -> NotebookNode:
    """Return the chapter's text as a notebook without outputs, the same one at each call.

    Raises SystemExit if there is no such chapter.
    """
    path = TEXTS / f"{name}.md"
    if name not in names():  # nor ../intro, which is a text of another kind
        raise SystemExit(f"There is no chapter {name!r}. The chapters: {', '.join(names())}")
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"  # jupytext draws new ones at random
    return notebook


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    """Return the cells that carry `tag`."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def parameters(notebook: NotebookNode) -> dict[str, object]:
    """Return the names and values of the `parameters` cell.

    Raises ValueError unless there is exactly one such cell and it holds plain assignments only.
    """
    cells = tagged(notebook, "parameters")
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells are tagged `parameters`; a chapter has exactly one")
    return runs.assignments(cells[0].source)


def meanings(source: str) -> dict[str, str]:
    """Return the comment behind each assignment of a cell of parameters; "" where there is none."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
    }
    return {
        statement.targets[0].id: comments.get(statement.end_lineno or 0, "")
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def title(notebook: NotebookNode) -> str:
    """Return the heading of a chapter's first page."""
    heading = re.search(r"^# (.*)$", notebook.cells[0].source, flags=re.M)
    return heading[1] if heading else ""


def minutes(name: str) -> float | None:
    """Return the minutes of the stored run, as it printed them; None where it did not."""
    with suppress(OSError, nbformat.reader.NotJSONError):
        stored = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in stored.cells if cell.cell_type == "code"]
        text = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
        if said := re.findall(r"([\d.]+) (?:CPU )?minutes\b", text):
            return float(said[-1])
    return None


def type_name(value: object) -> str:
    """Say what kind of value a parameter takes, by its default."""
    if value is None:
        return "any"
    if isinstance(value, list | tuple):
        return f"list of {type_name(value[0])}" if value else "list"
    return type(value).__name__


def complaints(given: Mapping[str, object], defaults: Mapping[str, object]) -> list[str]:
    """Say what is wrong with `given` as values for the parameters whose defaults are `defaults`."""
    found = []
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(defaults)}"
            found.append(f"unknown parameter {name!r}; {hint}")
        elif not _fits(value, defaults[name]):
            hint = "; YAML reads 1e-3 as text, so write 1.0e-3" if _is_number(value) else ""
            found.append(f"{name} = {value!r}, but its default is {defaults[name]!r}{hint}")
    return found


def _is_number(value: object) -> bool:
    """Tell whether `value` is a text that Python reads as a number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _fits(value: object, default: object) -> bool:
    """Tell whether `value` has the type of `default`; an int may stand for a float."""
    if default is None:
        return True
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and all(
            _fits(item, default[0]) for item in value if default
        )
    if isinstance(default, dict):
        return isinstance(value, dict)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
