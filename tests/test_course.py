"""The course's command line, on a small chapter of its own."""

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from distributed import LocalCluster
from papermill import PapermillExecutionError

import chapters
from latentspace import results
from latentspace.course import __main__ as command_line
from latentspace.course import kernels, marks, running, sweep
from latentspace.course.__main__ import main

SMALL = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Chapter 1 · A small one

```{code-cell} ipython3
:tags: [parameters]

word = "good"  # or "poison"
rate = 0.5  # of everything
seed = 0
wait = 0.0  # seconds
sizes = [[1, 2],
         [3]]  # of layers
free = None
```

```{code-cell} ipython3
import os
import time

time.sleep(wait)
if word == "dead":
    os._exit(9)
assert word != "poison", f"poisoned at {rate}"
```

```{code-cell} ipython3
from latentspace import results

record = results.Recorder("01_small", "Paper")
record(item="Table 1", row="ours", metric="sum", ours=rate + seed)
record(item="Table 1", row="theirs", metric="sum", ours=0)
record.save(globals())
```

:::{exercise} Double it
:label: ex-01-double
:::

```{code-cell} ipython3
:tags: [solution, hide-cell]

def double(x):
    return 2 * x
```

```{code-cell} ipython3
assert double(4) == 8
```

+++ {"tags": ["solution"]}

:::{admonition} Solution
The secret is addition.
:::

+++

:::{exercise} And again
:::

```{code-cell} ipython3
assert double(double(1)) == 4, "four is right"
```
"""


@pytest.fixture
def project(tiny):
    """A project with the chapter 01_small and a smoke file that gives another rate."""
    (tiny / "book" / "chapters" / "01_tiny.md").unlink()
    (tiny / "book" / "chapters" / "01_small.md").write_text(SMALL)
    (tiny / "notebooks" / "params" / "01_small.smoke.yaml").write_text("rate: 0.25\n")
    return tiny


@pytest.fixture
def executed(project):
    """The same, with its stored notebook and the run's numbers."""
    notebook = chapters.read("01_small")
    with running.alone(project / "x"):
        running.execute(notebook, project / "notebooks" / "01_small.ipynb", {},
                        project / "notebooks", progress=False)  # fmt: skip
    return project


def sweep_file(project, text):
    path = project / "own.yaml"
    path.write_text(f"chapter: 01_small\n{text}")
    return path


# Lists


def test_list_shows_each_chapter(executed, capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split(maxsplit=3) == ["01_small", "-", "6", "Chapter 1 · A small one"]


def test_list_shows_parameters_with_type_default_and_meaning(executed, capsys):
    assert main(["list", "01_small", "--results"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert ["rate", "float", "0.5", "of everything"] in rows
    assert ["sizes", "list of list of int", "[[1, 2], [3]]", "of layers"] in rows
    assert ["free", "any", "None"] in rows
    assert "parameter files: 01_small.smoke.yaml" in lines
    assert ["Table 1", "theirs", "sum"] in rows


def test_every_chapter_can_be_listed(capsys):
    assert main(["list"]) == 0
    assert main(["list", *chapters.names()]) == 0
    out = capsys.readouterr().out
    assert "vote" in out
    assert [name for name in chapters.lessons() if f"{name}: Chapter" not in out] == []


def test_minutes_are_those_of_the_stored_run(project):
    assert chapters.minutes("01_small") == "-"
    notebook = nbformat.v4.new_notebook()
    nbformat.write(notebook, project / "notebooks" / "01_small.ipynb")
    assert chapters.minutes("01_small") == "-"
    notebook.metadata["latentspace"] = {"minutes": 2.54}
    nbformat.write(notebook, project / "notebooks" / "01_small.ipynb")
    assert chapters.minutes("01_small") == "2.5"


# Runs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["01_smal"], "There is no chapter '01_smal'. Did you mean 01_small?"),
        (["1"], "Did you mean 01_small?"),
        (["notebooks/01_small.ipynb"], "Did you mean 01_small?"),
        (["zzz"], "They are: 01_small"),
        (["01_small", "-p", "rat", "1"], "did you mean 'rate'"),
        (["01_small", "-p", "x", "1", "-p", "y", "1"], "parameter 'x', 'y'; there are word,"),
        (["01_small", "-p", "rate", "x"], "it takes float (its default is 0.5)"),
        (["01_small", "-p", "rate", "1", "-p", "rate", "2"], "twice"),
        (["01_small", "-p", "sizes", "[1]"], "its default is [[1, 2], [3]]"),
        (["01_small", "-f", "none.yaml"], "no parameter file"),
        (["01_small", "-p", "rate"], "requires 2 arguments"),
        (["01_small", "-p", "rate=1"], "A value is given as -p NAME VALUE"),
        (["01_small", "rate=1"], "A value is given as -p NAME VALUE"),
        (["-p", "rate", "1"], "which chapter"),
        (["01_small", "-o", "x.html"], "must name a notebook"),
        (["01_small", "--nonsense"], "No such option"),
    ],
)
def test_run_refuses_before_anything_runs(project, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(running, "execute", lambda *_, **__: pytest.fail("it runs"))
    assert main(["run", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2),
        ("word", "1e-3", "1e-3"),
        ("word", "[a", "[a"),
        ("sizes", "[[5]]", [[5]]),
        ("free", "null", None),
        ("free", "[a, b]", ["a", "b"]),
        ("free", "None", None),
        ("free", "{", "{"),
    ],
)
def test_a_value_of_the_command_line_has_its_parameters_type(project, name, text, value):
    defaults = chapters.parameters(chapters.read("01_small"))
    assert running.typed([(name, text)], defaults) == {name: value}


def test_run_takes_values_over_those_of_the_file(project, capsys):
    out = project / "copy.ipynb"
    options = ["-f", "01_small.smoke.yaml", "-p", "seed", "3", "-o", str(out)]
    assert main(["run", "01_small", *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    (injected,) = chapters.tagged(nbformat.read(out, as_version=4), "injected-parameters")
    assert "rate = 0.25" in injected.source
    assert "seed = 3" in injected.source
    assert main(["run", "01_small", "-p", "word", "poison"]) == 1
    assert "poisoned at 0.5" in capsys.readouterr().err


def test_run_without_a_chapter_shows_the_first_one(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(running, "run", lambda *a: given.append(a) or Path("copy.ipynb"))
    assert main(["run"]) == 0
    assert given == [("02_deepkde", Path("02_deepkde.smoke.yaml"), (), None)]
    assert capsys.readouterr().out == "copy.ipynb\n"


def test_without_a_checkout_it_says_what_is_missing(tmp_path):
    """As where the library was installed from an archive."""
    library = tmp_path / "lib" / "python3" / "site-packages"
    library.mkdir(parents=True)
    (library / "latentspace").symlink_to(chapters.ROOT / "lib" / "latentspace")
    code = (
        "import pathlib; pathlib.Path.resolve = lambda p, strict=False: p.absolute()\n"
        "from latentspace.course.__main__ import main; raise SystemExit(main(['list']))"
    )
    env = os.environ | {"PYTHONPATH": str(library)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "git clone" in done.stderr


def hears_ctrl_c():
    """For a child: what a shell starts in the background inherits a deaf ear for it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_stopped_run_says_so_and_no_more(project):
    out = project / "copy.ipynb"
    command = [sys.executable, "-m", "latentspace.course", "run", "01_small", "-p", "wait", "60"]
    run = subprocess.Popen([*command, "-o", out], cwd=project, stderr=subprocess.PIPE, text=True,
                           preexec_fn=hears_ctrl_c)  # fmt: skip
    while not out.exists() or "completed" not in out.read_text():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=150)
    assert run.returncode == 130
    assert said.endswith("Stopped.\n")
    assert "Traceback" not in said


# Sweeps


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gird: {rate: [1.0]}", "unknown 'gird'"),
        ("grid: {rat: [1.0]}", "did you mean 'rate'"),
        ("grid: {rate: [1.0, x]}", "its default is 0.5"),
        ("grid: {rate: 1.0}", "needs a list"),
        ("grid: {rate: []}", "needs a list"),
        ("grid: [rate]", "`name: value` lines"),
        ("values: {rate: 1.0}\ngrid: {rate: [2.0]}", "rate given twice"),
        ("grid: {seed: [1]}\nseeds: 3", "seed given twice"),
        ("seeds: many", "seeds is a number"),
        ("\tseeds: 3", "never with a tab"),
        ("seeds: 0", "seeds is a number"),
        ("file: none.yaml", "no parameter file"),
        ("results: {a: {mertic: sum}}", "by some of document"),
        ("timeout: soon", "a number of seconds"),
    ],
)
def test_sweep_refuses_a_bad_file_before_anything_runs(project, capsys, text, said):
    assert main(["sweep", str(sweep_file(project, text))]) == 2
    assert said in capsys.readouterr().err
    assert not (project / "_build").exists()


def test_sweep_says_which_chapters_and_schedulers_there_are(project, capsys):
    path = project / "own.yaml"
    path.write_text("grid: {rate: [1.0]}")
    assert main(["sweep", str(path)]) == 2
    assert "They are: 01_small" in capsys.readouterr().err
    assert main(["sweep", str(project / "none.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["sweep", str(sweep_file(project, "seeds: 1")), "--scheduler", "nowhere"]) == 2
    assert "No dask scheduler" in capsys.readouterr().err


GRID = """
file: 01_small.smoke.yaml
grid:
  word: [good, poison]
  rate: [1.0, 2.0]
seeds: [0, 5]
results:
  sum: {row: ours}
  both: {item: Table 1}
"""


def test_a_failed_run_stops_no_other(project, capsys, monkeypatch):
    path = sweep_file(project, GRID)
    assert main(["sweep", str(path), "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["word", "rate", "seed", "status", "seconds", "sum", "both"]
    found = [line.split() for line in lines[1:9]]
    assert [row[:4] for row in found] == [
        [word, rate, seed, status]
        for word, status in (("good", "done"), ("poison", "failed"))
        for rate in "12"
        for seed in "05"
    ]
    assert [row[5:] for row in found] == [
        [total, "2", "records"] for total in ("1", "6", "2", "7")] + [[]] * 4  # fmt: skip
    assert "4 done, 4 failed" in lines
    assert "(word=poison, rate=2.0, seed=5): AssertionError: poisoned at 2.0" in lines[-2]
    folder = project / "_build" / "sweeps" / "own"
    table = (folder / "table.csv").read_text().splitlines()
    assert table[0] == "run,word,rate,seed,status,seconds,sum,both,error"
    assert len(table) == 9
    for line in table[1:]:
        assert (folder / f"{line.split(',')[0]}.ipynb").exists()
    assert list((project / "book" / "results").iterdir()) == []
    assert not (project / "_build" / "results").exists()

    def again(*options):
        began = []

        def ended(plan, todo, *_):
            for name in todo:
                began.append(plan.values[name])
                yield name, {"values": plan.values[name], "error": None, "seconds": 1.0,
                             "records": [], "machine": "", "copy": ""}  # fmt: skip

        monkeypatch.setattr(sweep, "_ended", ended)
        return main(["sweep", str(path), *options]), began

    assert again() == (1, [])  # all is kept
    assert capsys.readouterr().out == out
    status, began = again("--retry")
    assert (status, len(began)) == (0, 4)
    assert {values["word"] for values in began} == {"poison"}
    assert "8 done, 0 failed" in capsys.readouterr().out


def test_a_lost_worker_is_a_failure_and_a_lost_scheduler_ends_the_sweep():
    lost = SimpleNamespace(status="error", exception=lambda: MemoryError("no room"))
    run = sweep._result(lost, {"rate": 1.0})
    assert (run["error"], run["values"]) == ("MemoryError: no room", {"rate": 1.0})
    with pytest.raises(ConnectionError, match="cancelled"):
        sweep._result(SimpleNamespace(status="cancelled"), {})


def test_what_no_file_holds_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="cannot be read: Is a directory"):
        running.read_yaml(tmp_path)


def test_a_system_without_such_sockets_gets_jupyters_own(monkeypatch):
    with kernels.sockets() as config:
        assert config.KernelManager.transport == "ipc"
    monkeypatch.setattr(kernels, "os", SimpleNamespace(name="nt"))
    with kernels.sockets() as config:
        assert not config


def test_a_changed_chapter_is_run_again(project):
    path = sweep_file(project, "seeds: 2")
    before = sweep.plan(path)
    text = project / "book" / "chapters" / "01_small.md"
    text.write_text(SMALL.replace("A small one", "A new name"))
    assert set(sweep.plan(path).values) == set(before.values)
    text.write_text(SMALL.replace("rate + seed", "rate - seed"))
    assert not set(sweep.plan(path).values) & set(before.values)


def test_a_dead_kernel_and_a_slow_cell_are_failures_like_others(project, tmp_path):
    plan = sweep.plan(sweep_file(project, "grid: {word: [dead, good], wait: [0, 30]}\ntimeout: 2"))
    runs = sweep.go(plan, tmp_path / "runs", jobs=4)
    assert [(run["error"] or "done").split(":")[0] for run in runs] == [
        "DeadKernelError", "CellTimeoutError", "done", "CellTimeoutError"]  # fmt: skip


def test_sweep_runs_on_a_scheduler(project, tmp_path):
    plan = sweep.plan(sweep_file(project, "grid: {word: [good, poison]}"))
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp",
                      dashboard_address=None) as cluster:  # fmt: skip
        good, bad = sweep.go(plan, tmp_path / "runs", cluster.scheduler_address)
    assert [record["mean"] for record in good["records"]] == [0.5, 0]
    assert bad["error"] == "AssertionError: poisoned at 0.5"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on(project, how):
    path = sweep_file(project, "grid: {word: [good, poison], wait: [0.5]}\nseeds: 3")
    folder = project / "_build" / "sweeps" / "own"
    command = [sys.executable, "-m", "latentspace.course", "sweep", path, "--jobs", "2"]
    first = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, preexec_fn=hears_ctrl_c)  # fmt: skip
    while len(list(folder.glob("*.json"))) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(how)
    _, said = first.communicate(timeout=150)
    kept = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.json")}
    assert 2 <= len(kept) < 6
    assert all(json.loads(content) for content, _ in kept.values())
    if how == signal.SIGINT:
        assert first.returncode == 130
        assert f"Stopped with {len(kept)} runs kept" in said
        assert "Traceback" not in said

    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "3 done, 3 failed" in done.stdout
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept} == kept
    assert len(list(folder.glob("*.json"))) == 6
    assert not list(folder.glob(".*"))  # no half-written file


def test_two_sweeps_do_not_share_a_folder(project, capsys):
    path = sweep_file(project, "seeds: 1")
    with running.alone(project / "_build" / "sweeps" / "own"):
        assert main(["sweep", str(path)]) == 2
    assert "Another run is writing to" in capsys.readouterr().err


# Students


def test_student_gets_neither_solutions_nor_outputs(executed, capsys):
    assert main(["student", str(executed / "handout")]) == 0
    path = executed / "handout" / "01_small.ipynb"
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text()
    assert "secret" not in text
    assert "def double" not in text
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert [cell.source for cell in code].count("# Your answer\n") == 1
    assert notebook.metadata["latentspace"] == {"chapter": "01_small"}
    nbformat.validate(notebook)
    assert main(["student", str(executed / "notebooks")]) == 2
    assert main(["student", str(executed / "handout"), "02_none"]) == 2


def hand_in(project, name, answer, change=None):
    """Execute what a student hands in, on past errors as a person would."""
    main(["student", str(project / "handout")])
    notebook = nbformat.read(project / "handout" / "01_small.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("# Your answer\n", answer)
        if change:
            cell.source = cell.source.replace(*change)
        if cell.cell_type == "code":
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]
    path = project / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(PapermillExecutionError):
        running.execute(notebook, path, {}, project / "notebooks", progress=False)


def test_check_tells_which_checks_pass(executed, capsys):
    hand_in(executed, "ada/01_small.ipynb", "double = lambda x: x + x")
    hand_in(executed, "ben.ipynb", "double = lambda x: x + 4")
    hand_in(executed, "cy.ipynb", "", change=("assert double(4) == 8", "assert True"))
    (executed / "in" / "01_small_new.ipynb").write_bytes(
        (executed / "handout" / "01_small.ipynb").read_bytes()
    )
    (executed / "in" / "bad.ipynb").write_text("no notebook")
    nbformat.write(nbformat.v4.new_notebook(), executed / "in" / "other.ipynb")
    capsys.readouterr()
    assert main(["check", str(executed / "in"), "--json", str(executed / "marks.json")]) == 1
    out = capsys.readouterr().out
    found = [tuple(each.values()) for each in json.loads((executed / "marks.json").read_text())]
    first, second = "1.1 Double it", "1.2 And again"
    assert found == [
        ("01_small_new.ipynb", "01_small", first, "not run", ""),
        ("01_small_new.ipynb", "01_small", second, "not run", ""),
        ("ada/01_small.ipynb", "01_small", first, "passed", ""),
        ("ada/01_small.ipynb", "01_small", second, "passed", ""),
        ("bad.ipynb", "", "", "not a notebook", ""),
        ("ben.ipynb", "01_small", first, "passed", ""),
        ("ben.ipynb", "01_small", second, "failed", "AssertionError: four is right"),
        ("cy.ipynb", "01_small", first, "changed or missing", ""),
        ("cy.ipynb", "01_small", second, "failed",
         "NameError: name 'double' is not defined"),
        ("other.ipynb", "", "", "no chapter of the book", ""),
    ]  # fmt: skip
    assert "ben.ipynb" in out
    assert "failed: AssertionError: four is right" in out
    assert "3 of 10 passed" in out


def test_check_prints_json_and_exits_by_its_verdict(executed, capsys):
    hand_in(executed, "ada.ipynb", "double = lambda x: x + x")
    capsys.readouterr()
    assert main(["check", str(executed / "in"), "--json", "-"]) == 0
    assert [each["verdict"] for each in json.loads(capsys.readouterr().out)] == ["passed"] * 2
    (executed / "empty").mkdir()
    assert main(["check", str(executed / "empty")]) == 2


def test_each_lesson_has_two_checks_that_students_keep(tmp_path):
    for name in chapters.lessons():
        found = marks.checks(name)
        assert len(found) >= 2, name
        assert {m.verdict for m in marks.mark(chapters.NOTEBOOKS / f"{name}.ipynb")} == {"passed"}
        path = marks.student(name, tmp_path)
        assert {m.verdict for m in marks.mark(path)} == {"not run"}, name
        text = chapters.read(name)
        solutions = [c for c in chapters.tagged(text, "solution") if c.cell_type == "code"]
        sources = {cell.source for cell in nbformat.read(path, as_version=4).cells}
        assert not sources & {cell.source for cell in solutions}, name


@pytest.mark.parametrize("command", [[], ["list"], ["run"], ["sweep"], ["student"], ["check"]])
def test_help_shows_examples(command, capsys):
    assert main([*command, "--help"]) == 0
    assert f"python -m latentspace.course {' '.join(command)}" in capsys.readouterr().out


# The pages

PAGES = [chapters.ROOT / name for name in ("README.md", "book/instructors.md", "book/running.md")]
EXAMPLE = re.compile(r"^python -m latentspace\.course ([^#\n]*)", flags=re.M)


def examples():
    return [line.strip() for page in PAGES for line in EXAMPLE.findall(page.read_text())]


def sweep_on_the_page():
    text = (chapters.ROOT / "book" / "instructors.md").read_text()
    return re.search(r"^```yaml\n(.*?)^```", text, flags=re.M | re.S)[1]


def sweep_in_the_help():
    text = inspect.cleandoc(command_line.sweep.help)
    return text[text.index("chapter:") : text.index("timeout:")]


@pytest.mark.parametrize("line", examples())
def test_examples_on_the_pages_are_understood(line, tmp_path, monkeypatch, capsys):
    """Up to where a chapter would be executed: its name, parameters and types are looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(sweep_on_the_page())
    (tmp_path / "handed-in").mkdir()
    marks.student("02_deepkde", tmp_path / "handed-in")
    asked = []
    monkeypatch.setattr(running, "execute", lambda notebook, out, *_: asked.append(out))
    monkeypatch.setattr(sweep, "go", lambda plan, folder, *_: folder.mkdir(parents=True) or [])
    monkeypatch.setattr(running, "place", lambda *_: tmp_path / "copy.ipynb")
    if "sweep" in line:
        line += " --out runs"
    expected = 1 if line.startswith("check") else 0  # nothing in that sheet was run
    assert main(shlex.split(line)) == expected, capsys.readouterr().err
    assert bool(asked) == line.startswith("run")


@pytest.mark.parametrize(
    ("text", "runs"), [(sweep_on_the_page, 12), (sweep_in_the_help, 6)], ids=["page", "help"]
)
def test_the_sweep_that_is_shown_names_records_that_its_chapter_stores(text, runs, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text())
    plan = sweep.plan(path)
    assert len(plan.values) == runs
    stored = results.read(chapters.ROOT / "book" / "results" / f"{plan.chapter}.json")
    for wanted in plan.wanted.values():
        assert len([r for r in stored if wanted.items() <= r.items()]) == 1


def test_the_readme_opens_with_read_run_and_check():
    first = re.search(r"^```bash\n(.*?)^```", PAGES[0].read_text(), flags=re.M | re.S)[1]
    lines = [re.match(r"make (\w+) +# (\w+): ", line).groups() for line in first.splitlines()]
    assert lines == [("book", "read"), ("run", "run"), ("test", "check")]
