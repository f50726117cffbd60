"""GPU hours and memory of the runs at the documents' scale: measured, or from counted operations.

`scale.json` (see `scale.py`) has what each network costs, `gpu_throughput.json` (`make gpu`) how
fast some of them ran. Where one was measured, its hours are its samples divided by its speed. For
the others two numbers are fitted to those that were: what a floating-point operation takes, and
what a call of an operator takes, which a small network waits for. Needs nothing but Python.
"""

import json
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Cost(NamedTuple):
    """One network's run at the documents' scale, on one GPU."""

    chapter: int
    name: str
    samples: int
    batch: int
    petaflop: float
    hours: float
    gigabytes: float
    measured: bool
    command: str


class Fit(NamedTuple):
    """Seconds of a step: ``flop * operations + call * calls``, and how far off on what was run."""

    flop: float
    call: float
    least: float  # fitted over measured seconds: the least ratio and the largest
    most: float
    n: int

    def seconds(self, row: dict) -> float:
        return self.flop * row["mflop"] * 1e6 * row["batch"] + self.call * row["calls"]


def read(root: Path = ROOT) -> tuple[list[Cost], Fit, str]:
    """The costs in the book's order, the fit, and the name of the GPU."""
    folder = root / "book" / "results"
    rows = json.loads((folder / "scale.json").read_text(encoding="utf-8"))
    records = json.loads((folder / "gpu_throughput.json").read_text(encoding="utf-8"))["records"]
    single = [record for record in records if record["setting"].endswith("float32")]
    speeds = {r["row"]: r["mean"] for r in single if r["metric"] == "samples/s"}
    memory = {r["row"]: r["mean"] for r in single if r["metric"] == "peak memory (MB)"}
    fit = fitted(rows, speeds)
    return [cost(row, speeds, memory, fit) for row in rows], fit, records[0]["device"]


def fitted(rows: list[dict], speeds: dict[str, float]) -> Fit:
    """Least squares of the relative error over the networks that were measured."""
    points = [
        (row["mflop"] * 1e6 * row["batch"], row["calls"], row["batch"] / speeds[row["name"]])
        for row in rows
        if row["name"] in speeds
    ]
    x = [(flop / time, calls / time) for flop, calls, time in points]
    aa, ab, bb = (sum(p[i] * p[j] for p in x) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(p[i] for p in x) for i in (0, 1))
    determinant = aa * bb - ab * ab
    flop, call = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    ratios = [flop * p[0] + call * p[1] for p in x]
    return Fit(flop, call, min(ratios), max(ratios), len(points))


def cost(row: dict, speeds: dict[str, float], memory: dict[str, float], fit: Fit) -> Cost:
    """Memory that was not measured: what a step keeps, and weights with gradients and moments."""
    measured = row["name"] in speeds
    seconds = row["batch"] / speeds[row["name"]] if measured else fit.seconds(row)
    kept = 4 * row["fixed_megabytes"] + row["batch"] * row["kilobytes"] / 1e3
    return Cost(
        row["chapter"], row["name"], row["samples"], row["batch"],
        row["samples"] * row["mflop"] / 1e9, row["samples"] / row["batch"] * seconds / 3600,
        memory.get(row["name"], kept) / 1e3, measured, row["command"],
    )  # fmt: skip
