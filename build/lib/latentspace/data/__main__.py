"""The command line of the data sets: `python -m latentspace.data` lists and fetches them."""

import argparse
import os
import sys
from collections.abc import Sequence

from latentspace.data.sources import SETS, Source
from latentspace.data.store import data_home, fetch, find_source

__all__ = ["main"]


def _present(name: str, source: Source) -> str:
    if source.make:
        return "embedded"
    found = [s for s in source.splits if os.path.isfile(data_home() / name / f"{s}.npz")]
    return "yes" if len(found) == len(source.splits) else ", ".join(found) or "no"


def _table() -> str:
    rows = [("set", "splits", "MB", "present", "licence", "source")]
    for name, s in SETS.items():
        size = f"{s.megabytes:g}" if s.megabytes else "-"
        rows.append((name, ", ".join(s.splits), size, _present(name, s), s.licence, s.home))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return f"Data home: {data_home()}\n\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """List the data sets, or fetch the named ones. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m latentspace.data",
        description="List the data sets with size, licence and source, or fetch some by name.",
    )
    parser.add_argument("name", nargs="*", help="sets to fetch; none: list all")
    parser.add_argument("--split", help="fetch only this split (default: all)")
    args = parser.parse_args(argv)
    try:
        if not args.name:
            print(_table())
            return 0
        data_home()
        wanted = [
            (name, split)
            for name in args.name
            for split in find_source(name, args.split).splits
            if args.split in (None, split)
        ]
    except ValueError as error:
        parser.error(str(error))
    failed = False
    for name, split in wanted:
        if SETS[name].make:
            print(f"{name}/{split}: embedded, nothing to fetch")
            continue
        try:
            fetch(name, split)
            print(data_home() / name / f"{split}.npz")
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
