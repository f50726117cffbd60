"""Run a chapter again and compare with its stored numbers: rerun.py CHAPTER [--name NAME].

Runs the published parameters, or those of notebooks/params/CHAPTER.NAME.yaml, and prints for each
stored number its mean, the new one, the difference in units of the stored spread, and whether they
agree. The stored numbers stay as they are. The exit status is 1 if any row does not agree.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import chapters
from latentspace import results, runs
from latentspace.course import running

SPREADS = 1.0
"""A row with a spread agrees if the means differ by at most so many standard deviations."""
SHARE = 0.01
"""A row without one agrees if they differ by at most this share of the larger."""
ROUNDING = 1e-3
"""Every row agrees within this share: sums in another order."""
OF_THE_MACHINE = re.compile(
    r"(?<![\w'])(?:s|ms|[MG]i?B)\b|\((?:CPU |wall )?(?:min|h)\)|seconds?\b|\btime\b"
)
"""What is a number of the machine, by its item and metric: "fit (s)", "ms per image", "CPU s"."""


class Row(NamedTuple):
    """A number beside its repetition; `verdict` is "agrees", "DIFFERS", or why neither."""

    name: str
    stored: str
    new: str
    difference: str
    verdict: str

    @property
    def fine(self) -> bool:
        return self.verdict in ("agrees", "of the machine")


def key(entry: results.Record) -> tuple[str, ...]:
    """Return what tells a record from the others of its run."""
    return tuple(entry[field] for field in ("document", "item", "row", "metric", "setting"))


def compare(stored: Iterable[results.Record], new: Iterable[results.Record]) -> list[Row]:
    """Set each number beside its repetition, in the order of the stored ones."""
    before, after = ({key(entry): entry for entry in records} for records in (stored, new))
    return [_row(name, before.get(name), after.get(name)) for name in before | after]


def _row(name: tuple[str, ...], old: results.Record | None, new: results.Record | None) -> Row:
    _, item, row, metric, setting = name
    title = " | ".join(filter(None, (item, row, metric, setting)))
    if old is None or new is None:
        verdict = "NOT STORED" if old is None else "NOT MEASURED"
        return Row(title, _ours(old), _ours(new), "", verdict)
    gap, larger = new["mean"] - old["mean"], max(abs(new["mean"]), abs(old["mean"]))
    if old["std"]:
        difference = f"{gap / old['std']:+.2f} spreads"
        agrees = abs(gap) <= max(SPREADS * old["std"], ROUNDING * larger)
    else:
        difference = f"{gap / larger:+.2%}" if larger else "0"
        agrees = abs(gap) <= SHARE * larger
    verdict = "agrees" if agrees else "DIFFERS"
    if OF_THE_MACHINE.search(f"{item} | {metric}"):
        verdict = "of the machine"
    return Row(title, _ours(old), _ours(new), difference, verdict)


def _ours(entry: results.Record | None) -> str:
    return "-" if entry is None else results.display_row(entry)["ours"]


def again(chapter: str, name: str = "published") -> list[results.Record]:
    """Run the chapter in a copy of the project, and return the records that the run keeps there.

    Raises SystemExit if there is no such chapter or parameter file, or if nothing is kept.
    """
    notebook = chapters.read(chapter)
    defaults, given = chapters.parameters(notebook), {}
    if name != "published":
        given = running.load_parameters(Path(f"{chapter}.{name}.yaml"), defaults)
    running.check_data_home()
    out = chapters.ROOT / "_build" / "runs" / f"{chapter}.rerun.{name}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    files = running.pack("_config.yml", "book/chapters", "book/results", "notebooks/params")
    with running.unpacked(files) as copy, running.alone(out):
        kept = copy / runs.where(chapter, name)
        kept.unlink()  # what is there afterwards comes from this run
        running.execute(notebook, out, given, copy / "notebooks")
        if not kept.exists():
            raise SystemExit(f"The run kept no numbers; its copy is {out}")
        return results.read(kept)


def rerun(chapter: str, name: str = "published") -> list[Row]:
    """Run the chapter again and compare; raises SystemExit if it has no stored numbers."""
    chapters.read(chapter)
    try:
        path = chapters.ROOT / runs.where(chapter, name)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not path.exists():
        raise SystemExit(f"No numbers of that run are stored: {path} is missing")
    return compare(results.read(path), again(chapter, name))


def report(rows: list[Row]) -> str:
    """Return the rows as a text table, with a line that says by which tolerance they agree."""
    heads = Row("number", "stored", "new", "difference", "verdict")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [heads, *rows]]
    good = sum(row.verdict == "agrees" for row in rows)
    judged = sum(row.verdict != "of the machine" for row in rows)
    lines += [
        "",
        f"{good} of {judged} rows agree: within {SPREADS:g} stored standard deviation, or "
        f"{SHARE:.0%} where there is no spread ({ROUNDING:.1%} is rounding).",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the comparison and return the exit status."""
    parser = argparse.ArgumentParser(description="Run a chapter again and compare its numbers.")
    parser.add_argument("chapter", help="such as 02_deepkde")
    parser.add_argument("--name", default="published", help="a named run, such as long")
    rows = rerun(**vars(parser.parse_args(argv)))
    print(report(rows))
    return int(not all(row.fine for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
