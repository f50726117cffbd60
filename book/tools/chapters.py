"""The chapters as files: where they are, their cells, outputs and parameters.

A chapter is two notebooks: the lesson, `NN_name`, and the evidence for its claims,
`NN_name_evidence`. Both are "chapters" to the tools. Each is a text in MyST, from which the site is
made, and a stored notebook of plain Markdown (see `plain`) with the outputs of its code.
"""

import difflib
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from latentspace import runs

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
EVIDENCE = "_evidence"


def names() -> list[str]:
    """Return the notebooks' names, such as "02_deepkde", in the book's order."""
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


def stored(name: str) -> NotebookNode | None:
    """Return the chapter's stored notebook, if there is one."""
    path = NOTEBOOKS / f"{name}.ipynb"
    return nbformat.read(path, as_version=4) if path.exists() else None


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_setup(source: str) -> bool:
    """Tell whether a cell is the set-up cell, in any version: it does something in Colab only."""
    return source.startswith('import sys\n\nif "google.colab" in sys.modules:')


def put_outputs(notebook: NotebookNode, executed: NotebookNode) -> bool:
    """Copy the outputs of `executed`, if its code is that of `notebook` and ran to the end."""
    new, old = code_cells(notebook), code_cells(executed)
    sources = [[c.source for c in cells if not is_setup(c.source)] for cells in (new, old)]
    if sources[0] != sources[1] or len(new) != len(old):
        return False
    if [cell.execution_count for cell in old] != list(range(1, len(old) + 1)):
        return False
    for to, come in zip(new, old, strict=True):
        to.outputs, to.execution_count = come.outputs, come.execution_count
    return True


def executed(name: str) -> NotebookNode:
    """Return the chapter's text with the outputs of its stored notebook.

    Raises ValueError where there is none, or one with other code.
    """
    text, notebook = read(name), stored(name)
    if notebook is None or not put_outputs(text, notebook):
        raise ValueError(
            f"The code of {name} is not what was executed: make notebooks CHAPTER={name}"
        )
    return text


def to_run(name: str) -> NotebookNode:
    """Return the chapter without outputs, its prose in plain Markdown where that can be had.

    That is the stored notebook; the text itself, where it has other code.
    """
    text, notebook = read(name), stored(name)
    if notebook is None or not put_outputs(text, notebook):
        return read(name)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
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


def complaints(given: dict[str, object], defaults: dict[str, object]) -> list[str]:
    """Say what is wrong with `given` as values for the parameters whose defaults are `defaults`."""
    found = []
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(defaults)}"
            found.append(f"unknown parameter {name!r}; {hint}")
        elif not _fits(value, defaults[name]):
            hint = "; YAML reads 1e-3 as text, so write 1.0e-3" if isinstance(value, str) else ""
            found.append(f"{name} = {value!r}, but its default is {defaults[name]!r}{hint}")
    return found


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
