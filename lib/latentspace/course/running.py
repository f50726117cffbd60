"""Run a chapter with papermill and keep the executed copy.

A parameter file is a YAML mapping; a bare file name is looked up in notebooks/params as well. The
copy is called after the run (see `latentspace.runs`), so that no run takes the place of another's.
"""

import ast
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import nbformat
import papermill
import yaml
from nbformat import NotebookNode

from latentspace import data, runs
from latentspace.course import chapters, kernels

__all__ = [
    "alone", "check_data_home", "execute", "load_parameters", "pack", "place", "read_yaml", "run",
    "typed", "unpacked",
]  # fmt: skip


class OnceEach(yaml.SafeLoader):
    """YAML in which a name may stand once, where PyYAML takes the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """Return the mapping that a YAML file holds; raises SystemExit if it holds none."""
    try:
        given = yaml.load(path.read_bytes(), Loader=OnceEach) or {}
    except yaml.YAMLError as error:
        hint = " (YAML indents with spaces, never with a tab)" if "\\t" in str(error) else ""
        raise SystemExit(f"{path} is not a YAML file in UTF-8: {error}{hint}") from error
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(given, dict):
        raise SystemExit(f"{path} must hold `name: value` lines")
    return given


def load_parameters(file: Path, defaults: Mapping[str, object]) -> dict[str, object]:
    """Return the file's parameters; raises SystemExit if one is unknown or of the wrong type."""
    file = Path(file).expanduser()
    path = next((p for p in (file, chapters.NOTEBOOKS / "params" / file) if p.is_file()), None)
    if path is None:
        raise SystemExit(f"There is no parameter file {file}")
    given = read_yaml(path)
    _refuse(f"{path}: ", chapters.complaints(given, defaults))
    return given


def typed(pairs: Iterable[tuple[str, str]], defaults: Mapping[str, object]) -> dict[str, object]:
    """Return parameters given as texts, as on a command line, with the types of their defaults.

    A value is read as Python or YAML, and is itself where the default is a text. Raises SystemExit
    if one is given twice, unknown, or of the wrong type.
    """
    given: dict[str, object] = {}
    for name, text in pairs:
        if name in given:
            raise SystemExit(f"-p {name} is given twice")
        given[name] = text if isinstance(defaults.get(name), str) else _value(text)
    _refuse("-p: ", chapters.complaints(given, defaults))
    return given


def _value(text: str) -> object:
    with suppress(ValueError, SyntaxError, TypeError):
        return ast.literal_eval(text.strip())
    with suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def _refuse(start: str, complaints: list[str]) -> None:
    if complaints:
        raise SystemExit("\n".join(f"{start}{complaint}" for complaint in complaints))


def place(chapter: str, parameters: Mapping[str, object], out: Path | None) -> Path:
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


def pack(*parts: str) -> dict[str, bytes]:
    """Return the project's files under these paths, by their path in the project."""
    paths = [chapters.ROOT / part for part in parts]
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(chapters.ROOT)): file.read_bytes() for file in files}


@contextmanager
def unpacked(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with these files for as long as this context lasts: a project of one's own.

    What a run inside it stores touches no other run's numbers.
    """
    with tempfile.TemporaryDirectory(prefix="project-") as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (Path(folder) / "notebooks").mkdir(exist_ok=True)
        yield Path(folder)


def execute(
    notebook: NotebookNode,
    out: Path,
    parameters: Mapping[str, object],
    cwd: Path,
    seconds: float | None = None,
    progress: bool = True,
) -> None:
    """Execute a notebook with these parameters in the folder `cwd`, and stop at its first error.

    No cell may take longer than `seconds`. Several threads may do this at once: papermill's own
    `cwd` would move them all. The kernel logs nothing, such as that it was stopped; what the
    notebook's code prints is in its outputs.
    """
    with tempfile.TemporaryDirectory() as folder, kernels.sockets() as config:
        source = Path(folder) / out.name
        nbformat.write(notebook, source)
        papermill.execute_notebook(
            source,
            out,
            parameters=dict(parameters),
            kernel_name="python3",
            progress_bar=progress,
            execution_timeout=seconds,
            extra_arguments=["--log-level=CRITICAL"],
            resources={"metadata": {"path": str(cwd)}},
            config=config,
        )


def run(
    chapter: str,
    params: Path | None = None,
    values: Iterable[tuple[str, str]] = (),
    out: Path | None = None,
) -> Path:
    """Execute the chapter's text and return the executed copy's path.

    `values` are parameters as texts, see `typed`; they go before those of the file `params`.

    Raises SystemExit, before anything runs, for an unknown chapter, a bad parameter, a data home
    that is not absolute, or an `out` that cannot be written or is another run's now.
    """
    notebook = chapters.to_run(chapter)
    defaults = chapters.parameters(notebook)
    given = load_parameters(params, defaults) if params else {}
    given |= typed(values, defaults)
    check_data_home()
    out = place(chapter, defaults | given, out)
    with alone(out):
        execute(notebook, out, given, chapters.NOTEBOOKS)
    return out
