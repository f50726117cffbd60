"""The command line of the course: `python -m latentspace.course --help`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import click
    import jupytext  # noqa: F401
    import papermill  # noqa: F401
except ImportError as error:
    print(f"This needs {error.name}: in the book's checkout, `make run` sets all of it up, "
          "and so does pip install -e '.[book]'", file=sys.stderr)  # fmt: skip
    raise SystemExit(2) from error

from latentspace.course import chapters, marks

__all__ = ["course", "main"]

FIRST = "02_deepkde"
"""The chapter that runs when none is named."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def course() -> None:
    """Run chapters of the book with other values, sweep over many, hand out, and check.

    \b
    python -m latentspace.course list                     the chapters
    python -m latentspace.course list 02_deepkde          a chapter's parameters
    python -m latentspace.course run 02_deepkde -p panel_n 500
    python -m latentspace.course sweep sweep.yaml --jobs 4
    python -m latentspace.course student handout
    python -m latentspace.course check handed-in --json marks.json

    Exit status: 0 if all went well, 1 if a run or a check failed, 2 if the request was refused
    before anything ran, 130 after Ctrl-C.
    """


@course.command("list", short_help="Show the chapters, or the parameters of one.")
@click.argument("chapter", nargs=-1)
@click.option("--results", is_flag=True, help="Also the records that its published run stores.")
def list_(chapter: tuple[str, ...], results: bool) -> None:
    """List the chapters with the minutes of their stored runs, or CHAPTER's parameters.

    \b
    python -m latentspace.course list
    python -m latentspace.course list 02_deepkde --results
    """
    if not chapter:
        rows = [("chapter", "minutes", "parameters", "title")]
        for name in chapters.names():
            notebook, minutes = chapters.read(name), chapters.minutes(name)
            count = len(chapters.parameters(notebook))
            rows.append((name, minutes, str(count), chapters.title(notebook)))
        click.echo(_columns(rows))
        click.echo("\nMinutes: of a processor, for the stored run. A run with CHAPTER.smoke.yaml "
                   "takes seconds.")  # fmt: skip
    for name in chapter:
        click.echo(_about(name))
        if results:
            click.echo("\n" + _records(name))


def _about(name: str) -> str:
    notebook = chapters.read(name)
    defaults = chapters.parameters(notebook)
    meanings = chapters.meanings(chapters.tagged(notebook, "parameters")[0].source)
    rows = [("parameter", "type", "default", "meaning")]
    rows += [(n, chapters.type_name(v), repr(v), meanings[n]) for n, v in defaults.items()]
    files = sorted((chapters.NOTEBOOKS / "params").glob(f"{name}.*.yaml"))
    minutes = chapters.minutes(name)
    return "\n".join([
        f"{name}: {chapters.title(notebook)}",
        f"stored run: {minutes} minutes of a processor",
        f"parameter files: {', '.join(path.name for path in files)}",
        "",
        _columns(rows),
    ])  # fmt: skip


def _records(name: str) -> str:
    from latentspace import results, runs

    path = chapters.ROOT / runs.where(name, "published")
    stored = results.read(path) if path.exists() else []
    heads = ("item", "row", "metric", "setting")
    return _columns([heads, *(tuple(str(r[key]) for key in heads) for r in stored)])


def _columns(rows: Sequence[tuple[str, ...]], most: int = 60) -> str:
    """Return rows as aligned columns; a cell that is longer than `most` ends in dots."""
    short = [[c if len(c) <= most else f"{c[: most - 1]}…" for c in row[:-1]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    return "\n".join(
        "  ".join([*map(str.ljust, cells, widths), row[-1]]).rstrip()
        for cells, row in zip(short, rows, strict=True)
    )


@course.command(short_help="Execute a chapter, with values of your own.")
@click.argument("chapter", required=False)
@click.option("-p", "--parameter", "values", nargs=2, multiple=True, metavar="NAME VALUE",
              help="A parameter's value; may be given several times.")  # fmt: skip
@click.option("-f", "--file", type=Path, help="A YAML file of parameters.")
@click.option("-o", "--out", type=Path, help="The executed copy (default: in _build/runs).")
def run(
    chapter: str | None, values: tuple[tuple[str, str], ...], file: Path | None, out: Path | None
) -> None:
    """Execute CHAPTER and print the path of the executed copy.

    Without CHAPTER it is chapter 02 on small embedded data, in less than a minute.

    \b
    python -m latentspace.course run
    python -m latentspace.course run 02_deepkde -f 02_deepkde.smoke.yaml
    python -m latentspace.course run 02_deepkde -p vote 1e-3 -p hidden "[64, 32]" -o mine.ipynb
    """
    from latentspace.course import running

    if chapter is None:
        if values or file:
            raise SystemExit("Say which chapter these parameters are for, such as 02_deepkde")
        chapter, file = FIRST, Path(f"{FIRST}.smoke.yaml")
        click.echo(f"No chapter is named, so {FIRST} runs on small embedded data.", err=True)
    try:
        click.echo(running.run(chapter, file, values, out))
    except papermill.PapermillExecutionError as error:
        click.echo(f"{chapter} failed: {error}", err=True)
        sys.exit(1)


@course.command(short_help="Execute a chapter with every combination of values.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--jobs", type=click.IntRange(1), help="Runs at once on this machine "
              "(default: one for each core).")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS", help="A dask scheduler, such as tcp://head:8786.")
@click.option("--out", type=Path, help="The folder of the runs (default: _build/sweeps/FILE).")
@click.option("--retry", is_flag=True, help="Run those that failed again.")
def sweep(
    file: Path, jobs: int | None, scheduler: str | None, out: Path | None, retry: bool
) -> None:
    """Run a chapter with every combination of values that FILE lists.

    A run that fails stops no other. After Ctrl-C, a crash or a power cut the same command goes on
    where it was. At the end stands a table; it is also kept, as table.csv, beside the copies.

    \b
    chapter: 05_neural_mixtures
    file: 05_neural_mixtures.smoke.yaml   # what all runs share
    values: {draws: 2}                    # more of it
    grid:
      batch: [32, 128]
    seeds: [0, 1, 2]                      # or 3, for just these
    results:                              # columns, by the fields of `list CHAPTER --results`
      ACC: {item: Fig. 4.4, metric: ACC}
    timeout: 600                          # seconds that a cell may take

    \b
    python -m latentspace.course sweep sweep.yaml --jobs 4
    python -m latentspace.course sweep sweep.yaml --scheduler tcp://head:8786
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise SystemExit("A sweep needs dask: pip install 'distributed'") from error
    from latentspace.course import running
    from latentspace.course import sweep as sweeping
    from latentspace.files import write_bytes

    plan = sweeping.plan(file)
    running.check_data_home()
    folder = (out or chapters.ROOT / "_build" / "sweeps" / file.stem).resolve()
    try:
        done = sweeping.go(plan, folder, scheduler, jobs or os.cpu_count() or 1, retry)
    except (KeyboardInterrupt, ConnectionError) as error:
        kept = len(list(folder.glob("*.json")))
        said = f"\nStopped with {kept} runs kept in {folder}; the same command goes on."
        click.echo(said, err=True)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        click.echo(str(error), err=True)
        sys.exit(1)
    write_bytes(folder / "table.csv", sweeping.csv_table(plan, done).encode())
    click.echo(sweeping.table(plan, done))
    click.echo(f"The copies and table.csv are in {folder}")
    if any(run["error"] for run in done):
        sys.exit(1)


@course.command(short_help="Write the chapters without solutions and outputs.")
@click.argument("folder", type=Path, metavar="DIR")
@click.argument("chapter", nargs=-1)
def student(folder: Path, chapter: tuple[str, ...]) -> None:
    """Write the chapters (or each CHAPTER) into DIR without solutions and outputs.

    \b
    python -m latentspace.course student handout
    python -m latentspace.course student handout 02_deepkde 05_neural_mixtures
    """
    if unknown := set(chapter) - set(chapters.names()):
        chapters.read(min(unknown))  # says which there are
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() == chapters.NOTEBOOKS.resolve():
        raise SystemExit(f"{folder} is where the book's own notebooks are: give another DIR")
    for name in chapter or chapters.names():
        click.echo(marks.student(name, folder))


@course.command(short_help="Say which self-checks pass in executed notebooks.")
@click.argument("folder", metavar="DIR",
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--json", "as_json", metavar="FILE", help="Write the marks as JSON, too; - prints "
              "them in place of the table.")  # fmt: skip
def check(folder: Path, as_json: str | None) -> None:
    """Say which self-checks pass in the executed notebooks in DIR and below it.

    A notebook is known as a chapter by its own note (those of `student` have one) or by its file
    name: alice/02_deepkde.ipynb, 02_deepkde_bob.ipynb. Nothing is executed.

    \b
    python -m latentspace.course check handed-in
    python -m latentspace.course check handed-in --json marks.json
    """
    found = marks.marks(folder)
    if not found:
        raise SystemExit(f"There is no notebook with self-checks in {folder}")
    text = json.dumps([each._asdict() for each in found], indent=1, ensure_ascii=False)
    if as_json == "-":
        click.echo(text)
    else:
        click.echo(marks.table(found))
        passed = sum(each.verdict == marks.PASSED for each in found)
        click.echo(f"\n{passed} of {len(found)} passed")
        if as_json:
            Path(as_json).write_text(text + "\n", encoding="utf-8")
    if any(each.verdict != marks.PASSED for each in found):
        sys.exit(1)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        status: Any = course.main(argv, prog_name="python -m latentspace.course",
                                  standalone_mode=False)  # fmt: skip
    except click.ClickException as error:
        error.show()
        given = sys.argv[1:] if argv is None else argv
        if given[:1] == ["run"]:
            click.echo("A value is given as -p NAME VALUE, such as -p panel_n 500", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return 130
    except SystemExit as refusal:
        if isinstance(refusal.code, str):
            click.echo(f"Error: {refusal.code}", err=True)
            return 2
        return refusal.code or 0
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
