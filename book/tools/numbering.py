"""The numbers of the book's equations, exercises, figures, tables, errata and terms, and where
each stands: one reading of the texts, for the site and for the notebooks alike.

    book = numbering.read(ROOT)
    book.labels["eq-02-js"].text       # "(2.2)": what {eq}`eq-02-js` shows
    book.labels["ex-02-floor"].href    # "notebooks/02_deepkde.html#ex-02-floor": where it leads
    book.names["figure", "2.4"]        # what "Figure 2.4" means
    book.terms["ACC"]                  # the glossary's entry

An equation's number is its chapter's and its place among the equations that have a label: (2.7)
in the lesson, (2.E7) in the evidence, where E says on which of the two pages it is, so that an
equation more in a lesson changes no number of its evidence. Exercises are numbered the same way.
Figures and tables carry such numbers in their captions, errata in their titles, all written by
hand. Which words of a text are mentions of these is `mentions`' part.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Book", "Target", "read"]


class Target(NamedTuple):
    """One thing that a text can name."""

    kind: str  # equation, exercise, figure, table, erratum, term, chapter, evidence or section
    number: str  # "2.7", "2.E7", "K4", "2"; "" for a term or a section
    page: str  # the page's path on the site without a suffix, such as notebooks/02_deepkde
    anchor: str  # the id in the page's HTML; "" for the page as a whole
    title: str  # as it stands in the text, in MyST; "" if it has none

    @property
    def text(self) -> str:
        """What a reference without words of its own shows."""
        if self.kind == "equation":
            return f"({self.number})"
        if self.kind in ("exercise", "figure", "table"):
            return f"{self.kind.capitalize()} {self.number}"
        return self.number if self.kind == "erratum" else self.title

    @property
    def href(self) -> str:
        """The address within the site."""
        return f"{self.page}.html" + (f"#{self.anchor}" if self.anchor else "")


class Book(NamedTuple):
    """All targets: by MyST label, by (kind, number) as the words of a text name them, by term.

    A form of a term that belongs to one chapter only ("In chapter 11, ...") is in `local` too.
    """

    labels: dict[str, Target]
    names: dict[tuple[str, str], Target]
    terms: dict[str, Target]
    local: dict[str, str]


class _Block(NamedTuple):
    """A stretch of a text that is one cell of code, or the prose between two of them."""

    code: bool
    text: str


EQUATION = re.compile(r"^[ \t>]*\$\$[ \t]*\(([\w-]+)\)[ \t]*$")
EXERCISE = re.compile(r"^:{3,}\{exercise\}[ \t]*(.*?)[ \t]*\n:label:[ \t]*([\w-]+)[ \t]*$", re.M)
LABEL = re.compile(r"^\(([\w-]+)\)=[ \t]*\n+(?:#+|:{3,}\{\w+\})[ \t]+(.*?)[ \t]*$", re.M)
ERRATUM = re.compile(r"([A-Z]\d+): (.*)")
FIGURE = re.compile(r"""\bcaption=\(?\s*[fr]*["']Figure (\d+)\.(E?\d+)\b""")
TABLE = re.compile(r"^\*\*Table (\d+)\.(E?\d+)\b", re.M)
GLOSSARY = re.compile(r"^(:{3,})\{glossary\}[^\n]*\n(.*?)^\1[ \t]*$", re.M | re.S)


def blocks(text: str) -> Iterator[_Block]:
    """Split a MyST text at its code cells and other fences of backticks."""
    lines: list[str] = []
    fence = ""
    for line in text.splitlines():
        ticks = re.match(r"`{3,}", line)
        if line.rstrip() == fence if fence else ticks:
            yield _Block(bool(fence), "\n".join(lines))
            lines, fence = [], ticks[0] if ticks and not fence else ""
        else:
            lines.append(line)
    yield _Block(bool(fence), "\n".join(lines))


def _chapter(name: str, text: str) -> Iterator[tuple[str, Target]]:
    """Yield what a chapter's text defines, in order, with its label; figures and tables have none.

    A figure or table counts as this chapter's where its number begins with the chapter's: others
    are those of a document.
    """
    page, chapter = f"notebooks/{name}", int(name[:2])
    place = "E" if name.endswith("_evidence") else ""
    equations = exercises = 0
    for block in blocks(text):
        for kind, pattern in (("figure", FIGURE), ("table", TABLE)):
            if block.code == (kind == "figure"):
                for major, minor in pattern.findall(block.text):
                    if int(major) == chapter:
                        anchor = f"{kind}-{major}-{minor}".lower()
                        yield "", Target(kind, f"{major}.{minor}", page, anchor, "")
        if block.code:
            continue
        for line in block.text.splitlines():
            if found := EQUATION.match(line):
                equations += 1
                number = f"{chapter}.{place}{equations}"
                yield found[1], Target("equation", number, page, f"equation-{found[1]}", "")
        for title, label in EXERCISE.findall(block.text):
            exercises += 1
            yield label, Target("exercise", f"{chapter}.{place}{exercises}", page, label, title)
        yield from _sections(page, block.text)


def _sections(page: str, text: str) -> Iterator[tuple[str, Target]]:
    """Yield the headings and boxes that have a label; those of the errata page are errata."""
    for label, title in LABEL.findall(text):
        erratum = ERRATUM.fullmatch(title) if label.startswith("erratum-") else None
        if erratum:
            yield label, Target("erratum", erratum[1], page, label, erratum[2])
        else:
            yield label, Target("section", "", page, label, title)


def forms(entry: str) -> list[str]:
    """Return the names in a glossary's heading: "optimal transport (OT)" has two, "a, b" too."""
    names = re.sub(r"\(([^)]*)\)", r", \1", entry).split(",")
    return [name.strip() for name in names if name.strip()]


def _terms(page: str, text: str) -> Iterator[tuple[str, Target, str]]:
    """Yield each name of each term, its target, and its only chapter's number, if it has one."""
    for _, body in GLOSSARY.findall(text):
        for entry, meaning in re.findall(r"^(\S.*)\n((?:[ \t]+\S.*\n|\n)+)", body, flags=re.M):
            anchor = "term-" + re.sub(r"[^a-zA-Z0-9]+", "-", entry).strip("-")  # as Sphinx makes it
            only = re.match(r"\s*In chapter 0?(\d+)\b", meaning)
            for name in forms(entry):
                yield name, Target("term", "", page, anchor, entry), only[1] if only else ""


def read(root: Path) -> Book:
    """Return the numbers and places of all that the texts under `root`/book define.

    Raises ValueError if a label, a number or a term is defined twice.
    """
    book = Book({}, {}, {}, {})

    def add(table: dict, key: object, target: Target) -> None:
        if key in table:
            raise ValueError(f"{key!r} is defined on {table[key].page} and on {target.page}")
        table[key] = target

    texts = sorted((root / "book" / "chapters").glob("[0-9][0-9]_*.md"))
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for label, target in _chapter(path.stem, text):
            if label:
                add(book.labels, label, target)
            if target.kind in ("figure", "table", "exercise"):
                add(book.names, (target.kind, target.number), target)
        kind = "evidence" if path.stem.endswith("_evidence") else "chapter"
        title = re.search(r"^# (.*)$", text, flags=re.M)
        number = str(int(path.stem[:2]))
        page = Target(kind, number, f"notebooks/{path.stem}", "", title[1] if title else "")
        add(book.names, (kind, number), page)
    for path in sorted((root / "book").glob("*.md")):
        page_name, text = f"book/{path.stem}", path.read_text(encoding="utf-8")
        prose = "\n".join(block.text for block in blocks(text) if not block.code)
        for label, target in _sections(page_name, prose):
            add(book.labels, label, target)
            if target.kind == "erratum":
                add(book.names, ("erratum", target.number), target)
        for name, target, only in _terms(page_name, prose):
            add(book.terms, name, target)
            if only:
                book.local[name] = only
    return book
