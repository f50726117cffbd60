"""Records, their files and their display."""

import json
import math
import os
import statistics
import sys

import numpy as np
import pytest

from latentspace import results


def make(**changes):
    values = {"document": "DeepKDE", "item": "Fig. 3", "row": "after", "metric": "accuracy"}
    return results.record(**{**values, "ours": [0.91, 0.95, 0.93], **changes})


PUBLISHED = {"seeds": [0, 1, 2]}  # the parameters of the project's chapters


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the texts of two chapters, and parameter files for one of them."""
    for folder in ("book/chapters", "notebooks/params"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    cell = "```{code-cell} ipython3\n:tags: [parameters]\n\nseeds = [0, 1, 2]\n```\n"
    for chapter in ("01_measuring_clusters", "02_deepkde"):
        (tmp_path / "book" / "chapters" / f"{chapter}.md").write_text(cell)
    for run, seeds in (("smoke", [0]), ("paper", [7]), ("figure", [8])):
        path = tmp_path / "notebooks" / "params" / f"02_deepkde.{run}.yaml"
        path.write_text(f"seeds: {seeds}\n")
    monkeypatch.chdir(tmp_path / "book" / "chapters")
    return tmp_path


def test_mean_and_sample_standard_deviation():
    values = [0.91, 0.95, 0.931234567]
    entry = make(ours=np.array(values))
    assert entry["mean"] == pytest.approx(statistics.mean(values), rel=1e-5)
    assert entry["std"] == pytest.approx(statistics.stdev(values), rel=1e-5)
    assert entry["n_seeds"] == 3
    assert entry["values"] == [0.91, 0.95, 0.931235]


@pytest.mark.parametrize("one", [0.5, [0.5], np.float32(0.5), np.array(0.5), np.array([0.5])])
def test_one_seed_has_no_spread(one):
    entry = make(ours=one)
    assert (entry["mean"], entry["std"], entry["n_seeds"]) == (0.5, None, 1)
    assert "±" not in results.display_row(entry)["ours"]


def test_numbers_keep_six_digits_and_counts_stay_exact():
    entry = make(ours=12_345_678, paper=0.123456789, seconds=1234.56789)
    assert (entry["mean"], entry["paper"], entry["seconds"]) == (12_345_678, 0.123457, 1234.57)
    assert make(ours=1.23456789e-7)["mean"] == 1.23457e-7


@pytest.mark.parametrize(
    "changes",
    [
        {"ours": math.nan},
        {"ours": [0.5, math.inf]},
        {"ours": []},
        {"ours": "0.5"},
        {"ours": None},
        {"paper": math.nan},
        {"seconds": -1.0},
        {"seconds": math.inf},
        {"document": ""},
        {"row": "  "},
        {"metric": None},
        {"setting": None},
    ],
)
def test_bad_values_are_refused(changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=name):
        make(**changes)


def test_versions_and_device():
    entry = make()
    assert entry["versions"]["numpy"] == np.__version__
    assert "scikit-learn" in entry["versions"]
    assert ("torch" in entry["versions"]) == ("torch" in sys.modules)
    assert entry["device"].startswith("CPU, ")
    assert make(device="mps")["device"] == "mps"


def test_save_and_load(project):
    records = [make(), make(row="before", paper=0.9)]
    path = results.save("02_deepkde", records, PUBLISHED)
    assert path == project / "book" / "results" / "02_deepkde.json"
    assert results.load("02_deepkde") == results.stored("02_deepkde") == records
    text = path.read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)["records"][0]) == list(results.FIELDS)
    backwards = [dict(reversed(entry.items())) for entry in records]
    assert results.save("02_deepkde", backwards, PUBLISHED).read_text() == text


def test_runs_are_kept_apart(project):
    assert results.save("02_deepkde", [make()], {"seeds": [0]}) is None  # the smoke run
    assert not (project / "book" / "results").exists()
    assert results.save("02_deepkde", [make()], {"seeds": [7]}).name == "02_deepkde.paper.json"
    with pytest.raises(FileNotFoundError, match="02_deepkde"):
        results.load("02_deepkde")
    assert results.stored("02_deepkde") == []
    assert len(results.load("02_deepkde", "paper")) == 1


def test_arrays(project):
    points = {"b": np.arange(6.0).reshape(3, 2), "c": np.ones(2, dtype=np.float16)}
    path = results.save_arrays("02_deepkde", {"seeds": [8]}, **points)
    assert path == project / "book" / "results" / "02_deepkde.figure.npz"
    back = results.load_arrays("02_deepkde", "figure")
    assert back.keys() == points.keys()
    for name in points:
        np.testing.assert_array_equal(back[name], points[name], strict=True)
    assert results.save_arrays("02_deepkde", {"seeds": [0]}, **points) is None
    with pytest.raises(FileNotFoundError, match="paper.npz"):
        results.load_arrays("02_deepkde", "paper")
    with pytest.raises(ValueError, match="no array"):
        results.save_arrays("02_deepkde", {"seeds": [8]})


def test_recorder(project):
    keep = results.Recorder("02_deepkde", "DeepKDE", device="cpu", setting="MNIST")
    one = keep(item="Fig. 3", row="after", metric="accuracy", ours=[0.5, 0.7], paper=0.94)
    keep(item="Fig. 4", row="after", metric="accuracy", ours=1, setting="CIFAR-10")
    assert one == results.record(document="DeepKDE", item="Fig. 3", row="after", metric="accuracy",
                                 ours=[0.5, 0.7], paper=0.94, setting="MNIST")  # fmt: skip
    assert list(keep.table("Fig. 4")["setting"]) == ["CIFAR-10"]
    assert len(keep.table()) == 2
    assert keep.save(PUBLISHED).name == "02_deepkde.json"
    assert results.load("02_deepkde") == keep.records


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [([0.93, 0.95, 0.91], 3, "0.930 ± 0.020"), ([0.9], 2, "0.90"), ([-0.0001, 0], 2, "0.00 ± 0.00"),
     ([-1, -3], 1, "-2.0 ± 1.4"), ((v for v in (1, 1)), 0, "1 ± 0")],
)  # fmt: skip
def test_mean_std(values, digits, text):
    assert results.mean_std(values, digits) == text


@pytest.mark.parametrize(
    ("chapter", "records", "parameters", "message"),
    [
        ("../02_deepkde", [make()], PUBLISHED, "chapter"),
        ("03_none", [make()], PUBLISHED, "no chapter"),
        ("02_deepkde", [make()], {}, "seeds"),
        ("02_deepkde", [], {"seeds": [0]}, "no record"),
        ("02_deepkde", [make(), make(ours=1)], {"seeds": [0]}, "same number"),
        ("02_deepkde", [{"row": "after"}], {"seeds": [0]}, "results.record"),
    ],
)
def test_save_refuses(project, chapter, records, parameters, message):
    with pytest.raises(ValueError, match=message):
        results.save(chapter, records, parameters)


def test_failed_save_leaves_the_old_file_and_nothing_else(project, monkeypatch):
    path = results.save("02_deepkde", [make()], PUBLISHED)
    before = path.read_text()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        results.save("02_deepkde", [make(ours=0.1)], PUBLISHED)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.9412, 0.0123, "0.941 ± 0.012"),
        (45.12, 0.5, "45.12 ± 0.50"),
        (1234.5, 12.3, "1,234 ± 12"),
        (0.9, 0, "0.9 ± 0"),
        (0.6301, 6.4e-17, "0.6301 ± 0"),
        (3e-9, 2e-10, "3e-09 ± 2e-10"),
        (0.94123, None, "0.9412"),
        (1_234_567, None, "1,234,567"),
        (-0.5, None, "-0.5"),
        (0, None, "0"),
    ],
)
def test_display_of_ours(mean, std, text):
    entry = {**make(), "mean": mean, "std": std}
    assert results.display_row(entry)["ours"] == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "—"), (0.81, "0.8 s"), (41.7, "42 s"), (200, "3 min"), (8000, "2.2 h")],
)
def test_display_of_time(seconds, text):
    assert results.display_row(make(seconds=seconds))["time"] == text


def test_display_of_direction_and_missing_paper_value():
    row = results.display_row(make(higher_is_better=False))
    assert (row["metric"], row["paper"], row["setting"]) == ("accuracy ↓", "—", "—")
    assert results.display_row(make(higher_is_better=None, paper=97.60))["paper"] == "97.6"


def test_table():
    frame = results.table([make(), make(row="<before>", ours=0.9)])
    assert list(frame) == ["item", "row", "metric", "paper", "ours", "n", "setting", "time"]
    assert list(frame.ours) == ["0.930 ± 0.020", "0.9"]
    html = frame._repr_html_()
    assert "&lt;before&gt;" in html
    assert html.count("<th>") == len(frame.columns)  # no index
    assert "document" in results.table([make(), make(document="StatDEC")])


def test_tex_in_a_row_is_shown_as_plain_text():
    entry = results.record(document="D", item="Fig. 2", row="no $L_{rec}$", metric="m", ours=1)
    assert entry["row"] == "no $L_{rec}$"
    assert results.display_row(entry)["row"] == "no L_rec"
