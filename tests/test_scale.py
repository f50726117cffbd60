"""What the paper's scale takes: the networks, the counts that are kept, and the hours of both."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import gpu_hours
import paper_tasks
import scale
from chapters import ROOT, lessons

TASKS = paper_tasks.tasks()
KEPT = json.loads((ROOT / "book" / "results" / "scale.json").read_text())
HEAVY = {"vit_b_16", "resnet18", "resnet50"}  # at 224 pixels; tests/test_paper_scale.py has them


def test_counts_are_those_of_the_networks():
    """A parameter file that changed, or a network, asks for `python book/tools/scale.py`."""
    fields = ("chapter", "name", "batch", "command", "trains")
    assert [[row[f] for f in fields] for row in KEPT] == [
        [getattr(task, f) for f in fields] for task in TASKS
    ]
    assert [row["samples"] for row in KEPT] == [round(task.samples) for task in TASKS]


def test_every_chapter_with_a_network_is_there():
    assert {task.chapter for task in TASKS} == set(range(2, 13))
    for task in TASKS:
        if task.command.startswith("make run"):
            name = task.command.split("CHAPTER=")[1].split()[0]
            assert int(name[:2]) == task.chapter
            assert name.removesuffix("_evidence") in lessons()
            assert (ROOT / "notebooks" / "params" / f"{name}.paper.yaml").exists()


def once_each():
    """One task for each way to make a step; the thirteen of Table 3.2 share one."""
    found = {}
    for task in TASKS:
        maker = task.make.func if isinstance(task.make, partial) else task.make
        if task.name.split(",")[0] not in HEAVY:
            found.setdefault(maker, task)
    return list(found.values())


@pytest.mark.parametrize("task", once_each(), ids=lambda task: task.name[:30])
def test_a_step_changes_the_network(task, monkeypatch):
    """`make gpu` begins with this step; and its counts are the kept ones."""
    monkeypatch.setattr(scale.linear, "HERE", False)
    (kept,) = {r["mflop"] for r in KEPT if (r["chapter"], r["name"]) == (task.chapter, task.name)}
    counted = scale.count(task)
    assert counted["mflop"] == pytest.approx(kept, rel=0.01)
    assert counted["kilobytes"] > 0


def test_counting_by_hand():
    """A linear layer 6 x 5 without bias: forward, to the weights, and (for one layer) no more."""

    def make(device, n, mixed):
        layer, x = nn.Linear(6, 5, bias=False), torch.randn(n, 6)
        return paper_tasks.training(
            lambda: layer(x).square().sum(), torch.optim.SGD(layer.parameters(), 0.1), device, mixed
        )

    counted = scale.count(paper_tasks.Task(1, "linear", 64, 10, make, ""))
    assert counted["mflop"] == pytest.approx(2 * 2 * 30 / 1e6, abs=1e-3)
    assert counted["kilobytes"] == pytest.approx(4 * (6 + 5) / 1e3, abs=0.1)  # x and the output


def rows(n, rng):
    return [
        {"chapter": 2, "name": f"net {i}", "batch": int(rng.integers(16, 300)), "samples": 10**6,
         "mflop": float(rng.uniform(1, 5000)), "calls": int(rng.integers(50, 900)), "command": "x",
         "kilobytes": 200.0, "fixed_megabytes": 3.0}
        for i in range(n)
    ]  # fmt: skip


def test_fit_finds_what_made_the_times():
    rng = np.random.default_rng(0)
    made = rows(6, rng)
    flop, call = 1 / 80e12, 15e-6
    times = [flop * r["mflop"] * 1e6 * r["batch"] + call * r["calls"] for r in made]
    speeds = {r["name"]: r["batch"] / t for r, t in zip(made, times, strict=True)}
    fit = gpu_hours.fitted(made, speeds)
    assert (fit.flop, fit.call) == pytest.approx((flop, call))
    assert (fit.least, fit.most, fit.n) == (pytest.approx(1), pytest.approx(1), 6)


def test_fit_is_least_squares_of_relative_errors():
    rng = np.random.default_rng(1)
    made = rows(7, rng)
    times = rng.uniform(0.002, 0.05, 7)
    speeds = {r["name"]: r["batch"] / t for r, t in zip(made, times, strict=True)}
    speeds.pop("net 3")
    design = np.array([[r["mflop"] * 1e6 * r["batch"], r["calls"]] for r in made]) / times[:, None]
    design = np.delete(design, 3, 0)
    expected = np.linalg.lstsq(design, np.ones(6), rcond=None)[0]
    fit = gpu_hours.fitted(made, speeds)
    np.testing.assert_allclose([fit.flop, fit.call], expected, rtol=1e-6)
    ratios = design @ expected
    assert (fit.least, fit.most) == pytest.approx((ratios.min(), ratios.max()))


def test_hours_and_memory():
    (row,) = rows(1, np.random.default_rng(2))
    row |= {"batch": 100, "samples": 7_200_000, "mflop": 500.0, "calls": 100}
    fit = gpu_hours.Fit(1e-13, 1e-5, 1, 1, 2)
    # 100 samples x 0.5 GFLOP at 10 TFLOP a second are 5 ms, and 100 calls 1 ms: 6 ms a step
    guessed = gpu_hours.cost(row, {}, {}, fit)
    assert guessed.hours == pytest.approx(72_000 * 6e-3 / 3600)
    assert guessed.petaflop == pytest.approx(3.6)
    assert guessed.gigabytes == pytest.approx((4 * 3 + 100 * 0.2) / 1e3)
    known = gpu_hours.cost(row, {"net 0": 2_000.0}, {"net 0": 512.0}, fit)
    assert (known.hours, known.gigabytes, known.measured) == (1.0, 0.512, True)
