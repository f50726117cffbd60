"""What every chapter must hold to, and its smoke run."""

import ast
import os
import re
import resource
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import chapters
import contract
from chapters import code_cells as code
from chapters import stored
from latentspace import runs

NAMES = chapters.names()

SETUP = (chapters.ROOT / "book" / "tools" / "setup_cell.py").read_text().strip()
CPU_SECONDS = 45  # at most 15 s on a quiet machine, three times that on a shared one
WAIT = 500  # and then something hangs

each = pytest.mark.parametrize("name", NAMES)


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def parameter_files():
    return sorted((chapters.NOTEBOOKS / "params").iterdir())


def params(path):
    return yaml.safe_load(path.read_bytes()) or {}


def smoke(name):
    return params(chapters.NOTEBOOKS / "params" / f"{name}.smoke.yaml")


# The two notebooks of a chapter


@each
def test_contract(name):
    assert contract.breaches(name, contract.newest(name)) == []


@each
def test_a_lesson_and_its_evidence_come_together(name):
    other = name.removesuffix(chapters.EVIDENCE)
    assert {other, f"{other}{chapters.EVIDENCE}"} <= set(NAMES)


# The stored notebook


@each
def test_setup_cell_is_the_canonical_one(name):
    assert code(stored(name))[0].source == SETUP


@each
def test_one_parameters_cell_of_plain_values(name):
    assert "scale" not in chapters.parameters(stored(name)), "a run is named by its parameters"


def bound(source):
    """The names that a cell binds at its top level, blocks included and functions left out."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp
                            | ast.GeneratorExp):  # fmt: skip
            todo += ast.iter_child_nodes(node)
    return found


@each
def test_no_cell_changes_a_parameter(name):
    """Else `results.save(..., globals())` takes the published run for another."""
    notebook = stored(name)
    given = set(chapters.parameters(notebook))
    cells = [cell for cell in code(notebook) if "parameters" not in contract.tags(cell)]
    assert [(names, cell.source) for cell in cells if (names := bound(cell.source) & given)] == []


@each
def test_stored_numbers_are_those_of_the_stored_run(name):
    """Else the scoreboard shows a run that is not on the page, or what somebody wrote by hand."""
    import notebooks  # here, since Colab's packages, where `make colab` runs this file, lack its

    assert stored(name).metadata[notebooks.KEY]["records"] == notebooks.records(name)


@each
def test_stored_outputs_come_from_one_run_in_order(name):
    cells = code(stored(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each
def test_stored_outputs_hold_no_error_or_warning(name):
    bad = [
        o for o in outputs(stored(name)) if o.output_type == "error" or o.get("name") == "stderr"
    ]
    assert bad == []


class Pictures(HTMLParser):
    """Collects the text alternative of each picture: None for one that has none."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []  # `open`: (tag, whether it names all that is inside)
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        named = attrs.get("role") == "img"
        if tag == "img":
            self.found.append(attrs.get("alt"))
        elif named:
            self.found.append(attrs.get("aria-label"))
        elif tag in ("svg", "canvas") and "aria-hidden" not in attrs and not self.inside_named():
            self.found.append(None)
        self.open.append((tag, named))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def inside_named(self):
        return any(named for _, named in self.open)


def alternatives(notebook):
    found = re.findall(r"!\[([^]]*)\]\(", prose(notebook))
    found += Pictures(prose(notebook)).found
    for output in outputs(notebook):
        data = output.get("data", {})
        if "text/html" in data:
            found += Pictures(data["text/html"]).found
        elif any(kind.startswith("image/") for kind in data):
            found.append(None)  # a bare picture; `figures.show` gives it its alternative
    return found


@each
def test_each_figure_says_what_is_seen(name):
    found = alternatives(stored(name))
    assert found or chapters.is_evidence(name), "a chapter has a figure"
    assert [alt for alt in found if alt is None or len(alt.split()) < 5] == []


@each
def test_no_output_shows_a_path_of_the_author(name):
    shown = [line for output in outputs(stored(name)) for line in str(output).splitlines()]
    assert [line[:200] for line in shown if "PosixPath(" in line] == []


# Parameter files


@pytest.mark.parametrize("path", parameter_files(), ids=lambda path: path.name)
def test_parameter_file_names_known_parameters_and_a_run(path, monkeypatch):
    name, kind, ending = path.name.split(".")
    assert (name in NAMES, ending) == (True, "yaml")
    defaults = chapters.parameters(chapters.read(name))
    assert chapters.complaints(params(path), defaults) == []
    monkeypatch.chdir(chapters.ROOT)
    assert runs.run_name(name, defaults | params(path)) == kind


@each
def test_chapter_has_its_parameter_files(name):
    files = [path.name.split(".") for path in parameter_files()]
    kinds = {kind for chapter, kind, _ in files if chapter == name}
    assert kinds >= ({"smoke"} if chapters.is_evidence(name) else {"smoke", "paper"})


# The smoke run


def run_with_nbval(notebook, folder, timeout=WAIT):
    """Run every cell in a fresh kernel, without data or a network, and compare the marked outputs.

    Returns the completed pytest process, or None after `timeout` seconds.
    """
    path = folder / "copy.ipynb"
    nbformat.write(notebook, path)
    (folder / "data").mkdir()
    library, offline = chapters.ROOT / "lib", Path(__file__).parent / "offline"
    env = os.environ | {
        "LATENTSPACE_DATA": str(folder / "data"),
        "PYTHONPATH": os.pathsep.join([str(offline), str(library)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the others take two seconds to load
    }
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", folder, "-q", "-x"]
    nbval = ["-p", "nbval.plugin", "--nbval-lax", "--nbval-cell-timeout", str(timeout)]
    options = ["-p", "sockets", "--nbval-kernel-name", "python3", "-p", "no:cacheprovider"]
    # A socket's path has some hundred characters at most, and this test's folder has more.
    with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as runtime:
        try:
            return subprocess.run(
                [*command, *nbval, *options, path],
                env=env | {"JUPYTER_RUNTIME_DIR": runtime},
                cwd=folder, timeout=timeout, capture_output=True, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None


@pytest.mark.chapter
@pytest.mark.timeout(WAIT + 60)
@each
def test_smoke_run(name, tmp_path):
    notebook = load_notebook_node(str(chapters.NOTEBOOKS / f"{name}.ipynb"))
    assert any("# NBVAL_CHECK_OUTPUT" in cell.source for cell in code(notebook))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_with_nbval(parameterize_notebook(notebook, smoke(name)), tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done, f"the smoke run took more than {WAIT} s"
    assert done.returncode == 0, done.stdout + done.stderr
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}: smoke run in {spent:.1f} CPU s")
    assert spent < CPU_SECONDS
