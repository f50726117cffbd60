"""Run one chapter with papermill and keep the executed copy: run.py CHAPTER [--params] [--out].

A parameter file is a YAML mapping; a bare file name is looked up in notebooks/params as well.
One that does not set `scale` runs as "custom", so that it never overwrites the published numbers.
"""

import argparse
import tempfile
from pathlib import Path

import nbformat
import papermill
import yaml

import chapters


def load_parameters(file: Path, defaults: dict[str, object]) -> dict[str, object]:
    """Return the file's parameters; raises SystemExit if one is unknown or of the wrong type."""
    path = next((p for p in (file, chapters.NOTEBOOKS / "params" / file) if p.is_file()), None)
    if path is None:
        raise SystemExit(f"There is no parameter file {file}")
    given = yaml.safe_load(path.read_text()) or {}
    if not isinstance(given, dict):
        raise SystemExit(f"{path} must hold `name: value` lines")
    if found := chapters.complaints(given, defaults):
        raise SystemExit("\n".join(f"{path}: {complaint}" for complaint in found))
    return {"scale": "custom", **given}


def run(chapter: str, params: Path | None = None, out: Path | None = None) -> Path:
    """Execute the chapter's text, stop at its first error, and return the executed copy's path."""
    notebook = chapters.read(chapter)
    defaults = chapters.parameters(notebook)
    given = load_parameters(params, defaults) if params else {}
    out = out or chapters.ROOT / "_build" / "runs" / f"{chapter}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{chapter}.ipynb"
        nbformat.write(notebook, source)
        papermill.execute_notebook(
            source, out, parameters=given, kernel_name="python3", cwd=chapters.NOTEBOOKS
        )
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run one chapter and keep the executed copy.")
    parser.add_argument("chapter", help="such as 02_deepkde")
    parser.add_argument("--params", type=Path, help="a YAML file of parameters")
    parser.add_argument("--out", type=Path, help="the executed copy (default: in _build/runs)")
    print(run(**vars(parser.parse_args())))
