"""Which words of a text name something that the book numbers or explains, and so become links.

    book, seen = numbering.read(ROOT), set()
    text = mentions.masked(markdown)  # or a page's plain text
    for mention in mentions.find(text, book, "notebooks/02_deepkde", seen):
        markdown[mention.start : mention.end], mention.target.href

Authors write plain words: "chapter 12", "chapters 3, 4 and 7", "evidence 5", "Figure 2.4",
"Tables 10.1 and 10.2", "Exercise 2.4", "K4", and a glossary's term, of which only the first on a
page is found.

"Figure 3.6" may also be a document's. It is ours where our chapter of that number says it, or names
the chapter ("chapter 3's Figure 3.6"); it is the document's where that is named: "the thesis's
Figure 3.6", "Figure 3.6 of the thesis", "its Figure 3.6".
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from numbering import Book, Target

__all__ = ["Mention", "find", "masked"]

GLOSSARY = "book/glossary"
HIDDEN = "\0"  # stands where a text has formulas, code, links: what is not searched
CITED = "\1"  # and this where it cites

NUMBER = r"\d+(?:\.E?\d+)?"
LIST = rf"{NUMBER}(?:(?:,\s+{NUMBER})*,?\s+(?:and|or|to)\s+{NUMBER})?"
NAMED = re.compile(
    rf"\b(chapter|lesson|evidence|figure|table|exercise)s?\s+({LIST})(?!\w|\.E?\d)", flags=re.I
)
ERRATUM = re.compile(r"(?<![\w.$/-])[A-Z]\d{1,2}(?![\w/-]|\.\d)")
OURS = re.compile(r"\b(?:chapter|lesson|evidence)(?:\s+0?(\d+))?['’]s\s+$", flags=re.I)
THEIRS = re.compile(rf"(?:[\w*{CITED}]['’]s?|\b[Ii]ts|\bthesis[,:]|\bpaper[,:])\s+$")
OF_THEIRS = re.compile(
    rf"\s+(?:of|in)\s+(?:the\s+|its\s+)?(?:\w+\s+)?(?:thesis|paper|slides|{CITED})"
)


class Mention(NamedTuple):
    """The characters from `start` to before `end` name the target."""

    start: int
    end: int
    target: Target


def find(text: str, book: Book, page: str, seen: set[str]) -> list[Mention]:
    """Return what one block of a page's text names, in order, without overlaps.

    `seen` holds the anchors of the terms that the page has named before, and gets those found. The
    page itself is not found, nor a term on the glossary's page.
    """
    found = sorted([*_named(text, book, page), *_errata(text, book)])
    taken = [range(m.start, m.end) for m in found]
    terms = [] if page == GLOSSARY else _terms(text, book, page, seen, taken)
    return sorted([*found, *terms])


def _named(text: str, book: Book, page: str) -> Iterable[Mention]:
    """Yield chapters, figures, tables and exercises: a number each, with its noun if it follows."""
    for match in NAMED.finditer(text):
        kind = match[1].lower().replace("lesson", "chapter")
        whole = kind in ("chapter", "evidence")
        if not (whole or match[1][0].isupper()):
            continue  # "table 3" is no name
        before = text[: match.start()]
        owner = OURS.search(before)
        if not owner and (THEIRS.search(before) or OF_THEIRS.match(text, match.end())):
            continue
        home = _chapter(page) if owner is None or owner[1] is None else owner[1]
        for number in re.finditer(NUMBER, match[2]):
            key = number[0].lstrip("0") if whole else number[0]
            target = book.names.get((kind, key))
            if target is None or (whole and target.page == page):
                continue
            if not whole and key.split(".")[0] != home:
                continue
            start = match.start(2) + number.start()
            yield Mention(
                match.start() if number.start() == 0 else start, start + len(number[0]), target
            )


def _errata(text: str, book: Book) -> Iterable[Mention]:
    for match in ERRATUM.finditer(text):
        if target := book.names.get(("erratum", match[0])):
            yield Mention(match.start(), match.end(), target)


def _terms(
    text: str, book: Book, page: str, seen: set[str], taken: list[range]
) -> Iterable[Mention]:
    """Yield each term that the page names for the first time; longer forms go first."""
    here = _chapter(page)
    forms = tuple(form for form in book.terms if book.local.get(form) in (None, here))
    order, pattern = _any_of(forms)
    for match in pattern.finditer(text):
        target = book.terms[order[match.lastindex - 1]]
        if target.anchor not in seen and not any(match.start() in span for span in taken):
            seen.add(target.anchor)
            yield Mention(match.start(), match.end(), target)


@lru_cache
def _any_of(forms: tuple[str, ...]) -> tuple[list[str], re.Pattern[str]]:
    """Return the forms in some order, and a regular expression that has a group for each.

    Forms stand by first letter, of which one look rules most out: ten times as fast.
    """
    order = sorted(forms, key=lambda form: (form[0].lower(), -len(form)))
    letters = [
        f"(?=[{letter}{letter.upper()}])(?:{'|'.join(f'({_pattern(form)})' for form in same)})"
        for letter, same in groupby(order, key=lambda form: form[0].lower())
    ]
    return order, re.compile(rf"(?<![\w-])(?=[A-Za-z])(?:{'|'.join(letters)})(?![\w-])")


def _pattern(form: str) -> str:
    """A regular expression of a term's form: any spacing, a capital at its start, the plural."""
    pattern = r"\s+".join(re.escape(word) for word in form.split())
    if form[0].islower():
        pattern = f"[{form[0]}{form[0].upper()}]{pattern[1:]}"
    if " of " in form:
        return pattern
    return f"{pattern[:-1]}(?:y|ies)" if form.endswith("y") else f"{pattern}s?"


def _chapter(page: str) -> str | None:
    """The number of the chapter that a page belongs to."""
    number = re.match(r"notebooks/(\d\d)_", page)
    return str(int(number[1])) if number else None


# What of a MyST text is not to be searched; longer constructs first.
MARKUP = re.compile(
    r"""
      ^(`{3,}|~{3,})[^\n]*\n.*?^\1[ \t]*$      # fenced code
    | \$\$.*?\$\$(?:[ \t]*\([\w-]+\))?         # displayed formulas with their labels
    | (?:\{[\w:+-]+\})?(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)  # code, roles
    | (?<!\\)\$(?!\s)[^$]+?(?<!\\)\$           # formulas
    | !?\[[^\]]*\](?:\([^)\s]*[^)]*\)|\[[^\]]*\])       # links and images
    | <[^<>\n]+>                               # HTML, bare addresses in brackets
    | https?://[^\s)]+
    | ^\#{1,6}\ [^\n]*$                        # headings
    | ^\([\w-]+\)=[ \t]*$                      # labels
    | ^:{3,}[^\n]*$                            # where a directive begins, with its title, and ends
    | ^:[\w-]+:[^\n]*$                         # its options
    | ^\*\*Table\ \d+\.\d+                     # what a table is called where it stands
    """,
    flags=re.X | re.M | re.S,
)


def masked(markdown: str) -> str:
    """Return a MyST text of the same length with all that is not plain words hidden."""
    return MARKUP.sub(
        lambda match: (CITED if match[0].startswith("{cite") else HIDDEN) * len(match[0]), markdown
    )
