"""What the documents print and what the book measured of it: book/printed.yaml with book/results.

A printed number is in one of five states: measured at the printed scale it agrees with ours or
differs, at a reduced scale it agrees or differs too (which says less), or nobody measured it here.

It agrees if it lies within the tolerance of our mean: the largest of two standard deviations (of
our runs or of theirs), 1 % of the printed value, and half a unit of its last digit.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

# The site is built without the library's dependencies; `results` needs none of them to be read.
sys.path.append(str(ROOT / "lib"))

from latentspace import results  # noqa: E402

STATES = ("agrees", "differs", "agrees, reduced", "differs, reduced", "not run")


@dataclass
class Measured:
    """One printed number with ours."""

    chapter: str
    record: results.Record
    state: str


@dataclass
class Table:
    """A table of a document, or several that are read together."""

    name: str
    numbers: int
    rest: str = ""
    rows: list[Measured] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """How many of its numbers are in each state; those of no record were not run."""
        found = Counter(row.state for row in self.rows)
        return found + Counter({"not run": self.numbers - len(self.rows)})


@dataclass
class Document:
    name: str
    note: str
    tables: list[Table]

    def counts(self) -> Counter[str]:
        return sum((table.counts() for table in self.tables), Counter())


def agrees(record: results.Record, spread: float = 0.0, decimals: int | None = None) -> bool:
    """Whether the printed value, with its ``spread``, lies within the tolerance of ours."""
    paper, std = record["paper"], record["std"] or 0.0
    rounding = 0.0 if decimals is None else 0.5 * 10.0**-decimals
    tolerance = max(2 * std, 2 * spread, 0.01 * abs(paper), rounding)
    return abs(paper - record["mean"]) <= tolerance * (1 + 1e-9)


def _takes(rule: dict, document: str, record: results.Record) -> bool:
    return (
        record["paper"] is not None
        and (record["document"], record["item"]) == (document, rule["item"])
        and record["setting"].startswith(rule.get("setting", ""))
    )


def _state(record: results.Record, rule: dict, entry: dict) -> str:
    spread = entry.get("spread", {}).get(record["row"], {}).get(record["metric"], 0.0)
    word = "agrees" if agrees(record, spread, entry.get("decimals")) else "differs"
    return {"printed": word, "reduced": f"{word}, reduced"}[rule["scale"]]


def _table(entry: dict, document: str, folder: Path) -> Table:
    table = Table(entry["table"], entry["numbers"], entry.get("rest", ""))
    if "from" in entry:
        chapter, _, _ = entry["from"].partition(".")
        for record in results.read(folder / f"{entry['from']}.json"):
            for rule in entry["rows"]:
                if _takes(rule, document, record):
                    table.rows.append(Measured(chapter, record, _state(record, rule, entry)))
    if len(table.rows) > table.numbers:
        raise ValueError(f"{document}, {table.name}: {len(table.rows)} of {table.numbers} numbers")
    return table


def read(root: Path = ROOT) -> list[Document]:
    """Return the documents; ValueError if a table has more records than numbers."""
    entries = yaml.safe_load((root / "book" / "printed.yaml").read_text(encoding="utf-8"))
    folder = root / "book" / "results"
    return [
        Document(
            entry["document"],
            entry.get("note", ""),
            [_table(table, entry["document"], folder) for table in entry["tables"]],
        )
        for entry in entries
    ]


def unlisted(root: Path = ROOT) -> list[str]:
    """Records of published runs that hold a printed number and stand in no table of the list."""
    entries = yaml.safe_load((root / "book" / "printed.yaml").read_text(encoding="utf-8"))
    known = [
        (entry["document"], source["from"], rule)
        for entry in entries
        for source in entry["tables"] + entry.get("beside", [])
        for rule in source.get("rows", [source] if "item" in source else [])
    ]
    # A named run's records stand again in its chapter's own file.
    return [
        f"{path.stem}: {record['document']}, {record['item']}"
        for path in sorted((root / "book" / "results").glob("[0-9][0-9]_*.json"))
        if "." not in path.stem
        for record in results.read(path)
        if record["paper"] is not None
        and not any(
            source.partition(".")[0] == path.stem and _takes(rule, document, record)
            for document, source, rule in known
        )
    ]
