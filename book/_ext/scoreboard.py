"""The directive ``{scoreboard}``: printed numbers beside ours, in a summary and in tables.

The page is whole without JavaScript; `scoreboard.js` filters and sorts it.
"""

import sys
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import printed  # noqa: E402

HEADINGS = ("Table", "Row", "Metric", "Printed", "Ours", "n", "State", "Setting", "Where")


def _sources(root: Path) -> list[Path]:
    return [root / "book" / "printed.yaml", *sorted((root / "book" / "results").glob("*.json"))]


class _Page(SphinxDirective):
    """What both directives share: they read the numbers, and their page follows them."""

    def documents(self) -> list[printed.Document]:
        root = Path(self.env.srcdir)
        for path in _sources(root):
            self.env.note_dependency(str(path))
        self.env.metadata[self.env.docname]["printed"] = " ".join(map(str, _sources(root)))
        try:
            return printed.read(root)
        except ValueError as error:
            raise self.error(str(error)) from error


class Scoreboard(_Page):
    """A summary, a filter, and a folded table of the measured numbers of each document."""

    def run(self) -> list[nodes.Node]:
        documents = self.documents()
        parts = [summary(documents), FILTER, *map(details, documents), SCRIPT]
        return [nodes.raw("", "\n".join(parts), format="html")]


def summary(documents: list[printed.Document]) -> str:
    """One line a document: how many of its numbers are in each state, and a bar of them."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("Printed", *HEADS.values()))
    lines = []
    for document in documents:
        counts = document.counts()
        total = counts.total()
        cells = "".join(f"<td>{counts[state] or '–'}</td>" for state in printed.STATES)
        bar = "".join(
            f'<i class="{slug(state)}" style="flex-grow:{counts[state]}"></i>'
            for state in printed.STATES
        )
        title = f'<a href="#{anchor(document)}">{escape(document.name)}</a>'
        lines.append(
            f'<tr><th scope="row">{title}<span class="bar" aria-hidden="true">{bar}</span></th>'
            f"<td>{total or '–'}</td>{cells}</tr>"
        )
    return (
        '<div class="scores-summary pst-scrollable-table-container" tabindex="0"><table>'
        "<caption>Printed numbers of each document, by what became of them here</caption>"
        f'<thead><tr><th scope="col">Document</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


HEADS = {
    "agrees": "agrees",
    "differs": "differs",
    "agrees, reduced": "agrees, reduced scale",
    "differs, reduced": "differs, reduced scale",
    "not run": "not run",
}

FILTER = (
    '<form class="scores-filter" hidden onsubmit="return false">'
    '<label>Rows with <input type="search" placeholder="MNIST, DeepDPM, ACC …"></label> '
    '<label>State <select><option value="">all</option>'
    + "".join(f"<option>{escape(state)}</option>" for state in printed.STATES[:-1])
    + '</select></label> <output aria-live="polite"></output></form>'
)

SCRIPT = '<script src="../_static/scoreboard.js" defer></script>'


def slug(state: str) -> str:
    return state.replace(", ", "-").replace(" ", "-")


def anchor(document: printed.Document) -> str:
    return "scores-" + document.name.lower().replace(" ", "-")


def details(document: printed.Document) -> str:
    """The measured numbers of a document, folded, and what was left out of each table."""
    measured = sum(len(table.rows) for table in document.tables)
    head = "".join(f'<th scope="col">{name}</th>' for name in HEADINGS)
    body = "".join(line(table, row) for table in document.tables for row in table.rows)
    left = "".join(
        f"<li>{escape(table.name)}: {table.counts()['not run']} of {table.numbers}."
        f" {escape(table.rest)}</li>"
        for table in document.tables
        if table.counts()["not run"]
    )
    parts = [f"<p>{escape(document.note)}</p>"] if document.note else []
    if body:
        parts.append(
            '<div class="pst-scrollable-table-container" tabindex="0"><table class="scores">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
    if left:
        parts.append(f"<p>Not run here:</p><ul>{left}</ul>")
    return (
        f'<details class="scores" id="{anchor(document)}"><summary>{escape(document.name)}: '
        f"{measured} measured</summary>{''.join(parts)}</details>"
    )


def line(table: printed.Table, row: printed.Measured) -> str:
    shown = printed.results.display_row(row.record)
    number = row.chapter[:2].lstrip("0")
    what = "evidence" if row.chapter.endswith("_evidence") else "lesson"
    link = f'<a href="../notebooks/{row.chapter}.html">{number}, {what}</a>'
    cells = (
        escape(table.name), escape(shown["row"]), escape(shown["metric"]), shown["paper"],
        shown["ours"], shown["n"], f'<span class="{slug(row.state)}">{row.state}</span>',
        escape(shown["setting"]), link,
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _outdated(app: Sphinx, env: BuildEnvironment, *_: set[str]) -> list[str]:
    """Pages to read again, because a file of results was added or removed."""
    now = " ".join(map(str, _sources(Path(env.srcdir))))
    pages = ((page, data.get("printed")) for page, data in env.metadata.items())
    return [page for page, then in pages if then is not None and then != now]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("scoreboard", Scoreboard)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
