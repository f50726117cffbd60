"""The entries of the errata page, read from its text: for the page's index, letters and tests.

errata.read()[3].label, .where, .kind, .changes   # "K4", "eq. (7)", "oversight", "where the ..."
"""

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["KINDS", "PAGE", "Entry", "read"]

PAGE = Path(__file__).resolve().parents[1] / "errata.md"
KINDS = ("error", "contradiction", "open", "oversight")

ENTRY = re.compile(
    r"^\((erratum-\w+)\)=\n### ([A-Z]\d+): ([^\n]*)\n\n(:{3,})\{list-table\}\n(.*?)^\4$",
    re.M | re.S,
)
ROW = re.compile(r"^\* - (.*)\n  - (.*)$", flags=re.M)


class Entry(NamedTuple):
    """One erratum; texts are MyST, as they stand on the page."""

    anchor: str  # erratum-k4
    label: str  # K4
    title: str
    document: str  # the section of the page in which it stands
    rows: dict[str, str]  # by what stands before them: "printed", "why it cannot be", "corrected"

    @property
    def where(self) -> str:
        """Where in the document."""
        return self._place[1]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self._place[2]

    @property
    def changes(self) -> str:
        """What it changes for who uses the document, in a few words."""
        return self.rows["it changes"]

    @property
    def _place(self) -> re.Match[str]:
        place = re.fullmatch(rf"(.*) \(({'|'.join(KINDS)})\)", self.rows["where"])
        if place is None:
            raise ValueError(f"{self.label}: no kind at the end of {self.rows['where']!r}")
        return place


def read(page: Path = PAGE) -> list[Entry]:
    """Return the page's entries in its order.

    Raises ValueError if an entry lacks what the index shows.
    """
    found = []
    text = page.read_text(encoding="utf-8")
    for title, section in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S):
        for anchor, label, name, _, body in ENTRY.findall(section):
            entry = Entry(anchor, label, name, title, dict(ROW.findall(body)))
            missing = {"where", "it changes", "shown in"} - entry.rows.keys()
            if missing or not entry.kind:
                raise ValueError(f"{label} lacks {', '.join(sorted(missing))}")
            found.append(entry)
    return found


def index(entries: list[Entry]) -> str:
    """Return the page's index in MyST: a table a document, with a row an entry."""
    tables = []
    for document in dict.fromkeys(entry.document for entry in entries):
        rows = [("entry", "where, kind", "what it changes")]
        rows += [
            (f"{{ref}}`{e.label} <{e.anchor}>` {e.title}", f"{e.where}, {e.kind}", e.changes)
            for e in entries
            if e.document == document
        ]
        lines = [f":::{{list-table}} {document}", ":class: errata-index", ":header-rows: 1"]
        lines += [":widths: 36 30 34", ""]
        for row in rows:
            lines += [("  - " if i else "* - ") + cell for i, cell in enumerate(row)]
        tables.append("\n".join([*lines, ":::"]))
    return "\n\n".join(tables)
