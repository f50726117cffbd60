"""Which run of a chapter this is, and where the project keeps what it measured.

A run is named by its parameters, not by a label: one with the values that the chapter's text gives
is "published", one with those of ``notebooks/params/<chapter>.<name>.yaml`` is called by that name,
and any other is "custom-" and a hash of its parameters. So no run overwrites the numbers of
another. The project is the first folder from the working directory upwards with ``_config.yml``
and ``book``; outside it, as in Colab, nothing is kept.
"""

import ast
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from latentspace.files import write_bytes

__all__ = ["assignments", "kept", "name_of", "project_root", "run_name", "where", "write"]

_CHAPTER = re.compile(r"\d\d_[a-z0-9_]+")
_RUN = re.compile(r"[a-z]+|custom-[0-9a-f]{8}")
_CELL = re.compile(r"^```\{code-cell\}.*\n:tags: \[.*\bparameters\b.*\]\n((?s:.*?))^```$", re.M)


def project_root() -> Path | None:
    """The project's folder, or None outside it."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return folder
    return None


def run_name(chapter: str, parameters: Mapping[str, object]) -> str | None:
    """Name the run that has these parameters; None outside the project.

    ``parameters`` may hold other names too, as a notebook's ``globals()`` does. ValueError if the
    chapter has no text with a cell of parameters, if one of them is missing or no plain value, or
    if the parameter file has a name that no named run can have. (A file that cannot be read is
    passed over: no run can have come from it.)
    """
    root = project_root()
    return None if root is None else name_of(root, chapter, parameters)


def name_of(root: Path, chapter: str, parameters: Mapping[str, object]) -> str:
    """`run_name` in the project whose folder is ``root``."""
    published = _published(root, chapter)
    if missing := [name for name in published if name not in parameters]:
        raise ValueError(f"{chapter} has parameters that are not given: {', '.join(missing)}")
    text = _text({name: parameters[name] for name in published})
    if text == _text(published):
        return "published"
    for path in sorted((root / "notebooks" / "params").glob(f"{chapter}.*.yaml")):
        given = _given(path)
        if given is not None and text == _text(published | given):
            return _named(path, chapter)
    return f"custom-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def assignments(source: str) -> dict[str, object]:
    """The names and values in the source of a cell of parameters.

    ValueError unless each statement gives one name a value that is written out.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"the cell of parameters has bad syntax: {error}") from error
    values = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    values[name] = ast.literal_eval(value)
                except ValueError as error:
                    raise ValueError(f"the value of {name} is not written out") from error
            case _:
                raise ValueError(f"not a plain assignment: {ast.unparse(statement)}")
    return values


def _published(root: Path, chapter: str) -> dict[str, object]:
    path = root / "book" / "chapters" / f"{_checked(chapter)}.md"
    if not path.exists():
        raise ValueError(f"there is no chapter {chapter!r}: {path} is missing")
    cells = _CELL.findall(path.read_text(encoding="utf-8"))
    if len(cells) != 1:
        raise ValueError(f"{path} has {len(cells)} cells of parameters instead of one")
    return assignments(cells[0])


def _given(path: Path) -> dict[str, object] | None:
    import yaml  # the project's tools bring it; the library alone does without

    try:
        given = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError:
        return None
    return given if isinstance(given, dict) else None


def _named(path: Path, chapter: str) -> str:
    name = path.name.removeprefix(f"{chapter}.").removesuffix(".yaml")
    if name == "published" or not re.fullmatch("[a-z]+", name):
        raise ValueError(f"{path}: a named run's file is called {chapter}.NAME.yaml, NAME in small "
                         "letters and not 'published'")  # fmt: skip
    return name


def _text(values: Mapping[str, object]) -> str:
    """One text for equal values: a tuple counts as a list, 1.0 as 1, numpy's as Python's."""

    def plain(value: object) -> object:
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    texts = []
    for name in sorted(values):
        try:
            texts.append(f"{name}: {json.dumps(plain(values[name]), sort_keys=True)}")
        except TypeError as error:
            raise ValueError(f"{name} is no longer a plain value: {error}") from error
    return "\n".join(texts)


def where(chapter: str, run: str, ending: str = "json") -> str:
    """The path of a run's file within the project: in ``book/results``, custom ones in ``_build``.

    ValueError if the chapter's or run's name is malformed.
    """
    if not _RUN.fullmatch(run):
        raise ValueError(f"a run is named like 'published' or 'paper', not {run!r}")
    folder = "_build/results" if run.startswith("custom-") else "book/results"
    middle = "" if run == "published" else f".{run}"
    return f"{folder}/{_checked(chapter)}{middle}.{ending}"


def write(chapter: str, run: str | None, content: bytes, ending: str = "json") -> Path | None:
    """Keep ``content`` as a run's file and return its path; a smoke run (or None) keeps nothing."""
    root = project_root()
    if root is None or run in (None, "smoke"):
        return None
    path = root / where(chapter, run, ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes(path, content)


def kept(chapter: str, run: str, ending: str = "json") -> Path:
    """The path of a run's file; FileNotFoundError if it is not kept, or outside the project."""
    root = project_root()
    if root is None:
        raise FileNotFoundError(f"{Path.cwd()} is not in the project: no _config.yml beside book/")
    path = root / where(chapter, run, ending)
    if not path.exists():
        raise FileNotFoundError(f"that run is not stored: {path} is missing")
    return path


def _checked(chapter: str) -> str:
    if not _CHAPTER.fullmatch(chapter):
        raise ValueError(f"a chapter is named like '02_deepkde', not {chapter!r}")
    return chapter
