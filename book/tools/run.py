"""Run one chapter with papermill and keep the executed copy: run.py CHAPTER [--params] [--out].

A parameter file is a YAML mapping; a bare file name is looked up in notebooks/params as well. The
copy is called after the run (see `latentspace.runs`), so that no run takes the place of another's.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import nbformat
import papermill
import yaml
from nbformat import NotebookNode

import chapters
import kernels
from latentspace import data, runs


class OnceEach(yaml.SafeLoader):
    """YAML in which a name may stand once, where PyYAML takes the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_parameters(file: Path, defaults: dict[str, object]) -> dict[str, object]:
    """Return the file's parameters; raises SystemExit if one is unknown or of the wrong type."""
    file = file.expanduser()
    path = next((p for p in (file, chapters.NOTEBOOKS / "params" / file) if p.is_file()), None)
    if path is None:
        raise SystemExit(f"There is no parameter file {file}")
    try:
        given = yaml.load(path.read_bytes(), Loader=OnceEach) or {}
    except yaml.YAMLError as error:
        hint = " (YAML indents with spaces, never with a tab)" if "\\t" in str(error) else ""
        raise SystemExit(f"{path} is not a YAML file in UTF-8: {error}{hint}") from error
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(given, dict):
        raise SystemExit(f"{path} must hold `name: value` lines")
    if found := chapters.complaints(given, defaults):
        raise SystemExit("\n".join(f"{path}: {complaint}" for complaint in found))
    return given


def place(chapter: str, parameters: dict[str, object], out: Path | None) -> Path:
    """Return the path of the executed copy; raises SystemExit if no notebook can be there."""
    if out is None:
        run = runs.name_of(chapters.ROOT, chapter, parameters)
        middle = "" if run == "published" else f".{run}"
        out = chapters.ROOT / "_build" / "runs" / f"{chapter}{middle}.ipynb"
    out = out.expanduser().resolve()
    if out.is_dir() or out.suffix != ".ipynb":
        raise SystemExit(f"OUT must name a notebook, such as {out / 'copy.ipynb'}, not {out}")
    if out.parent == chapters.NOTEBOOKS.resolve():
        raise SystemExit(f"{out} is where the book's own notebooks are: give another OUT")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{out.parent} cannot be made: {error.strerror}") from error
    return out


def check_data_home() -> None:
    """Raise SystemExit if the data home is a path that the notebook would read in another way."""
    try:
        data.data_home()
    except ValueError as error:
        raise SystemExit(str(error)) from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Within it no other run writes to `out`; raises SystemExit if one does already."""
    folder = chapters.ROOT / "_build" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{hashlib.sha256(bytes(out)).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SystemExit(f"Another run is writing to {out}: give this one its own OUT") from None
    try:
        yield
    finally:
        lock.release()


def execute(notebook: NotebookNode, out: Path, parameters: dict[str, object], cwd: Path) -> None:
    """Execute a notebook with these parameters in the folder `cwd`, and stop at its first error."""
    with tempfile.TemporaryDirectory() as folder, kernels.sockets() as config:
        source = Path(folder) / out.name
        nbformat.write(notebook, source)
        papermill.execute_notebook(
            source, out, parameters=parameters, kernel_name="python3", cwd=cwd, config=config
        )


def run(chapter: str, params: Path | None = None, out: Path | None = None) -> Path:
    """Execute the chapter's text and return the executed copy's path.

    Raises SystemExit, before anything runs, for an unknown chapter, a bad parameter file, a data
    home that is not absolute, or an `out` that cannot be written or is another run's now.
    """
    notebook = chapters.to_run(chapter)
    defaults = chapters.parameters(notebook)
    given = load_parameters(params, defaults) if params else {}
    check_data_home()
    out = place(chapter, defaults | given, out)
    with alone(out):
        execute(notebook, out, given, chapters.NOTEBOOKS)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run one chapter and keep the executed copy.")
    parser.add_argument("chapter", help="such as 02_deepkde")
    parser.add_argument("--params", type=Path, help="a YAML file of parameters")
    parser.add_argument("--out", type=Path, help="the executed copy (default: in _build/runs)")
    print(run(**vars(parser.parse_args())))
