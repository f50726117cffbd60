"""Bring the stored notebooks up to date with the chapters' texts: notebooks.py [CHAPTER ...].

A chapter is executed when its code differs from the stored notebook's, or was not run to the end.
Where only the prose or the set-up cell differs, the stored outputs are kept. A notebook keeps a
fingerprint of the library that it was executed with; where the library has changed since, this
says so and leaves the outputs. To run a chapter again all the same, delete its notebook first.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

import chapters
import kernels
import library

SETUP = Path(__file__).with_name("setup_cell.py")
KEY = "latentspace"  # of the notebook's metadata


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_setup(source: str) -> bool:
    """Tell whether a cell is the set-up cell, in any version: it does something in Colab only."""
    return source.startswith('import sys\n\nif "google.colab" in sys.modules:')


def renew_setup(name: str) -> None:
    """Put today's set-up cell into the chapter's text, if an older one stands there."""
    path, wanted = chapters.TEXTS / f"{name}.md", SETUP.read_text().strip()
    first = next(iter(code_cells(chapters.read(name))), None)
    if first is not None and is_setup(first.source) and first.source != wanted:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(first.source, wanted, 1), encoding="utf-8")


def keep_outputs(fresh: NotebookNode, stored: NotebookNode) -> bool:
    """Copy the outputs of `stored` into `fresh` if its code is the same and ran to the end."""
    new, old = code_cells(fresh), code_cells(stored)
    sources = [[c.source for c in cells if not is_setup(c.source)] for cells in (new, old)]
    if sources[0] != sources[1] or len(new) != len(old):
        return False
    if [cell.execution_count for cell in old] != list(range(1, len(old) + 1)):
        return False
    for to, come in zip(new, old, strict=True):
        to.outputs, to.execution_count = come.outputs, come.execution_count
    if KEY in stored.metadata:
        fresh.metadata[KEY] = stored.metadata[KEY]
    return True


def execute(notebook: NotebookNode, name: str) -> None:
    """Run the notebook in place, in the notebooks' folder, with one bar for its code cells."""
    with (
        tqdm(total=len(code_cells(notebook)), desc=name, unit="cell") as bar,
        kernels.sockets() as config,
    ):
        NotebookClient(
            notebook,
            config=config,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(chapters.NOTEBOOKS)}},
            on_cell_executed=lambda **_: bar.update(),
        ).execute()
    notebook.metadata.language_info = {"name": "python"}  # not this machine's Python version
    notebook.metadata[KEY] = {"library": library.fingerprint(notebook)}


def age(notebook: NotebookNode) -> str:
    """Say whether the library is the one that the stored outputs come from."""
    known = notebook.metadata.get(KEY, {}).get("library")
    if known is None:
        return "; with which library it was executed is not known"
    same = known == library.fingerprint(notebook)
    return "" if same else "; the library has changed since it was executed"


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace the file at once, so that a stop in between leaves the old notebook whole."""
    half = path.with_suffix(".half")
    nbformat.write(notebook, half)
    os.replace(half, path)


def update(name: str) -> str:
    """Bring one notebook up to date and say what was done."""
    renew_setup(name)
    fresh, path = chapters.read(name), chapters.NOTEBOOKS / f"{name}.ipynb"
    fresh.metadata.language_info = {"name": "python"}
    stored = nbformat.read(path, as_version=4) if path.exists() else None
    if stored and keep_outputs(fresh, stored):
        if fresh == stored:
            return "is up to date" + age(fresh)
        write(fresh, path)
        return "has new text; its code is the same, so the outputs are kept" + age(fresh)
    execute(fresh, name)
    write(fresh, path)
    return "is executed anew"


if __name__ == "__main__":
    chapters.NOTEBOOKS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or chapters.names():
        print(name, update(name))
