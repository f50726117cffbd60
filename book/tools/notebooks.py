"""Bring the stored notebooks up to date with the chapters' texts: notebooks.py [CHAPTER ...].

A chapter is executed when its code differs from the stored notebook's, or was not run to the end.
Where only the prose differs, the stored outputs are kept. To run a chapter again all the same
(the library changed, say), delete its notebook first.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

import chapters


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keep_outputs(fresh: NotebookNode, stored: NotebookNode) -> bool:
    """Copy the outputs of `stored` into `fresh` if its code is the same and ran to the end."""
    new, old = code_cells(fresh), code_cells(stored)
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    if [cell.execution_count for cell in old] != list(range(1, len(old) + 1)):
        return False
    for to, come in zip(new, old, strict=True):
        to.outputs, to.execution_count = come.outputs, come.execution_count
    return True


def execute(notebook: NotebookNode, name: str) -> None:
    """Run the notebook in place, in the notebooks' folder, with one bar for its code cells."""
    with tqdm(total=len(code_cells(notebook)), desc=name, unit="cell") as bar:
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(chapters.NOTEBOOKS)}},
            on_cell_executed=lambda **_: bar.update(),
        ).execute()
    notebook.metadata.language_info = {"name": "python"}  # not this machine's Python version


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace the file at once, so that a stop in between leaves the old notebook whole."""
    half = path.with_suffix(".half")
    nbformat.write(notebook, half)
    os.replace(half, path)


def update(name: str) -> str:
    """Bring one notebook up to date and say what was done."""
    fresh, path = chapters.read(name), chapters.NOTEBOOKS / f"{name}.ipynb"
    fresh.metadata.language_info = {"name": "python"}
    stored = nbformat.read(path, as_version=4) if path.exists() else None
    if stored and keep_outputs(fresh, stored):
        if fresh == stored:
            return "is up to date"
        write(fresh, path)
        return "has new text; its code is the same, so the outputs are kept"
    execute(fresh, name)
    write(fresh, path)
    return "is executed anew"


if __name__ == "__main__":
    chapters.NOTEBOOKS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or chapters.names():
        print(name, update(name))
