"""The project as a whole: one address, no dead link, nothing heavy."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import address
import build
import chapters
import latentspace

ROOT = chapters.ROOT
SLUG, SITE = address.forms(address.current(ROOT))
COPIES = ["README.md", "CITATION.cff", "book/running.md", "book/tools/setup_cell.py"]


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in filter(None, done.stdout.split("\0"))]


def texts():
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").rglob("*.md"))]


@pytest.mark.parametrize("name", COPIES)
def test_address_is_the_one_of_the_configuration(name):
    text = (ROOT / name).read_text()
    found = re.findall(r"github\.com/([\w.-]+/[\w.-]+?)(?=[/\s\"')]|\.git\b|$)", text)
    found += re.findall(r"/github/([\w.-]+/[\w.-]+)/blob", text)
    assert found
    assert set(found) == {SLUG}
    assert set(re.findall(r"[\w-]+\.github\.io/[\w.-]+", text)) <= {SITE}


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == latentspace.__version__
    cell = (ROOT / "book" / "tools" / "setup_cell.py").read_text()
    assert f'version = "v{latentspace.__version__}"' in cell
    branch = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["branch"]
    assert f'version = "{branch}"' in cell


def test_site_lists_the_chapters_with_their_evidence_under_them():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    listed = {e["file"]: [s["file"] for s in e.get("sections", [])] for e in entries}
    expected = {
        f"notebooks/{name}": [f"notebooks/{other}" for other in chapters.names()
                              if other == f"{name}{chapters.EVIDENCE}"]
        for name in chapters.lessons()
    }  # fmt: skip
    found = {page: below for page, below in listed.items() if page.startswith("notebooks/")}
    assert list(found) == list(expected)
    assert found == expected
    pages = [page for page in build.pages() if page.startswith("notebooks/")]
    assert pages == [f"notebooks/{name}" for name in chapters.names()]


def test_readme_has_one_row_a_chapter():
    """Its lesson and the lesson's badge; its evidence, where there is one."""
    rows = re.findall(r"^\| \d\d \| \[.*?\]\((.*?)\)(.*) \|$", readme(), flags=re.M)
    assert [page for page, _ in rows] == [f"notebooks/{name}.ipynb" for name in chapters.lessons()]
    colab = f"https://colab.research.google.com/github/{SLUG}/blob/main"
    for page, rest in rows:
        evidence = page.replace(".ipynb", f"{chapters.EVIDENCE}.ipynb")
        links = [link for link in re.findall(r"\]\((\S+?)\)", rest) if not link.endswith(".svg")]
        has = (ROOT / evidence).exists()
        assert links == ([evidence] if has else []) + [f"{colab}/{page}"]


def test_each_notebook_has_its_text():
    assert sorted(path.stem for path in chapters.NOTEBOOKS.glob("*.ipynb")) == chapters.names()


def readme():
    return (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)  # `parts[0](x)` is none
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_make_commands_exist():
    """A command stands at the start of a line or of a code span, or after `run:` in a workflow."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1].split())
    called = set()
    for path in [*texts(), *(ROOT / ".github" / "workflows").iterdir(), ROOT / ".ci" / "run"]:
        found = re.findall(r"(?:^ *|`|run: )make ([a-z]+)", path.read_text(), flags=re.M)
        called |= set(found)
    called |= set(re.findall(r'echo "make ([a-z]+)', makefile))
    assert {"book", "test", "run"} <= called <= targets


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()), ids=str)
def test_workflows_parse(path):
    workflow = yaml.safe_load(path.read_text())
    assert {"name", True, "permissions", "jobs"} <= set(workflow)  # YAML reads `on` as True
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 45
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_tests_run_on_each_supported_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={versions[0]}"
    assert versions == ["3.11", "3.12", "3.13"]


def test_ruff_has_nothing_to_say():
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, "check", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_reads_the_chapters_code_too():
    """An unused name, an undefined one, a function that takes the loop's last value."""
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--isolated", "--select", "F,B", "--output-format", "json"]
    done = subprocess.run([*command, chapters.NOTEBOOKS], capture_output=True, text=True)
    found = [
        (Path(each["filename"]).stem, each["code"], each["message"])
        for each in json.loads(done.stdout)
    ]
    assert found == []


def test_no_test_imports_from_another():
    """What two need stands in the library, in the tools, or in conftest.py."""
    names = {path.stem for path in (ROOT / "tests").glob("test_*.py")} | {"conftest"}
    for path in (ROOT / "tests").glob("*.py"):
        tree = ast.parse(path.read_text())
        found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not found & names, path.name


def library_modules():
    return sorted((ROOT / "lib" / "latentspace").rglob("*.py"))


@pytest.mark.parametrize("path", library_modules(), ids=lambda path: path.stem)
def test_module_is_short_and_says_what_is_public(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    names = [ast.unparse(n.targets[0]) for n in tree.body if isinstance(n, ast.Assign)]
    assert "__all__" in names or path.parent.name == "latentspace" and path.stem == "__init__"


def test_a_test_and_what_it_starts_have_one_thread():
    import torch

    assert torch.get_num_threads() == 1
    code = "import torch; print(torch.get_num_threads())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert started.stdout == "1\n"


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import latentspace;"
        "print(time.perf_counter() - start, *sys.modules)"
    )
    env = {"PYTHONPATH": str(ROOT / "lib")}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout
        for _ in range(3)
    ]
    assert min(float(run.split()[0]) for run in runs) < 0.1
    assert not {"torch", "sklearn", "numpy", "pandas"} & set(runs[0].split())


def test_no_large_file_and_no_data_is_committed():
    paths = [path for path in tracked() if path.exists()]
    assert [path for path in paths if path.stat().st_size > 3_000_000] == []
    paths = [path for path in paths if not path.match("book/results/*.npz")]  # what a run drew
    assert [path for path in paths if path.suffix in {".npz", ".npy", ".pt", ".pth", ".ckpt"}] == []
