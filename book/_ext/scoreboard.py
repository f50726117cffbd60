"""The directive ``{scoreboard}``: one table a notebook, from the records in ``book/results``.

A row is a number that a document prints; what the book alone measures stays with its evidence.
"""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

# The site is built without the library's dependencies; `results` needs none of them to be read.
sys.path.append(str(Path(__file__).resolve().parents[2] / "lib"))

from latentspace import results  # noqa: E402

HEADINGS = {
    "document": "Document",
    "item": "Item",
    "row": "Row",
    "metric": "Metric",
    "paper": "Paper",
    "ours": "Ours (mean ± std)",
    "n": "n",
    "setting": "Setting",
    "device": "Device",
    "time": "Time",
}
WIDTHS = {"document": 9, "item": 8, "row": 14, "metric": 10, "ours": 12, "setting": 16, "device": 8}


def results_files(source: Path) -> list[Path]:
    """The published results, one file a notebook; named runs have a second dot in their name."""
    files = (Path(source) / "book" / "results").glob("*.json")
    return sorted(path for path in files if "." not in path.stem)


class Scoreboard(SphinxDirective):
    """Show every printed number that a notebook measured, beside what it measured."""

    def run(self) -> list[nodes.Node]:
        files = results_files(self.env.srcdir)
        self.env.metadata[self.env.docname]["scoreboard"] = _names(files)
        tables = [self._table(path, rows) for path in files if (rows := self._printed(path))]
        return tables or [nodes.paragraph(text="No printed number has been measured yet.")]

    def _printed(self, path: Path) -> list[dict[str, str]]:
        self.env.note_dependency(str(path))
        try:
            records = results.read(path)
        except ValueError as error:
            raise self.error(str(error)) from error
        return [results.display_row(entry) for entry in records if entry["paper"] is not None]

    def _table(self, path: Path, rows: list[dict[str, str]]) -> nodes.table:
        table = nodes.table(classes=["scoreboard"], ids=[f"scoreboard-{path.stem}"])
        caption = nodes.title("", "", self._link(path.stem))
        self.set_source_info(caption)
        table += caption
        group = nodes.tgroup(cols=len(HEADINGS))
        for column in HEADINGS:
            spec = nodes.colspec(colwidth=WIDTHS.get(column, 6))
            if column == "row":
                spec["stub"] = 1  # the row's header, for screen readers too
            group += spec
        group += nodes.thead("", _row(list(HEADINGS.values())))
        group += nodes.tbody("", *[_row([row[column] for column in HEADINGS]) for row in rows])
        table += group
        return table

    def _link(self, chapter: str) -> nodes.Node:
        """The chapter's title, linked, or its bare name if the book does not hold it."""
        page = f"notebooks/{chapter}"
        name = chapter.replace("_", " ")
        text = nodes.inline(text=f"Chapter {name}" if name[0].isdigit() else name.capitalize())
        if page not in self.env.found_docs:
            return text
        return pending_xref(
            "", text, refdomain="std", reftype="doc", reftarget=f"/{page}",
            refexplicit=False, refwarn=True, refdoc=self.env.docname,
        )  # fmt: skip


def _row(cells: list[str]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", nodes.paragraph(text=cell)) for cell in cells])


def _names(files: list[Path]) -> str:
    return " ".join(path.stem for path in files)


def _outdated(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """Pages to read again, because a chapter's results were added or removed."""
    now = _names(results_files(env.srcdir))
    pages = ((page, data.get("scoreboard")) for page, data in env.metadata.items())
    return [page for page, then in pages if then is not None and then != now]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("scoreboard", Scoreboard)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
