"""Bring the stored notebooks up to date with the chapters' texts: notebooks.py [CHAPTER ...].

The texts are MyST, the notebooks plain Markdown (see `plain`). A chapter is executed when its code
differs from the stored notebook's, or was not run to the end. Where only the prose or the set-up
cell differs, the stored outputs are kept. A notebook keeps fingerprints of the library that it was
executed with and of the numbers that it measured, and the minutes that its run took of a processor;
where the library has changed since, this says so and leaves the outputs. To run a chapter again all
the same, delete its notebook first.
"""

import hashlib
import os
import sys
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm

import chapters
import library
import plain
from latentspace.course import kernels

SETUP = Path(__file__).with_name("setup_cell.py")
KEY = "latentspace"  # of the notebook's metadata


def renew_setup(name: str) -> None:
    """Put today's set-up cell into the chapter's text, if an older one stands there."""
    path, wanted = chapters.TEXTS / f"{name}.md", SETUP.read_text().strip()
    first = next(iter(chapters.code_cells(chapters.read(name))), None)
    if first is not None and chapters.is_setup(first.source) and first.source != wanted:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(first.source, wanted, 1), encoding="utf-8")


def execute(notebook: NotebookNode, name: str) -> None:
    """Run the notebook in place, in the notebooks' folder, with one bar for its code cells."""
    taken = 0.0

    def after_cell(**_: object) -> None:
        nonlocal taken
        bar.update()
        taken = sum(psutil.Process(client.km.provisioner.pid).cpu_times()[:4])  # its children's too

    with (
        tqdm(total=len(chapters.code_cells(notebook)), desc=name, unit="cell") as bar,
        kernels.sockets() as config,
    ):
        client = NotebookClient(
            notebook,
            config=config,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(chapters.NOTEBOOKS)}},
            on_cell_executed=after_cell,
        )
        client.execute()
    notebook.metadata.language_info = {"name": "python"}  # not this machine's Python version
    notebook.metadata[KEY] = {
        "library": library.fingerprint(notebook),
        "records": records(name),
        "minutes": round(taken / 60, 3),
    }


def records(name: str) -> str:
    """12 hex characters of the numbers that the published run left in book/results."""
    path = chapters.ROOT / "book" / "results" / f"{name}.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


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
    fresh, stored = plain.notebook(name), chapters.stored(name)
    fresh.metadata.language_info = {"name": "python"}
    path = chapters.NOTEBOOKS / f"{name}.ipynb"
    if stored and chapters.put_outputs(fresh, stored):
        if KEY in stored.metadata:
            fresh.metadata[KEY] = stored.metadata[KEY]
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
