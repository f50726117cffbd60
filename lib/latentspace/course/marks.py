"""What students get, and what becomes of it: notebooks without solutions, and their self-checks.

A self-check is a code cell below an exercise that holds an `assert` and is no solution. It is
found in a student's notebook by its code, so a changed check does not count, and it has passed if
the student ran it without an error. Outputs are read and not made: who wants proof runs the copy.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from latentspace.course import chapters

__all__ = ["Check", "Mark", "checks", "mark", "marks", "student", "table"]

ANSWER = "# Your answer\n"
PASSED, FAILED, NOT_RUN, CHANGED = "passed", "failed", "not run", "changed or missing"


class Check(NamedTuple):
    """A self-check of a chapter: its exercise, as "2.3 From which dimension on?", and its code."""

    exercise: str
    code: str


class Mark(NamedTuple):
    """What became of a self-check in one notebook."""

    notebook: str
    chapter: str
    exercise: str
    verdict: str
    """"passed", "failed", "not run", "changed or missing"; for a whole notebook, what ails it."""
    reason: str
    """Why it failed, else ""."""


def student(name: str, folder: Path) -> Path:
    """Write a chapter without solutions and outputs; returns the notebook's path.

    In the place of a solution's code stands an empty cell for an answer.
    """
    notebook = chapters.to_run(name)
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        if "solution" not in cell.metadata.get("tags", []):
            cells.append(cell)
        elif cell.cell_type == "code" and not (cells and cells[-1].source == ANSWER):
            cells.append(nbformat.v4.new_code_cell(ANSWER, id=cell.id))
    notebook.cells = cells
    notebook.metadata["latentspace"] = {"chapter": name}
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def checks(name: str) -> list[Check]:
    """Return the self-checks of a chapter, in order."""
    found, exercise, number = [], "", 0
    for cell in chapters.read(name).cells:
        for title in re.findall(r"^:::+\{exercise\} *(.*)$", cell.source, flags=re.M):
            number += 1
            exercise = f"{int(name[:2])}.{number} {title}".strip()
        is_check = cell.cell_type == "code" and re.search(r"\bassert", cell.source)
        if exercise and is_check and "solution" not in cell.metadata.get("tags", []):
            found.append(Check(exercise, cell.source))
    return found


def mark(path: Path, label: str = "") -> list[Mark]:
    """Return what became of each self-check in a student's notebook; `label` names it."""
    label = label or path.name
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError):
        return [Mark(label, "", "", "not a notebook", "")]
    name = _chapter(notebook, path)
    if name is None:
        return [Mark(label, "", "", "no chapter of the book", "")]
    return [Mark(label, name, c.exercise, *_verdict(c, notebook)) for c in checks(name)]


def marks(folder: Path) -> list[Mark]:
    """Return the marks of all notebooks in a folder and below it."""
    paths = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return [each for path in paths for each in mark(path, str(path.relative_to(folder)))]


def _chapter(notebook: NotebookNode, path: Path) -> str | None:
    """Return the chapter that the notebook says it is, or whose name its file has."""
    said = notebook.metadata.get("latentspace", {}).get("chapter")
    names = sorted(chapters.names(), key=len, reverse=True)
    return next((name for name in names if name == said or name in path.name), None)


def _verdict(check: Check, notebook: NotebookNode) -> tuple[str, str]:
    same = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.split() == check.code.split()
    ]
    if not same:
        return CHANGED, ""
    cell = same[-1]
    for output in cell.outputs:
        if output.output_type == "error":
            return FAILED, f"{output.ename}: {output.evalue}".splitlines()[0].removesuffix(": ")
    return (PASSED if cell.execution_count else NOT_RUN), ""


def table(all_marks: Iterable[Mark]) -> str:
    """Return marks as a table for a terminal, and how many checks of each notebook passed."""
    rows = [("notebook", "exercise", "verdict"), *(
        (m.notebook, m.exercise, f"{m.verdict}: {m.reason}" if m.reason else m.verdict)
        for m in all_marks
    )]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
