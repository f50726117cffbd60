"""The tools behind the make targets, on a tiny chapter of their own."""

import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml

import address
import chapters
import notebooks
import run
import student

TINY = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A tiny chapter

```{code-cell} ipython3
:tags: [parameters]

scale = "published"
rate = 0.5
steps = 2
sizes = [1, 2]
```

```{code-cell} ipython3
print(scale, rate * steps)
```

```{code-cell} ipython3
:tags: [solution]

print("solved")
```
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A project with one chapter, 01_tiny, in place of the book's."""
    for folder in ("texts", "notebooks/params"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "TEXTS", tmp_path / "texts")
    monkeypatch.setattr(chapters, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "texts" / "01_tiny.md").write_text(TINY)
    return tmp_path


def printed(path):
    notebook = nbformat.read(path, as_version=4)
    streams = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.text for o in streams if o.get("name") == "stdout")


def edit(project, old, new):
    path = project / "texts" / "01_tiny.md"
    path.write_text(path.read_text().replace(old, new))


def test_parameters_are_read_from_their_cell():
    assert chapters.parameters(nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("a = 1\nb = [0.5, -2]", metadata={"tags": ["parameters"]})
    ])) == {"a": 1, "b": [0.5, -2]}  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [([], "0 cells"), (["a = 1", "b = 2"], "2 cells"), (["import os"], "not a plain assignment")],
)
def test_parameters_cell_must_be_one_and_plain(sources, complaint):
    cells = [nbformat.v4.new_code_cell(s, metadata={"tags": ["parameters"]}) for s in sources]
    with pytest.raises(ValueError, match=complaint):
        chapters.parameters(nbformat.v4.new_notebook(cells=cells))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rate: 1", None),
        ("sizes: [3]", None),
        ("extra: 5", None),
        ("rat: 1.0", "did you mean 'rate'"),
        ("rate: 1e-3", "1.0e-3"),
        ("steps: 2.5", "its default is 2"),
        ("steps: true", "its default is 2"),
        ("rate: null", "its default is 0.5"),
        ("sizes: [1, a]", "its default is [1, 2]"),
        ("sizes: 3", "its default is [1, 2]"),
    ],
)
def test_complaints(line, complaint):
    defaults = {"rate": 0.5, "steps": 2, "sizes": [1, 2], "extra": None}
    found = chapters.complaints(yaml.safe_load(line), defaults)
    assert bool(found) == bool(complaint)
    assert complaint is None or complaint in found[0]


def test_run_keeps_the_executed_copy(tiny):
    (tiny / "notebooks" / "params" / "01_tiny.smoke.yaml").write_text("scale: smoke\nsteps: 4\n")
    out = run.run("01_tiny")
    assert out == tiny / "_build" / "runs" / "01_tiny.ipynb"
    assert printed(out) == "published 1.0\nsolved\n"
    # A bare file name is found beside the notebooks.
    out = run.run("01_tiny", params=run.Path("01_tiny.smoke.yaml"), out=tiny / "x" / "copy.ipynb")
    assert printed(out) == "smoke 2.0\nsolved\n"


def test_own_parameters_never_pass_for_the_published_run(tiny):
    (tiny / "own.yaml").write_text("steps: 1\n")
    defaults = chapters.parameters(chapters.read("01_tiny"))
    assert run.load_parameters(tiny / "own.yaml", defaults) == {"scale": "custom", "steps": 1}


@pytest.mark.parametrize("text", ["stepz: 1\n", "steps: many\n", "just words\n"])
def test_run_refuses_a_bad_parameter_file(tiny, text):
    (tiny / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"bad\.yaml"):
        run.run("01_tiny", params=tiny / "bad.yaml")
    assert not (tiny / "_build").exists()


def test_run_names_the_chapters_that_there_are(tiny):
    with pytest.raises(SystemExit, match="01_tiny"):
        run.run("02_none")
    with pytest.raises(SystemExit, match="no parameter file"):
        run.run("01_tiny", params=tiny / "none.yaml")


def test_notebooks_executes_only_what_is_stale(tiny):
    path = tiny / "notebooks" / "01_tiny.ipynb"
    assert notebooks.update("01_tiny") == "is executed anew"
    first = path.read_bytes()
    assert printed(path) == "published 1.0\nsolved\n"
    assert notebooks.update("01_tiny") == "is up to date"
    assert path.read_bytes() == first

    edit(tiny, "# A tiny chapter", "# A small chapter")
    assert "outputs are kept" in notebooks.update("01_tiny")
    assert b"A small chapter" in path.read_bytes()
    assert printed(path) == "published 1.0\nsolved\n"

    edit(tiny, "steps = 2", "steps = 3")
    assert notebooks.update("01_tiny") == "is executed anew"
    assert printed(path) == "published 1.5\nsolved\n"


def test_notebooks_leaves_the_old_one_when_a_cell_fails(tiny):
    notebooks.update("01_tiny")
    path = tiny / "notebooks" / "01_tiny.ipynb"
    before = path.read_bytes()
    edit(tiny, "steps = 2", "steps = None")
    with pytest.raises(Exception, match="TypeError"):
        notebooks.update("01_tiny")
    assert path.read_bytes() == before
    assert [p.name for p in (tiny / "notebooks").iterdir() if p.is_file()] == ["01_tiny.ipynb"]


def test_two_executions_store_the_same_bytes(tiny):
    path = tiny / "notebooks" / "01_tiny.ipynb"
    notebooks.update("01_tiny")
    first = path.read_bytes()
    path.unlink()
    notebooks.update("01_tiny")
    assert path.read_bytes() == first


def test_student_version_has_no_solution(tiny):
    notebooks.update("01_tiny")
    path = student.student("01_tiny", tiny)
    assert b"solved" not in path.read_bytes()
    assert b"published" in path.read_bytes()


def test_address_changes_every_copy_of_it(tmp_path):
    old = address.current(chapters.ROOT)
    for name in ("_config.yml", "README.md", "CITATION.cff", "book/tools/setup_cell.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(chapters.ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    changed = address.change(tmp_path, "https://github.com/someone/a-fork")
    assert set(changed) == {"_config.yml", "README.md", "CITATION.cff", "book/tools/setup_cell.py"}
    assert address.current(tmp_path) == "https://github.com/someone/a-fork"
    for name in changed:
        text = (tmp_path / name).read_text()
        assert not any(form in text for form in address.forms(old))
        assert "someone" in text
    assert address.change(tmp_path, old) == changed
    for name in changed:
        assert (tmp_path / name).read_bytes() == (chapters.ROOT / name).read_bytes()


@pytest.mark.parametrize("url", ["", "a-fork", "https://gitlab.com/a/b", "https://github.com/a"])
def test_address_must_be_a_repository_on_github(url):
    with pytest.raises(SystemExit, match="Not an address"):
        address.forms(url)


def colab(monkeypatch, absent):
    """Run the set-up cell as in Colab with the modules `absent`, and return its pip calls."""
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr("subprocess.check_call", calls.append)
    monkeypatch.setattr("importlib.util.find_spec", lambda m: None if m in absent else object())
    exec((chapters.ROOT / "book" / "tools" / "setup_cell.py").read_text(), {})
    return [call[4:] for call in calls]


def test_setup_cell_installs_what_colab_lacks(monkeypatch):
    from latentspace import __version__

    library = ["--no-deps", f"git+{address.current(chapters.ROOT)}@v{__version__}"]
    assert colab(monkeypatch, []) == [["--quiet", *library]]
    assert colab(monkeypatch, ["umap", "mlxtend", "numpy", "torch"]) == [
        ["--quiet", *library],
        ["--quiet", "mlxtend", "umap-learn"],
    ]


def test_setup_cell_is_silent_elsewhere(monkeypatch, capfd):
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("installs something"))
    exec((chapters.ROOT / "book" / "tools" / "setup_cell.py").read_text(), {})
    assert capfd.readouterr() == ("", "")
