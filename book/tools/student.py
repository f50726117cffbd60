"""Write the chapters without their solutions: student.py FOLDER."""

import sys
from pathlib import Path

import nbformat

import chapters


def student(name: str, folder: Path) -> Path:
    """Write the stored notebook without the cells tagged `solution`, and return its path."""
    notebook = nbformat.read(chapters.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if "solution" not in c.metadata.get("tags", [])]
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in chapters.names():
        print(student(name, folder))
