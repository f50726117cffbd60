"""One chapter with many values: a sweep that can be stopped at any time and goes on.

A sweep is a YAML file::

    chapter: 02_deepkde
    file: 02_deepkde.smoke.yaml     # optional: a parameter file that all runs share
    values: {panel_n: 200}          # optional: values that all runs share
    grid:                           # every combination is a run
      vote: [1.0e-6, 1.0]
      hidden: [[32], [64, 32]]
    seeds: 5                        # optional: 0 to 4, or a list; goes to `seed` and `seeds`
    results:                        # optional: columns of the table, each one of a run's records
      ACC: {row: after, metric: accuracy}
    timeout: 600                    # optional: seconds that a cell may take

Each run is executed by dask in a project of its own, so that it touches no stored number, and is
kept as one file as soon as it ends. What is kept is not run again.
"""

import contextvars
import csv
import hashlib
import io
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import psutil
from nbformat import NotebookNode
from tqdm import tqdm

from latentspace import results, runs
from latentspace.course import chapters, running
from latentspace.files import write_bytes

__all__ = ["Plan", "csv_table", "go", "plan", "table", "work"]

KEYS = {"chapter", "file", "values", "grid", "seeds", "results", "timeout"}
FIELDS = ("document", "item", "row", "metric", "setting")

Run = dict[str, Any]
"""What is kept of a run: name, values, error (None if it went well), seconds, records, machine."""


class Plan(NamedTuple):
    """A sweep that can be run: nothing in it is unknown to its chapter."""

    chapter: str
    notebook: NotebookNode
    values: dict[str, dict[str, object]]
    """The parameters of each run, by its name."""
    varied: list[str]
    """The parameters that differ from run to run."""
    wanted: dict[str, dict[str, str]]
    """The columns of results."""
    timeout: float | None


def plan(path: Path) -> Plan:
    """Read the file of a sweep; raises SystemExit, with all that is wrong, before anything runs."""
    given = running.read_yaml(path)
    if unknown := set(given) - KEYS:
        raise SystemExit(f"{path}: unknown {', '.join(map(repr, unknown))}; "
                         f"there are {', '.join(sorted(KEYS))}")  # fmt: skip
    chapter = str(given.get("chapter", ""))
    notebook = chapters.to_run(chapter)
    defaults = chapters.parameters(notebook)
    shared: dict[str, object] = {}
    if file := given.get("file"):
        beside = path.parent / str(file)
        shared |= running.load_parameters(
            beside if beside.is_file() else Path(str(file)), defaults
        )
    shared |= _mapping(path, given, "values")
    axes = _axes(path, given, defaults)
    found, values = [], {}
    for combination in itertools.product(*axes):
        own = {name: value for part in combination for name, value in part.items()}
        found += chapters.complaints(shared | own, defaults)
        values[_name(chapter, notebook, defaults | shared | own)] = shared | own
    wanted = _mapping(path, given, "results")
    for column, fields in wanted.items():
        if not isinstance(fields, dict) or not fields or set(fields) - set(FIELDS):
            found.append(f"result {column!r} names a record by some of {', '.join(FIELDS)}, as in "
                         "{item: Fig. 4.4, metric: ACC}")  # fmt: skip
    timeout = given.get("timeout")
    if not isinstance(timeout, int | float | None) or (timeout is not None and timeout <= 0):
        found.append(f"timeout is a number of seconds, not {timeout!r}")
    if found:
        raise SystemExit("\n".join(f"{path}: {each}" for each in dict.fromkeys(found)))
    varied = [next(iter(axis[0])) for axis in axes]
    return Plan(chapter, notebook, values, varied, wanted, timeout)


def _mapping(path: Path, given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key) or {}
    if not isinstance(value, dict):
        raise SystemExit(f"{path}: {key} must hold `name: value` lines")
    return value


def _axes(
    path: Path, given: Mapping[str, Any], defaults: Mapping[str, object]
) -> list[list[dict[str, object]]]:
    """Return what varies, one list of settings an axis; the seeds come last."""
    axes: list[list[dict[str, object]]] = []
    for name, choices in _mapping(path, given, "grid").items():
        if not isinstance(choices, list) or not choices:
            raise SystemExit(f"{path}: grid: {name} needs a list of values, not {choices!r}")
        axes.append([{name: choice} for choice in choices])
    seeds = given.get("seeds")
    if seeds is not None:
        seeds = list(range(seeds)) if type(seeds) is int else seeds
        if not isinstance(seeds, list) or not seeds:
            raise SystemExit(f"{path}: seeds is a number of them, or a list, not {seeds!r}")
        forms = {"seed": lambda s: s, "seeds": lambda s: [s]}
        known = [name for name in forms if name in defaults]
        if not known:
            raise SystemExit(f"{path}: the chapter has neither seed nor seeds; see its parameters")
        axes.append([{name: forms[name](s) for name in known} for s in seeds])
    named = [name for axis in axes for name in axis[0]]
    named += _mapping(path, given, "values")
    if twice := {name for name in named if named.count(name) > 1}:
        raise SystemExit(f"{path}: {', '.join(sorted(twice))} given twice")
    return axes


def _name(chapter: str, notebook: NotebookNode, values: Mapping[str, object]) -> str:
    """Name a run by its chapter, its parameters and the chapter's code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = json.dumps([chapter, code, values], sort_keys=True, default=str)
    return f"{chapter}.{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# The work, on whatever machine


def work(
    files: Mapping[str, bytes],
    text: str,
    chapter: str,
    values: Mapping[str, object],
    timeout: float | None = None,
) -> Run:
    """Execute the notebook `text` in a project with `files`, and return what came of it.

    The machine needs the library with its extra `book`, and no checkout of the book.
    """
    notebook = nbformat.reads(text, as_version=4)
    parameters = chapters.parameters(notebook) | dict(values)
    with running.unpacked(files) as project:
        kept = project / runs.where(chapter, runs.name_of(project, chapter, parameters))
        kept.unlink(missing_ok=True)  # what is there afterwards comes from this run
        out = project / "copy.ipynb"
        start, error = time.perf_counter(), None
        try:  # in a context of its own: dask copies its own to all threads, and its event loop
            contextvars.Context().run(
                running.execute, notebook, out, values, project / "notebooks", timeout, False
            )
        except Exception as caught:
            error = _reason(caught)
        return {
            "values": dict(values),
            "error": error,
            "seconds": round(time.perf_counter() - start, 1),
            "records": results.read(kept) if kept.exists() and not error else [],
            "machine": platform.node(),
            "copy": out.read_text(encoding="utf-8") if out.exists() else "",
        }


def _reason(error: Exception) -> str:
    """Say in a line why a run failed."""
    name = getattr(error, "ename", None) or type(error).__name__
    said = str(getattr(error, "evalue", None) or error).strip()
    line = said.splitlines()[0] if said else ""
    return f"{name}: {line}"[:300]


# The sweep


def go(
    plan: Plan, folder: Path, scheduler: str | None = None, jobs: int = 1, retry: bool = False
) -> list[Run]:
    """Run what is not kept in `folder` yet, and return all runs in the plan's order.

    They run on the dask `scheduler` of that address, else `jobs` at once on this machine. With
    `retry`, those that failed are run again. KeyboardInterrupt leaves what has ended; a lost
    scheduler raises ConnectionError and does so too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with running.alone(folder):
        kept = {name: run for name in plan.values if (run := _kept(folder, name))}
        if retry:
            kept = {name: run for name, run in kept.items() if not run["error"]}
        todo = [name for name in plan.values if name not in kept]
        bar = tqdm(total=len(plan.values), initial=len(kept), unit="run", file=sys.stderr)
        with bar, closing(_ended(plan, todo, scheduler, jobs)) as ended:
            for name, run in ended:
                kept[name] = _keep(folder, name, run)
                bar.set_postfix(failed=sum(bool(r["error"]) for r in kept.values()))
                bar.update()
        return [kept[name] for name in plan.values]


def _ended(
    plan: Plan, todo: Sequence[str], scheduler: str | None, jobs: int
) -> Generator[tuple[str, Run], None, None]:
    """Yield the runs in the order in which they end."""
    if not todo:
        return
    from distributed import as_completed  # takes seconds

    with _client(scheduler, jobs) as client:
        # No parameter files: a run is known by its values, not as "smoke", which keeps no numbers.
        files = running.pack("_config.yml", f"book/chapters/{plan.chapter}.md", "book/results")
        sent = client.scatter(files, broadcast=True)
        text = nbformat.writes(plan.notebook)
        futures = {
            client.submit(work, sent, text, plan.chapter, plan.values[name], plan.timeout,
                          key=f"{name}-{os.getpid()}", pure=False): name
            for name in todo
        }  # fmt: skip
        try:
            for future in as_completed(list(futures)):
                yield futures[future], _result(future, plan.values[futures[future]])
                future.release()
        except BaseException:  # stopped: what waits is not begun
            client.cancel(list(futures))
            raise


def _result(future: Any, values: dict[str, object]) -> Run:
    if future.status == "finished":
        return future.result()
    if future.status == "error":  # the worker was lost, say, for want of memory
        return {"values": values, "error": _reason(future.exception()), "seconds": None,
                "records": [], "machine": "", "copy": ""}  # fmt: skip
    raise ConnectionError(f"the scheduler is gone: {future.status}")


@contextmanager
def _client(scheduler: str | None, jobs: int) -> Iterator[Any]:
    """A dask client; without a scheduler's address, of one that lives in this process.

    There the runs wait in threads, since each has a process of its own, its kernel.
    """
    from distributed import Client

    if scheduler:
        try:
            client = Client(scheduler, timeout=15)
        except (OSError, ValueError) as error:
            raise SystemExit(f"No dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    before = set(psutil.Process().children())
    with Client(processes=False, n_workers=1, threads_per_worker=jobs, memory_limit=0,
                dashboard_address="127.0.0.1:0") as client:  # fmt: skip
        try:
            yield client
        except BaseException:  # stopped: the kernels end, so the threads that wait for them do too
            for child in set(psutil.Process().children()) - before:
                child.kill()
            raise


def _keep(folder: Path, name: str, run: Run) -> Run:
    """Write the executed copy, and then the run's file: with it the run is done."""
    write_bytes(folder / f"{name}.ipynb", run.pop("copy").encode())
    run = {"name": name, **run}
    write_bytes(folder / f"{name}.json", json.dumps(run, indent=1).encode())
    return run


def _kept(folder: Path, name: str) -> Run | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else None


# Its table


def _cells(plan: Plan, run: Run) -> list[Any]:
    values = [run["values"].get(name) for name in plan.varied]
    status = "failed" if run["error"] else "done"
    return [*values, status, run["seconds"], *(_chosen(run, w) for w in plan.wanted.values())]


def _chosen(run: Run, wanted: Mapping[str, str]) -> float | str | None:
    """Return the mean of the one record that has the wanted fields, or how many have them."""
    fits = [r for r in run["records"] if all(r[key] == value for key, value in wanted.items())]
    if len(fits) == 1:
        return fits[0]["mean"]
    return None if run["error"] else f"{len(fits)} records"


def _heads(plan: Plan) -> list[str]:
    return [*plan.varied, "status", "seconds", *plan.wanted]


def table(plan: Plan, all_runs: Sequence[Run]) -> str:
    """Return the runs as a table for a terminal, with the reasons of those that failed below."""
    cells = [_heads(plan), *(_cells(plan, run) for run in all_runs)]
    rows = [[_text(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    bad = [run for run in all_runs if run["error"]]
    lines += ["", f"{len(all_runs) - len(bad)} done, {len(bad)} failed"]
    for run in bad:
        own = ", ".join(f"{name}={run['values'].get(name)}" for name in plan.varied)
        lines.append(f"  {run['name']} ({own}): {run['error'][:100]}")
    return "\n".join(lines)


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1e4 else f"{cell:.0f}"
    return "" if cell is None else str(cell)


def csv_table(plan: Plan, all_runs: Sequence[Run]) -> str:
    """Return the runs as a table in CSV, with the name of each one's copy, and why it failed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *_heads(plan), "error"])
    writer.writerows([r["name"], *_cells(plan, r), r["error"]] for r in all_runs)
    return text.getvalue()
