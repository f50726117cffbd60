"""The chapters as files: where they are, their cells, and their parameters.

A chapter is two notebooks: the lesson, `NN_name`, and the evidence for its claims,
`NN_name_evidence`. Both are "chapters" to the tools.
"""

import difflib
from pathlib import Path

import jupytext
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
