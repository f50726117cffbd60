"""The works in book/references.bib: how each is cited in a notebook, and where it can be read."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pybtex.database import BibliographyData, Entry, Person, parse_file
from pybtex.richtext import Text

__all__ = ["Work", "read"]


class Work(NamedTuple):
    """A work of the bibliography."""

    authors: str  # "Scott", "Parzen and Scott", "Parzen et al."
    year: str
    address: str  # of the work itself; without one, within the site


def read(root: Path) -> dict[str, Work]:
    """Return the works by their keys."""
    path = root / "book" / "references.bib"
    found = parse_file(str(path)) if path.exists() else BibliographyData()
    return {
        key: Work(_authors(entry.persons["author"]), entry.fields["year"], _address(key, entry))
        for key, entry in found.entries.items()
    }


def _authors(persons: list[Person]) -> str:
    names = [
        str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))
        for person in persons[: 2 if len(persons) < 3 else 1]
    ]
    return " and ".join(names) + (" et al." if len(persons) > 2 else "")


def _address(key: str, entry: Entry) -> str:
    """Return the work's DOI as an address, its URL, its number on arXiv, or its place in our list.

    The anchor is `bibtex_cite_id` of _config.yml.
    """
    fields = entry.fields
    if "doi" in fields:
        return f"https://doi.org/{quote(fields['doi'])}"
    if "url" in fields:
        return fields["url"]
    said = f"{fields.get('journal', '')} {fields.get('howpublished', '')}"
    number = fields.get("eprint") or "".join(re.findall(r"arXiv:(\d+\.\d+)", said))
    return f"https://arxiv.org/abs/{number}" if number else f"book/references.html#cite-{key}"
