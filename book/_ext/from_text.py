"""Build a chapter's page from its text, which is MyST, and the outputs of its stored notebook.

The notebook holds the same in plain Markdown, for Colab and JupyterLab: it gives the page its
address and is what the page offers for download.
"""

import sys
from pathlib import Path

import nbformat
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

import chapters  # noqa: E402

FOLDER = "notebooks/"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if not page.startswith(FOLDER):
        return
    name = page.removeprefix(FOLDER)
    app.env.note_dependency(str(chapters.TEXTS / f"{name}.md"))
    try:
        notebook = chapters.executed(name)
    except ValueError as error:
        raise ExtensionError(str(error)) from error
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", ()):
            cell.metadata["mystnb"] = {"code_prompt_show": "Solution: show the code",
                                       "code_prompt_hide": "Solution: hide the code"}  # fmt: skip
    source[0] = nbformat.writes(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _read, priority=100)
    return {"parallel_read_safe": True}
