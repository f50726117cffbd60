"""The tools behind the make targets, on a tiny chapter of their own."""

import os
import re
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_client.connect import LocalPortCache

import address
import chapters
import colab
import library
import notebooks
import rerun
from latentspace import __version__, results
from latentspace.course import kernels, running


def named(project, name, text):
    path = project / "notebooks" / "params" / f"01_tiny.{name}.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def printed(path):
    notebook = nbformat.read(path, as_version=4)
    streams = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.text for o in streams if o.get("name") == "stdout")


def edit(project, old, new):
    path = project / "book" / "chapters" / "01_tiny.md"
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


def test_lessons_and_evidence(tiny):
    text = (tiny / "book" / "chapters" / "01_tiny.md").read_text()
    for name in ("02_other_evidence", "02_other", "10_last"):
        (tiny / "book" / "chapters" / f"{name}.md").write_text(text)
    assert chapters.names() == ["01_tiny", "02_other", "02_other_evidence", "10_last"]
    assert chapters.lessons() == ["01_tiny", "02_other", "10_last"]


# Runs


def test_run_keeps_a_copy_named_after_the_run(tiny):
    """Two runs of a chapter had one file: the second took the place of the first."""
    named(tiny, "smoke", "steps: 4\nword: smoke\n")
    (tiny / "own.yaml").write_text("steps: 6")
    first = running.run("01_tiny")
    assert first == tiny / "_build" / "runs" / "01_tiny.ipynb"
    # A bare file name is found beside the notebooks.
    smoke = running.run("01_tiny", params=Path("01_tiny.smoke.yaml"))
    assert smoke.name == "01_tiny.smoke.ipynb"
    own = running.run("01_tiny", params=tiny / "own.yaml")
    assert own.name.startswith("01_tiny.custom-")
    for path, text in ((first, "published 1.0"), (smoke, "smoke 2.0"), (own, "published 3.0")):
        assert printed(path) == f"{text}\nsolved\n"


def test_two_runs_at_once_do_not_share_a_copy(tiny):
    """The second is refused in words before it starts; with an OUT of its own it runs."""
    out = tiny / "copy.ipynb"
    with running.alone(out):
        with pytest.raises(SystemExit, match="Another run is writing to .*copy.ipynb"):
            running.run("01_tiny", out=out)
        assert not out.exists()
        assert running.place("01_tiny", {}, tiny / "x" / "two.ipynb") == tiny / "x" / "two.ipynb"
    assert printed(running.run("01_tiny", out=out)) == "published 1.0\nsolved\n"
    assert sorted(path.name for path in tiny.glob("*")) == [
        "_build", "_config.yml", "book", "copy.ipynb", "notebooks", "x"]  # fmt: skip


def test_only_one_of_two_threads_gets_the_copy(tiny):
    got, entered, leave = [], threading.Barrier(2), threading.Event()

    def enter():
        entered.wait()
        try:
            with running.alone(tiny / "copy.ipynb"):
                got.append("in")
                leave.wait(10)
        except SystemExit:
            got.append("refused")
            leave.set()

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["in", "refused"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 1\n", "did you mean 'steps'"),
        ("steps: many\n", "its default is 2"),
        ("just words\n", "`name: value` lines"),
        ("- steps\n", "`name: value` lines"),
        ("steps: 1\n\trate: 2\n", "not a YAML file"),
        ("steps:\n\t- 1\n", "never with a tab"),
        ("steps: [1,\n", "line 2"),
        ("word: caf\xe9\n".encode("latin-1"), "UTF-8"),
        (b"\x00\x01\x02", "UTF-8"),
        ("steps: 1\nsteps: 2\n", "'steps' twice"),
        ("!!python/object/apply:os.getcwd []\n", "not a YAML file"),
    ],
)
def test_run_refuses_a_bad_parameter_file_in_words(tiny, text, words):
    path = tiny / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as caught:
        running.run("01_tiny", params=path)
    assert "bad.yaml" in str(caught.value)
    assert words in str(caught.value)
    assert not (tiny / "_build").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_parameter_file_may_come_from_any_editor(tiny, encoding):
    path = tiny / "own.yaml"
    path.write_bytes("steps: 4\r\nword: café\r\n".encode(encoding))
    defaults = chapters.parameters(chapters.read("01_tiny"))
    assert running.load_parameters(path, defaults) == {"steps": 4, "word": "café"}


@pytest.mark.parametrize("name", ["02_none", "../intro", "../chapters/01_tiny", "", "01_tiny.md"])
def test_run_names_the_chapters_that_there_are(tiny, name):
    (tiny / "book" / "intro.md").write_text("# No chapter\n")
    with pytest.raises(SystemExit, match="There is no chapter .*01_tiny"):
        running.run(name)


def test_run_names_a_missing_parameter_file(tiny):
    for path in (tiny / "none.yaml", tiny):
        with pytest.raises(SystemExit, match="no parameter file"):
            running.run("01_tiny", params=path)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (".", "must name a notebook"),
        ("book", "must name a notebook"),
        ("copy", "must name a notebook"),
        ("copy.html", "must name a notebook"),
        ("notebooks/01_tiny.ipynb", "the book's own notebooks"),
        ("_config.yml/copy.ipynb", "cannot be made"),
    ],
)
def test_run_refuses_an_out_that_is_no_place_for_a_notebook(tiny, out, words):
    with pytest.raises(SystemExit, match=words):
        running.run("01_tiny", out=tiny / out)


def test_run_refuses_a_relative_data_home_before_it_starts(tiny, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", "data")
    with pytest.raises(SystemExit, match="absolute"):
        running.run("01_tiny")
    assert not (tiny / "_build").exists()


@pytest.mark.parametrize("value", ["my file.yaml", "a'b\"c.yaml", "$$HOME;`x`&.yaml"])
def test_make_hands_on_whatever_characters_it_is_given(tmp_path, value):
    """The recipes run in a folder whose python prints its arguments."""
    shutil.copy(chapters.ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nfor each in "$@"; do echo "[$each]"; done\n')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "book.stamp").touch()

    # Under `make test` this make must not take itself for a part of that one.
    env = {name: was for name, was in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def made(*arguments):
        done = subprocess.run(
            ["make", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    plain = value.replace("$$", "$")
    course = ["[-m]", "[latentspace.course]"]
    assert made("run", "CHAPTER=01_tiny", f"PARAMS={value}", f"OUT=x {value}") == [
        *course, "[run]", "[01_tiny]", "[--file]", f"[{plain}]", "[--out]", f"[x {plain}]",
    ]  # fmt: skip
    assert made("run", "CHAPTER=../in tro") == [*course, "[run]", "[../in tro]"]
    assert made("run") == [*course, "[run]"]
    assert made("sweep", f"FILE={value}", "JOBS=3") == [
        *course, "[sweep]", f"[{plain}]", "[--jobs]", "[3]"]  # fmt: skip
    assert made("student") == [*course, "[student]", "[_build/student]"]
    assert made("rerun", "CHAPTER=01_tiny", "NAME=long") == [
        "[book/tools/rerun.py]", "[01_tiny]", "[--name]", "[long]"]  # fmt: skip
    assert made("notebooks") == ["[book/tools/notebooks.py]"]


# Runs again

MEASURES = """
```{code-cell} ipython3
from latentspace import results

keep = results.Recorder("01_tiny", "Paper")
keep(item="Table 1", row="ours", metric="accuracy", ours=[rate, rate + 0.1])
keep(item="Table 1", row="ours", metric="parameters", ours=steps)
keep(item="Table 1", row="ours", metric="training (s)", ours=rate)
print(keep.save(globals()))
```
"""


@pytest.fixture
def measured(tiny, monkeypatch):
    """The tiny chapter with stored numbers of its published run and of a named one."""
    path = tiny / "book" / "chapters" / "01_tiny.md"
    path.write_text(path.read_text() + MEASURES)
    named(tiny, "long", "rate: 0.75\n")
    cell = MEASURES.split("ipython3\n")[1].split("print")[0]
    monkeypatch.chdir(tiny)
    for rate in (0.5, 0.75):
        values = {"word": "published", "rate": rate, "steps": 2, "sizes": [1, 2]}
        exec(f"{cell}keep.save(globals())", values)
    return tiny


def results_of(project):
    return {path: path.read_bytes() for path in (project / "book" / "results").iterdir()}


def test_rerun_runs_anew_and_leaves_what_is_stored(measured):
    stored = results_of(measured)
    assert len(stored) == 2
    rows = rerun.rerun("01_tiny", "long")
    assert [row.verdict for row in rows] == ["agrees", "agrees", "of the machine"]
    assert rows[0] == ("Table 1 | ours | accuracy", "0.800 ± 0.071", "0.800 ± 0.071",
                       "+0.00 spreads", "agrees")  # fmt: skip
    assert results_of(measured) == stored
    copy = measured / "_build" / "runs" / "01_tiny.rerun.long.ipynb"
    assert "published 1.5" in printed(copy)


def test_rerun_compares_with_nothing_old(measured):
    """A run that keeps nothing does not pass for one that agrees with the stored numbers."""
    edit(measured, "print(keep.save(globals()))", "")
    with pytest.raises(SystemExit, match="kept no numbers"):
        rerun.rerun("01_tiny")


def test_rerun_exits_with_its_verdict(measured, monkeypatch, capsys):
    new = results.load("01_tiny")
    monkeypatch.setattr(rerun, "again", lambda chapter, name: new)
    assert rerun.main(["01_tiny"]) == 0
    assert "2 of 2 rows agree" in capsys.readouterr().out
    path = measured / "book" / "results" / "01_tiny.json"
    path.write_text(path.read_text().replace('"mean": 0.55', '"mean": 0.7'))
    assert rerun.main(["01_tiny"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"-2\.12 spreads +DIFFERS", told)
    assert "1 of 2 rows agree: within 1 stored standard deviation" in told


def test_rerun_says_what_cannot_be_compared(measured):
    for name in ("none", "published"):
        (measured / "book" / "results" / "01_tiny.json").unlink(missing_ok=True)
        with pytest.raises(SystemExit, match="No numbers of that run are stored"):
            rerun.rerun("01_tiny", name)
    with pytest.raises(SystemExit, match="a run is named"):
        rerun.rerun("01_tiny", "../x")
    with pytest.raises(SystemExit, match="There is no chapter"):
        rerun.rerun("../01_tiny")


def number(mean, std=None, metric="accuracy", item="T"):
    entry = results.record(document="D", item=item, row="r", metric=metric, ours=1)
    return {**entry, "mean": mean, "std": std}


@pytest.mark.parametrize(
    ("old", "new", "difference", "verdict"),
    [
        (number(0.9, 0.02), number(0.919, 0.5), "+0.95 spreads", "agrees"),
        (number(0.9, 0.02), number(0.879), "-1.05 spreads", "DIFFERS"),
        (number(1000, 0.1), number(1000.9), "+9.00 spreads", "agrees"),  # rounding
        (number(1), number(0.994), "-0.60%", "agrees"),
        (number(1, 0), number(0.98), "-2.00%", "DIFFERS"),
        (number(0), number(0), "0", "agrees"),
        (number(0), number(1e-9), "+100.00%", "DIFFERS"),
        (number(-2), number(2), "+200.00%", "DIFFERS"),
        *[(number(3, metric=metric), number(9, metric=metric), "+66.67%", "of the machine")
          for metric in ("fit (s)", "CPU s", "ms an image", "microseconds", "memory (GiB)")],
        (number(3, item="time of a path"), number(9, item="time of a path"), "+66.67%",
         "of the machine"),
        (number(3, metric="a sample's h"), number(9, metric="a sample's h"), "+66.67%", "DIFFERS"),
        (number(1), None, "", "NOT MEASURED"),
        (None, number(1), "", "NOT STORED"),
    ],
)  # fmt: skip
def test_tolerance(old, new, difference, verdict):
    (row,) = rerun.compare([old] if old else [], [new] if new else [])
    assert (row.difference, row.verdict) == (difference, verdict)


# Notebooks


def test_notebooks_executes_only_what_is_stale(tiny):
    path = tiny / "notebooks" / "01_tiny.ipynb"
    assert notebooks.update("01_tiny") == "is executed anew"
    first = path.read_bytes()
    assert printed(path) == "published 1.0\nsolved\n"
    assert 0 < nbformat.read(path, as_version=4).metadata["latentspace"]["minutes"] < 1
    assert notebooks.update("01_tiny") == "is up to date"
    assert path.read_bytes() == first

    edit(tiny, "# A tiny chapter", "# A small chapter")
    assert "outputs are kept" in notebooks.update("01_tiny")
    assert b"A small chapter" in path.read_bytes()
    assert printed(path) == "published 1.0\nsolved\n"

    edit(tiny, "steps = 2", "steps = 3")
    assert notebooks.update("01_tiny") == "is executed anew"
    assert printed(path) == "published 1.5\nsolved\n"


def test_notebooks_keeps_outputs_whatever_form_the_prose_has(tiny):
    """As when the stored notebook held the text's own MyST."""
    notebooks.update("01_tiny")
    path = tiny / "notebooks" / "01_tiny.ipynb"
    first, raw = path.read_bytes(), chapters.executed("01_tiny")
    raw.cells[0].source = ":::{note}\nAs it stood in the text.\n:::"
    notebooks.write(raw, path)
    assert "outputs are kept" in notebooks.update("01_tiny")
    kept = chapters.stored("01_tiny")
    assert kept.cells == nbformat.reads(first.decode(), as_version=4).cells


def test_a_text_takes_the_outputs_of_the_same_code_only(tiny):
    with pytest.raises(ValueError, match="make notebooks CHAPTER=01_tiny"):
        chapters.executed("01_tiny")
    notebooks.update("01_tiny")
    assert chapters.code_cells(chapters.executed("01_tiny"))[1].outputs[0].text == "published 1.0\n"
    edit(tiny, "steps = 2", "steps = 3")
    with pytest.raises(ValueError, match="is not what was executed"):
        chapters.executed("01_tiny")


def test_a_run_takes_the_plain_notebook_while_it_has_the_texts_code(tiny):
    edit(tiny, "# A tiny chapter", "# A tiny chapter\n\n:::{admonition} A box\na\n:::")
    assert ":::" in chapters.to_run("01_tiny").cells[0].source
    notebooks.update("01_tiny")
    notebook = chapters.to_run("01_tiny")
    assert notebook.cells[0].source.endswith("> **A box**\n>\n> a")
    assert [cell.outputs for cell in chapters.code_cells(notebook)] == [[], [], []]
    edit(tiny, "steps = 2", "steps = 3")
    assert "steps = 3" in chapters.to_run("01_tiny").cells[1].source


def test_notebooks_says_when_the_library_has_changed(tiny):
    """It kept silent, and the stored outputs were those of a library that was gone."""
    module = tiny / "lib" / "latentspace" / "one.py"
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").touch()
    (module.parent / "other.py").write_text("A = 1\n")
    module.write_text('"""One."""\n\nA = 1\n')
    edit(tiny, "print(word, rate * steps)", "if 0:\n    from latentspace import one\nprint(word)")
    path = tiny / "notebooks" / "01_tiny.ipynb"
    assert notebooks.update("01_tiny") == "is executed anew"
    before = path.read_bytes()
    module.write_text('"""Another word."""\n\n# and a comment\nA = 1\n')
    (module.parent / "other.py").write_text("A = 2\n")
    assert notebooks.update("01_tiny") == "is up to date"
    module.write_text("A = 2\n")
    said = "; the library has changed since it was executed"
    assert notebooks.update("01_tiny") == "is up to date" + said
    assert path.read_bytes() == before  # it is for the author to decide
    edit(tiny, "# A tiny chapter", "# A small chapter")
    assert notebooks.update("01_tiny").endswith("the outputs are kept" + said)
    path.unlink()
    assert notebooks.update("01_tiny") == "is executed anew"
    assert notebooks.update("01_tiny") == "is up to date"


def test_the_modules_that_a_chapter_leads_to():
    folder = chapters.ROOT / "lib"
    found = library.modules("from latentspace import results\nimport numpy", folder)
    assert {"latentspace", "latentspace.results", "latentspace.runs", "latentspace.files"} == set(
        found
    )
    found = library.modules("import latentspace.data.store", folder)
    assert {"latentspace.data", "latentspace.data.embedded"} <= set(found)
    assert not any("density" in name for name in found)


def test_notebooks_renews_the_set_up_cell_and_keeps_the_outputs(tiny):
    wanted = notebooks.SETUP.read_text().strip()
    old = 'import sys\n\nif "google.colab" in sys.modules:\n    print("older")'
    cell = "```{code-cell} ipython3\n" + old + "\n```\n\n# A tiny chapter"
    edit(tiny, "# A tiny chapter", cell)
    path = tiny / "notebooks" / "01_tiny.ipynb"
    fresh = chapters.read("01_tiny")
    notebooks.execute(fresh, "01_tiny")
    notebooks.write(fresh, path)
    edit(tiny, "print(word", "# a comment\nprint(word")
    edit(tiny, "# a comment\nprint(word", "print(word")
    assert "the outputs are kept" in notebooks.update("01_tiny")
    stored = nbformat.read(path, as_version=4)
    assert chapters.code_cells(stored)[0].source == wanted
    assert printed(path) == "published 1.0\nsolved\n"
    assert notebooks.update("01_tiny") == "is up to date"


def test_notebooks_leaves_the_old_one_when_a_cell_fails(tiny):
    notebooks.update("01_tiny")
    path = tiny / "notebooks" / "01_tiny.ipynb"
    before = path.read_bytes()
    edit(tiny, "steps = 2", "steps = None")
    with pytest.raises(Exception, match="TypeError"):
        notebooks.update("01_tiny")
    assert path.read_bytes() == before
    assert [p.name for p in (tiny / "notebooks").iterdir() if p.is_file()] == ["01_tiny.ipynb"]


def test_two_executions_store_the_same_text_but_for_the_minutes(tiny):
    path = tiny / "notebooks" / "01_tiny.ipynb"
    texts = []
    for _ in range(2):
        notebooks.update("01_tiny")
        texts.append(re.sub(r'"minutes": [\d.]+', "", path.read_text()))
        path.unlink()
    assert texts[0] == texts[1]


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


# The set-up cell

VERSION = f"v{__version__}"


@pytest.fixture
def public(tmp_path, monkeypatch):
    """A repository without a tag, which git finds at the book's public address."""
    folder = tmp_path / "public"
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "first"]):
        git(folder, *command)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{folder.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", address.current(chapters.ROOT))
    return folder


def git(folder, *arguments):
    folder.mkdir(exist_ok=True)
    author = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True)


def calls_in_colab(monkeypatch, absent=()):
    """Run the set-up cell as in Colab with the modules `absent`, and return its pip calls."""
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr("subprocess.check_call", calls.append)
    monkeypatch.setattr("importlib.util.find_spec", lambda m: None if m in absent else object())
    exec((chapters.ROOT / "book" / "tools" / "setup_cell.py").read_text(), {})
    return [call[4:] for call in calls]


def test_setup_cell_installs_what_colab_lacks(monkeypatch, public, capsys):
    git(public, "tag", VERSION)
    start = ["--quiet", "--no-deps", f"git+{address.current(chapters.ROOT)}@{VERSION}"]
    assert calls_in_colab(monkeypatch) == [start]
    absent = ["umap", "mlxtend", "numpy", "torch"]
    assert calls_in_colab(monkeypatch, absent) == [[*start, "mlxtend", "umap-learn"]]
    assert capsys.readouterr().out == ""


def test_setup_cell_takes_the_branch_of_a_fork_without_the_release(monkeypatch, public, capsys):
    git(public, "tag", f"{VERSION}.1")
    git(public, "branch", VERSION)  # no release either
    [[*_, library]] = calls_in_colab(monkeypatch)
    assert library == f"git+{address.current(chapters.ROOT)}@main"
    assert f"no release {VERSION}, so its branch main is installed" in capsys.readouterr().out


def test_setup_cell_leaves_it_to_pip_to_say_that_nothing_answers(monkeypatch, public, capsys):
    public.rename(public.with_name("elsewhere"))
    [[*_, library]] = calls_in_colab(monkeypatch)
    assert library.endswith(f"@{VERSION}")
    assert capsys.readouterr().out == ""


def wheel(folder, name, version, requires=()):
    """Write a package with one empty module, which asks for others."""
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": "",
        f"{about}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in requires),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_setup_cell_changes_no_package_that_is_there(tmp_path):
    """Whatever appears on PyPI: here each package that the cell may install asks for a newer numpy.

    The cell runs in an environment that has numpy 2.1 and none of them.
    """
    index = tmp_path / "index"
    index.mkdir()
    for name, version in (("numpy", "2.1.3"), ("numpy", "2.4.6")):
        wheel(index, name, version)
    for name in ("hdbscan", "mlxtend", "pooch", "pynndescent", "umap_learn", "latentspace"):
        wheel(index, name, "99", ["numpy>=2.3.5"])
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    import pip

    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip").symlink_to(Path(pip.__file__).parent)
    env = {
        "PATH": os.environ["PATH"],
        "GIT_ALLOW_PROTOCOL": "none",  # the cell asks GitHub for the release
        "PYTHONPATH": str(tmp_path / "pip"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy==2.1.3"], env=env, check=True)
    tools = Path(colab.__file__)
    done = subprocess.run([python, tools, "--cell", "latentspace"], env=env, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = [python, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import colab; "
              "print(*sorted(colab.installed().items()))", str(tools.parent)]  # fmt: skip
    after = subprocess.run(listed, env=env, capture_output=True, text=True, check=True).stdout
    assert "('numpy', '2.1.3')" in after
    for name in ("hdbscan", "latentspace", "mlxtend", "pooch", "pynndescent", "umap-learn"):
        assert f"('{name}', '99')" in after

    # And what the check is for: with the packages' own wishes followed, it finds the change.
    copy = tmp_path / "book" / "tools"
    shutil.copytree(tools.parent, copy)
    cell = copy / "setup_cell.py"
    cell.write_text(cell.read_text().replace(', "--no-deps"', ', "--force-reinstall"'))
    done = subprocess.run([python, copy / "colab.py", "--cell", "latentspace"], env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "numpy: 2.1.3 became 2.4.6" in done.stderr


def test_colab_gets_the_tools_that_the_smoke_runs_need():
    assert [line.split(">")[0] for line in colab.tools()] == sorted(colab.TOOLS)


def test_colab_runs_what_each_notebook_imports():
    found = colab.imports(chapters.NOTEBOOKS / "02_deepkde.ipynb")
    assert "import matplotlib.pyplot as plt" in found
    assert any(line.startswith("from latentspace.density import TargetMixture, ") for line in found)
    assert all(colab.imports(path) for path in chapters.NOTEBOOKS.glob("*.ipynb"))


def test_setup_cell_is_silent_elsewhere(monkeypatch, capfd):
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("installs something"))
    exec((chapters.ROOT / "book" / "tools" / "setup_cell.py").read_text(), {})
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps TCP")
def test_kernels_need_no_port(tiny, monkeypatch):
    """Two kernels that started at once had one port, and a run ended after a minute's wait."""

    def taken(*_):
        raise AssertionError("a port was asked for")

    monkeypatch.setattr(LocalPortCache, "find_available_port", taken)
    assert printed(running.run("01_tiny")) == "published 1.0\nsolved\n"
    with kernels.sockets() as first, kernels.sockets() as second:
        files = [config.KernelManager.connection_file for config in (first, second)]
        assert files[0] != files[1]
        assert all(len(f"{file}-ipc-5") < 100 for file in files)
    assert not any(Path(file).parent.exists() for file in files)
