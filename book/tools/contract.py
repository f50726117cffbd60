"""What a lesson and an evidence notebook hold to, measured: contract.py [CHAPTER ...].

Prints each notebook's measures and what it breaks; the exit status is 1 if it breaks anything.
Takes the text, and the stored notebook's outputs where its code is that of the text.
"""

import re
import statistics
import sys
from html.parser import HTMLParser

from nbformat import NotebookNode

import chapters

FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell", "parameters", "solution"}
UNSEEN = {"hide-output", "hide-cell", "remove-output", "remove-cell", "solution"}
BOXES = ("algorithm", "settings", "verdict")
MEGABYTES = 2


def tags(cell: NotebookNode) -> set[str]:
    """Return the cell's tags."""
    return set(cell.metadata.get("tags", []))


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that are no solutions."""
    return [c for c in notebook.cells if c.cell_type == "code" and "solution" not in tags(c)]


def open_code(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that a reader sees: neither folded, nor parameters or solutions."""
    return [cell for cell in code(notebook) if not tags(cell) & FOLDED]


def prose(notebook: NotebookNode) -> str:
    """Return the text of all cells of prose that are no solutions."""
    return "\n\n".join(
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "markdown" and "solution" not in tags(cell)
    )


def words(text: str) -> int:
    """Count words; formulas, code, and the lines that make a directive are none."""
    text = re.sub(r"^:::.*$|^:[\w-]+:.*$", "", text, flags=re.M)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    text = re.sub(r"(?<!\\)\$.*?(?<!\\)\$", "", text, flags=re.S)
    text = re.sub(r"\{[\w:-]+\}(?=`)", "", text)
    text = re.sub(r"`[^`]*`", "", text)
    return sum(any(map(str.isalnum, word)) for word in text.split())


def boxes(text: str) -> list[tuple[str, str, str]]:
    """Return the admonitions of a text: title, classes and body."""
    found = re.findall(r"^(:{3,})\{admonition\} *(.*?)\n(.*?)^\1 *$", text, flags=re.M | re.S)
    return [
        (title, " ".join(re.findall(r"^:class: *(.*)$", body, flags=re.M)), body)
        for _, title, body in found
    ]


class Tables(HTMLParser):
    """Counts the rows in the body of each table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[int] = []
        self._head = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.rows.append(0)
        self._head = tag == "thead" or (self._head and tag != "tbody")
        if tag == "tr" and self.rows and not self._head:
            self.rows[-1] += 1


def tables(notebook: NotebookNode) -> list[int]:
    """Return the number of rows of each table among the outputs that a reader sees."""
    shown = [cell for cell in code(notebook) if not tags(cell) & UNSEEN]
    pages = [o.get("data", {}).get("text/html", "") for cell in shown for o in cell.outputs]
    return [rows for page in pages for rows in Tables("".join(page)).rows]


def longest_row(notebook: NotebookNode) -> int:
    """Return the largest number of code cells without prose between them."""
    longest = row = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            row = 0
        elif "solution" not in tags(cell):
            row += 1
            longest = max(longest, row)
    return longest


def exercises(notebook: NotebookNode) -> tuple[int, int, int]:
    """Count the exercises, their solutions, and the cells that check an answer."""
    text, solved = prose(notebook), chapters.tagged(notebook, "solution")
    asked = len(re.findall(r"^:::+\{exercise\}", text, flags=re.M))
    answers = "\n\n".join(cell.source for cell in solved if cell.cell_type == "markdown")
    cells = notebook.cells
    first = next((i for i, c in enumerate(cells) if "{exercise}" in c.source), len(cells))
    after = code(NotebookNode(cells=cells[first:]))
    checks = [cell for cell in after if re.search(r"\bassert", cell.source)]
    return asked, len(re.findall(r"^:::+\{admonition\}", answers, flags=re.M)), len(checks)


def measures(notebook: NotebookNode) -> dict[str, float]:
    """Return the numbers that a closing note reports."""
    lines = [len(cell.source.splitlines()) for cell in open_code(notebook)]
    return {
        "words": words(prose(notebook)),
        "code cells": len(code(notebook)),
        "median open cell": statistics.median(lines) if lines else 0,
        "longest open cell": max(lines, default=0),
        "code cells in a row": longest_row(notebook),
    }


def lesson(notebook: NotebookNode) -> list[str]:
    """Say where a lesson breaks the contract."""
    limits = {"words": 3500, "code cells": 45, "median open cell": 8, "longest open cell": 20,
              "code cells in a row": 3}  # fmt: skip
    found = [
        f"{name}: {value:g}, at most {limits[name]}"
        for name, value in measures(notebook).items()
        if value > limits[name]
    ]
    text, rows = prose(notebook), tables(notebook)
    found += _opening(notebook)
    if not any("Schematic(" in cell.source for cell in code(notebook)):
        found.append("no schematic")
    for kind in BOXES:
        count = sum(kind in classes.split() for _, classes, _ in boxes(text))
        if count != 1:
            found.append(f"{count} boxes of class {kind}, not one")
    method = [body for _, classes, body in boxes(text) if "algorithm" in classes.split()]
    if method and not (re.search(r"^1\. ", method[0], flags=re.M) and "{eq}" in method[0]):
        found.append("the algorithm box has no numbered steps with links to equations")
    found += _errata(text)
    if len(rows) > 2:
        found.append(f"{len(rows)} tables among the open outputs, at most 2")
    found += [f"a table of {n} rows, at most 8" for n in rows if n > 8]
    if any("# fmt" in cell.source for cell in open_code(notebook)):
        found.append("a `# fmt` comment in an open cell")
    asked, answered, checked = exercises(notebook)
    if asked < 5:
        found.append(f"{asked} exercises, at least 5")
    if answered < asked:
        found.append(f"{asked} exercises and {answered} solutions")
    if checked < 2:
        found.append(f"{checked} exercises check themselves, at least 2")
    return found


def evidence(notebook: NotebookNode) -> list[str]:
    """Say where an evidence notebook breaks the contract."""
    found = [
        f"a code cell of {lines} lines, at most 25"
        for lines in (len(cell.source.splitlines()) for cell in code(notebook))
        if lines > 25
    ]
    seen = [c for c in notebook.cells if c.cell_type == "markdown" or c in open_code(notebook)]
    first_code = next((i for i, c in enumerate(seen) if c.cell_type == "code"), len(seen))
    opening = "\n".join(cell.source for cell in seen[:first_code]).split("\n## ", 1)[0].lower()
    table = re.search(r"\{list-table\}|^\|[ :|-]+\|$", opening, flags=re.M)
    if not table or not all(w in opening for w in ("claim", "test", "verdict", "section")):
        found.append("it does not open with a table of claim, test, verdict and section")
    last = boxes(notebook.cells[-1].source) if notebook.cells else []
    if not last or "provenance" not in last[-1][0].lower():
        found.append("its last cell is no box with the title Provenance")
    return found


def breaches(name: str, notebook: NotebookNode) -> list[str]:
    """Say where a notebook of that name breaks the contract."""
    found = (evidence if chapters.is_evidence(name) else lesson)(notebook)
    number = str(int(name[:2]))
    title = re.search(r"^# (.*)$", notebook.cells[0].source, flags=re.M)
    if not title or number not in re.findall(r"\d+", title[1]):
        found.append(f"the title does not give the chapter's number, {number}")
    path = chapters.NOTEBOOKS / f"{name}.ipynb"
    if path.exists() and path.stat().st_size >= MEGABYTES * 1_000_000:
        found.append(f"the notebook has {path.stat().st_size / 1e6:.1f} MB, below {MEGABYTES}")
    return found


def _opening(notebook: NotebookNode) -> list[str]:
    """Before the first section there is no open code."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^## ", cell.source, flags=re.M):
            return []
        if cell.cell_type == "code" and not tags(cell) & (FOLDED - {"parameters"}):
            return [f"not folded, before the first section: {cell.source.splitlines()[0]}"]
    return ["no section"]


def _errata(text: str) -> list[str]:
    errata = [(t, body) for t, _, body in boxes(text) if re.match(r"Errat(um|a)\b", t)]
    found = [f"{len(errata)} boxes of errata, at most 4"] if len(errata) > 4 else []
    for title, body in errata:
        if words(body) > 80:
            found.append(f"{words(body)} words in the box {title!r}, at most 80")
        if not re.search(r"<?erratum-\w+>?`|errata", body):
            found.append(f"the box {title!r} has no link to the errata page")
    return found


def newest(name: str) -> NotebookNode:
    """Return the chapter's text, with the stored notebook's outputs if its code is the same."""
    text, stored = chapters.read(name), chapters.stored(name)
    if stored:
        chapters.put_outputs(text, stored)
    return text


if __name__ == "__main__":
    broken = False
    for name in sys.argv[1:] or chapters.names():
        notebook = newest(name)
        print(name, *(f"{key} {value:g}" for key, value in measures(notebook).items()), sep="  ")
        found = breaches(name, notebook)
        print("".join(f"  {line}\n" for line in found), end="")
        broken = broken or bool(found)
    sys.exit(broken)
