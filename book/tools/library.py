"""Which of the library's modules a notebook's code leads to, and a fingerprint of them."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

import chapters

NAME = "latentspace"


def imported(source: str) -> Iterator[str]:
    """Yield the library's modules that a source names; what is no module among them is harmless."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(source: str, folder: Path) -> dict[str, Path]:
    """Return the modules that the source leads to, by name: the imported, and what they import."""
    found: dict[str, Path] = {}
    todo = list(imported(source))
    while todo:
        parts = todo.pop().split(".")
        if parts[0] != NAME:
            continue
        for length in range(1, len(parts) + 1):  # a package runs before its modules
            name, path = ".".join(parts[:length]), folder.joinpath(*parts[:length])
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if name not in found and path.is_file():
                found[name] = path
                todo += imported(path.read_text(encoding="utf-8"))
    return found


def code_of(path: Path) -> str:
    """Return a module's code without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return ast.unparse(tree)


def fingerprint(notebook: NotebookNode) -> str:
    """Return 12 hex characters that change with the code that the notebook leads to."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    digest = hashlib.sha256()
    for name, path in sorted(modules(source, chapters.ROOT / "lib").items()):
        digest.update(f"{name}\n{code_of(path)}\n".encode())
    return digest.hexdigest()[:12]


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
