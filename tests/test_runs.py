"""A run is named by its parameters, and no run writes over another's numbers."""

import json

import pytest

from latentspace import results, runs

TEXT = """---
jupytext:
  formats: md:myst
---

# A chapter

```{code-cell} ipython3
:tags: [remove-cell]

rate = "not a parameter"
```

```{code-cell} ipython3
:tags: [parameters, hide-input]

rate = 0.5  # a comment
sizes = [[1, 2], [3]]
sets = {"digits": ["train"]}
flag = True
name = "```"
```
"""
PUBLISHED = {"rate": 0.5, "sizes": [[1, 2], [3]], "sets": {"digits": ["train"]}, "flag": True,
             "name": "```"}  # fmt: skip
RECORD = {"document": "D", "item": "Table 1", "row": "ours", "metric": "accuracy"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one chapter, 01_tiny, seen from its notebooks' folder."""
    for folder in ("book/chapters", "notebooks/params"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    (tmp_path / "book" / "chapters" / "01_tiny.md").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def named(project, name, text):
    (project / "notebooks" / "params" / f"01_tiny.{name}.yaml").write_text(text)


def save(value, parameters):
    return results.save("01_tiny", [results.record(**RECORD, ours=value)], parameters)


def test_the_published_run_has_the_values_of_the_text(project):
    assert runs.run_name("01_tiny", PUBLISHED) == "published"
    assert runs.run_name("01_tiny", PUBLISHED | {"other": object(), "rates": 1}) == "published"
    equal = {"sizes": ((1, 2), [3.0]), "sets": {"digits": ("train",)}}
    assert runs.run_name("01_tiny", PUBLISHED | equal) == "published"


@pytest.mark.parametrize(
    "changed",
    [{"rate": 0.25}, {"sizes": [[1, 2, 3]]}, {"sets": {"digits": ["test"]}}, {"flag": 1},
     {"flag": "True"}, {"rate": "0.5"}],
)  # fmt: skip
def test_other_values_are_another_run(project, changed):
    name = runs.run_name("01_tiny", PUBLISHED | changed)
    assert name.startswith("custom-")
    assert name == runs.run_name("01_tiny", dict(reversed((PUBLISHED | changed).items())))
    assert name != runs.run_name("01_tiny", PUBLISHED | {"rate": 7})


def test_a_parameter_file_names_its_run(project):
    named(project, "paper", "rate: 0.125\nsizes: [[9]]\n")
    named(project, "smoke", "flag: false\n")
    named(project, "empty", "")
    assert runs.run_name("01_tiny", PUBLISHED | {"rate": 0.125, "sizes": [(9,)]}) == "paper"
    assert runs.run_name("01_tiny", PUBLISHED | {"flag": False}) == "smoke"
    assert runs.run_name("01_tiny", PUBLISHED | {"rate": 0.125}).startswith("custom-")
    assert runs.run_name("01_tiny", PUBLISHED) == "published"


def test_values_of_numpy_count_as_their_numbers(project):
    import numpy as np

    same = {"rate": np.float32(0.5), "sizes": [np.array([1, 2]), [np.int64(3)]]}
    assert runs.run_name("01_tiny", PUBLISHED | same) == "published"


def test_a_value_that_no_parameter_can_have_is_refused(project):
    with pytest.raises(ValueError, match="rate"):
        runs.run_name("01_tiny", PUBLISHED | {"rate": object()})


def test_only_the_published_parameters_write_the_published_file(project):
    """The fault: small parameters, or a file that calls itself published, wrote over it."""
    published = save(0.9, PUBLISHED)
    assert published == project / "book" / "results" / "01_tiny.json"
    before = published.read_bytes()
    own = save(0.1, PUBLISHED | {"rate": 0.01, "scale": "published"})
    assert own.parent == project / "_build" / "results"
    assert own != save(0.2, PUBLISHED | {"rate": 0.02})  # each has a file of its own
    assert json.loads(own.read_text())["records"][0]["mean"] == 0.1
    named(project, "paper", "rate: 0.125\n")
    paper = save(0.3, PUBLISHED | {"rate": 0.125})
    assert paper == project / "book" / "results" / "01_tiny.paper.json"
    assert published.read_bytes() == before
    assert [entry["mean"] for entry in results.load("01_tiny", "paper")] == [0.3]


@pytest.mark.parametrize("name", ["published", "custom-00000000", "My run", "a.b"])
def test_a_parameter_file_cannot_take_a_name_that_is_not_its_own(project, name):
    named(project, name, "rate: 0.01\n")
    with pytest.raises(ValueError, match="a named run's file"):
        runs.run_name("01_tiny", PUBLISHED | {"rate": 0.01})
    assert not (project / "book" / "results").exists()


@pytest.mark.parametrize("text", ["- 1\n", "rate:\n\t- 1\n", "{", "words\n"])
def test_a_broken_parameter_file_costs_no_other_run_its_numbers(project, text):
    named(project, "bad", text)
    named(project, "paper", "rate: 0.01\n")
    assert runs.run_name("01_tiny", PUBLISHED | {"rate": 0.01}) == "paper"


def test_a_smoke_run_keeps_nothing(project):
    named(project, "smoke", "rate: 0.01\n")
    assert save(0.1, PUBLISHED | {"rate": 0.01}) is None
    assert not (project / "book" / "results").exists()


def test_outside_the_project_nothing_is_kept(project, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert runs.project_root() is None
    assert runs.run_name("01_tiny", {}) is None
    assert save(0.1, PUBLISHED) is None
    assert results.stored("01_tiny") == []
    with pytest.raises(FileNotFoundError, match="project"):
        results.load("01_tiny")


def test_missing_parameters_and_chapters_are_named(project):
    with pytest.raises(ValueError, match="sizes, flag"):
        runs.run_name("01_tiny", {"rate": 1, "sets": {}, "name": ""})
    with pytest.raises(ValueError, match="no chapter '02_none'"):
        runs.run_name("02_none", PUBLISHED)
    with pytest.raises(ValueError, match="named like"):
        runs.run_name("../01_tiny", PUBLISHED)


@pytest.mark.parametrize(
    ("source", "message"),
    [("import os", "plain assignment"), ("a = b = 1", "plain assignment"), ("a: int", "plain"),
     ("a = open", "value of a"), ("a = 1 +", "syntax")],
)  # fmt: skip
def test_parameters_are_plain_assignments(source, message):
    with pytest.raises(ValueError, match=message):
        runs.assignments(source)


def test_a_chapter_has_one_cell_of_parameters(project):
    path = project / "book" / "chapters" / "01_tiny.md"
    path.write_text("# None\n")
    with pytest.raises(ValueError, match="0 cells"):
        runs.run_name("01_tiny", PUBLISHED)
    path.write_text(TEXT + TEXT)
    with pytest.raises(ValueError, match="2 cells"):
        runs.run_name("01_tiny", PUBLISHED)


@pytest.mark.parametrize("run", ["a/b", "../x", "", "custom-xyz", "Paper"])
def test_where_refuses_malformed_runs(run):
    with pytest.raises(ValueError, match="a run is named"):
        runs.where("01_tiny", run)
