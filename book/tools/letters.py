"""Write the errata of each document as a letter to its authors: letters.py [DIR].

The letters are Markdown, made from the errata page, and named after the document's key in the
bibliography; DIR is _build/letters if it is not given.
"""

import re
import sys
from pathlib import Path

from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text

import address
import errata
import numbering

ROOT = Path(__file__).resolve().parents[2]
OPENING = """\
Dear {authors},

we teach the methods of {it}, *{title}*, in *Shaping Latent Space*, an open textbook whose every \
number comes from a run that readers can repeat ({site}). Reading {it} closely enough to write the \
programs, we noted the {count} places below. Each says what is printed, why we think that it \
cannot be so or what it leaves open, what we use instead, and where we show it. That we found them \
we owe to how precisely you wrote your method down.

Where we have misread you, or a later version has it right, please tell us ({issues}): we shall \
correct the page.
"""
CLOSING = """
With thanks for your work,
the authors of Shaping Latent Space
"""


def site() -> str:
    """Return the address of the public site."""
    return f"https://{address.forms(address.current(ROOT))[1]}/"


def keys(page: str) -> dict[str, str]:
    """Return which document a label's letter stands for, as its key in the bibliography."""
    return dict(re.findall(r"\b([A-Z]) for [^{,;.]*\{cite\}`(\w+)`", page))


def written(text: str) -> str:
    """Return LaTeX of the bibliography as plain text."""
    return str(Text.from_latex(text))


def people(source: Entry) -> list[str]:
    """Return the authors' names in full."""
    return [
        written(" ".join([*p.first_names, *p.middle_names, *p.prelast_names, *p.last_names]))
        for p in source.persons["author"]
    ]


def plain(text: str, book: numbering.Book, bibliography: BibliographyData) -> str:
    """Return MyST as Markdown: references become links to the site, citations names and years."""

    def link(match: re.Match[str]) -> str:
        words, label = re.fullmatch(r"(?:(.*?) <)?([\w-]+)>?", match[1]).groups()
        target = book.labels[label]
        return f"[{words or target.text}]({site()}{target.href})"

    def cited(match: re.Match[str]) -> str:
        source = bibliography.entries[match[1]]
        names = [written(" ".join(person.last_names)) for person in source.persons["author"]]
        by = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"({by}, {source.fields['year']})"

    text = re.sub(r"\{(?:ref|eq)\}`([^`]*)`", link, text)
    return re.sub(r"\{cite(?::\w)?\}`([^`]*)`", cited, text)


def letter(
    entries: list[errata.Entry], key: str, book: numbering.Book, bibliography: BibliographyData
) -> str:
    """Return the letter about the document of that key."""
    source = bibliography.entries[key]
    names = people(source)
    authors = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    form = source.type + source.fields.get("howpublished", "").lower()
    it = next((f"your {word}" for word in ("thesis", "slides") if word in form), "your paper")
    lines = [
        OPENING.format(
            authors=authors, title=written(source.fields["title"]), it=it, site=site(),
            count=len(entries), issues=f"{address.current(ROOT)}/issues",
        )
    ]  # fmt: skip
    for entry in entries:
        lines.append(f"- **{entry.label}, {entry.title}**")
        for name, text in entry.rows.items():
            lines.append(f"  - {name}: {plain(text, book, bibliography)}")
    return "\n".join([*lines, CLOSING])


def letters() -> dict[str, str]:
    """Return all letters, by the key of their document."""
    book, bibliography = numbering.read(ROOT), parse_file(str(ROOT / "book" / "references.bib"))
    entries = errata.read()
    return {
        key: letter([e for e in entries if e.label[0] == initial], key, book, bibliography)
        for initial, key in keys(errata.PAGE.read_text(encoding="utf-8")).items()
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "letters"
    folder.mkdir(parents=True, exist_ok=True)
    for key, text in letters().items():
        (folder / f"{key}.md").write_text(text, encoding="utf-8")
        print(folder / f"{key}.md")
