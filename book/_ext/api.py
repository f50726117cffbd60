"""The directive ``{api}``: the library's public names with their docstrings.

Read from the source, not imported: the site is built without torch.
"""

import ast
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LIBRARY = Path(__file__).resolve().parents[2] / "lib" / "latentspace"

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Public(NamedTuple):
    """One public name: how it is called, and what its docstring says."""

    signature: str
    doc: str


def modules() -> list[Path]:
    """The files of all modules with public names, those that `import latentspace.x` gives."""
    found = [*LIBRARY.glob("*.py"), *LIBRARY.glob("*/__init__.py")]
    return sorted((path for path in found if exported(parse(path))), key=module_name)


def module_name(path: Path) -> str:
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`, sorted."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    return []


def public(path: Path) -> dict[str, Public]:
    """Name to signature and docstring; a class is followed by its methods, as "Class.method"."""
    tree, found = parse(path), {}
    for name in exported(tree):
        node, doc = definition(path, tree, name)
        found[name] = Public(signature(node, name), doc)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{name}.{part.name}": Public(signature(part, part.name), docstring(part))
                for part in node.body
                if isinstance(part, ast.FunctionDef)
                and not part.name.startswith("_")
                and docstring(part)
            }
    return found


def definition(path: Path, tree: ast.Module, name: str) -> tuple[Definition, str]:
    """Where a name comes from, here or in the module of the package that it is imported from."""
    for place, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node, docstring(node)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == name:
                return node, text_after(tree, place)
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            source = LIBRARY.parent.joinpath(*node.module.split("."))
            source = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
            return definition(source, parse(source), name)
    raise ValueError(f"{path} exports {name}, which it does not define")


def docstring(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""


def text_after(tree: ast.Module, place: int) -> str:
    """The string that follows an assignment, its docstring by custom."""
    following = tree.body[place + 1] if place + 1 < len(tree.body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return str(following.value.value)
    return ""


def signature(node: Definition, name: str) -> str:
    """As one would call it: arguments with their defaults, without self and types."""
    if isinstance(node, ast.ClassDef):
        init = [part for part in node.body if getattr(part, "name", "") == "__init__"]
        return signature(init[0], name) if init else name
    decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    if not isinstance(node, ast.FunctionDef) or "property" in decorators:
        return name
    arguments = ast.parse(ast.unparse(node)).body[0].args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    plain = ast.unparse(arguments)
    for first in ("self", "cls"):
        plain = plain.removeprefix(f"{first}, ").removeprefix(first)
    return f"{name}({plain.removeprefix('/, ')})"


class Api(SphinxDirective):
    """A section for each module, its names folded."""

    def run(self) -> list[nodes.Node]:
        return [self.section(path) for path in modules()]

    def section(self, path: Path) -> nodes.section:
        self.env.note_dependency(str(path))
        name, names = module_name(path), public(path)
        section = nodes.section(ids=[f"api-{name.replace('.', '-')}"], names=[name])
        first, _, more = docstring(parse(path)).partition("\n\n")
        section += nodes.title("", name.removeprefix("latentspace."))
        section += sentence(" ".join(first.split()))
        box = nodes.admonition(classes=["dropdown", "api"])
        count = sum("." not in known for known in names)
        box += nodes.title("", f"{count} public name" + "s" * (count > 1))
        if more:
            box += code(more)
        entries = nodes.definition_list()
        for known, entry in names.items():
            item = nodes.definition_list_item()
            owner = known.rpartition(".")[0]
            shown = f"{owner}.{entry.signature}" if owner else entry.signature
            item += nodes.term("", "", nodes.literal("", shown))
            item += nodes.definition("", code(entry.doc) if entry.doc else nodes.paragraph())
            entries += item
        box += entries
        section += box
        return section


def sentence(text: str) -> nodes.paragraph:
    """A paragraph whose `code` is set as such."""
    parts = text.replace("``", "`").split("`")
    kinds = (nodes.Text, lambda part: nodes.literal("", part))
    return nodes.paragraph("", "", *[kinds[i % 2](part) for i, part in enumerate(parts)])


def code(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="none")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
