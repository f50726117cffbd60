"""Measured numbers: one record a number, kept beside the value the paper prints.

A record belongs to one metric of one row of one table or figure::

    record(document="DeepKDE", item="Fig. 3", row="after", metric="accuracy",
           paper=0.94, ours=[0.93, 0.95], setting="MNIST, d = 10", seconds=41.0)

A `Recorder` collects a chapter's records, shows them below the cells that measured them, and keeps
them in ``book/results/<chapter>.json``, from where the scoreboard page reads them. `save_arrays`
keeps what a long run drew beside its records, so that a chapter can draw it without that run.
"""

import io
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentspace import runs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Record = dict[str, Any]

__all__ = [
    "FIELDS", "Record", "Recorder", "display_row", "load", "load_arrays", "mean_std", "read",
    "record", "save", "save_arrays", "stored", "table",
]  # fmt: skip

FIELDS = (
    "document", "item", "row", "metric", "paper", "mean", "std", "n_seeds", "values",
    "higher_is_better", "setting", "seconds", "device", "data", "versions",
)  # fmt: skip
_KEY = ("document", "item", "row", "metric", "setting")


def record(
    *,
    document: str,
    item: str,
    row: str,
    metric: str,
    ours: float | Iterable[float],
    paper: float | None = None,
    setting: str = "",
    seconds: float | None = None,
    device: object = None,
    data: str | None = None,
    higher_is_better: bool | None = True,
) -> Record:
    """Describe one measured number.

    Parameters
    ----------
    document, item, row, metric : the paper, its table or figure, the row and the quantity with its
        unit ("error (%)"); none may be empty.
    ours : the value measured, or one value a seed.
    paper : the value printed in the paper; None where it prints none.
    setting : what differs from the paper: data, sizes, schedule.
    seconds : wall-clock time of all seeds together.
    device : a `torch.device` or its name; None is the CPU.
    data : `latentspace.data.fingerprint` of the arrays used.
    higher_is_better : None where neither direction is, as for a parameter count.

    Returns
    -------
    dict with the keys `FIELDS`: numbers to six significant digits (whole numbers exactly), `std`
    with n - 1 in the denominator and None for a single seed, and the versions of python, numpy,
    scikit-learn and, if it is imported, torch.

    Raises
    ------
    ValueError : a text is empty, or a number is missing, NaN or infinite.
    """
    texts = {"document": document, "item": item, "row": row, "metric": metric}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a non-empty string, not {text!r}")
    if not isinstance(setting, str):
        raise ValueError(f"setting must be a string, not {setting!r}")
    values = [_finite("ours", value) for value in _sequence(ours)]
    if not values:
        raise ValueError("ours holds no value")
    if seconds is not None and _finite("seconds", seconds) < 0:
        raise ValueError(f"seconds must not be negative, not {seconds!r}")
    mean = math.fsum(values) / len(values)
    return {
        **texts,
        "paper": None if paper is None else _round(_finite("paper", paper)),
        "mean": _round(mean),
        "std": _round(statistics.stdev(values)) if len(values) > 1 else None,
        "n_seeds": len(values),
        "values": [_round(value) for value in values],
        "higher_is_better": higher_is_better,
        "setting": setting,
        "seconds": None if seconds is None else _round(float(seconds)),
        "device": _device_name(device),
        "data": data,
        "versions": _versions(),
    }


def save(
    chapter: str, records: Iterable[Record], parameters: Mapping[str, object]
) -> Path | None:
    """Keep the records of a run with these ``parameters`` and return the file's path.

    A notebook gives its ``globals()``; `runs.run_name` says which run that is. The published one
    goes to ``book/results/<chapter>.json``. A smoke run, and one outside the project, keeps
    nothing, and None is returned. A reader never sees half of the file.

    Raises
    ------
    ValueError : no such chapter, a parameter is missing, a record is not one of `record`, there is
        no record, or two records describe the same number.
    """
    records = _validated(records)
    text = json.dumps({"records": records}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return runs.write(chapter, runs.run_name(chapter, parameters), text.encode())


def load(chapter: str, run: str = "published") -> list[Record]:
    """Read the records of a run; FileNotFoundError if it is not kept, or outside the project."""
    return read(runs.kept(chapter, run))


def stored(chapter: str, run: str = "published") -> list[Record]:
    """Like `load`, but an empty list where nothing is kept, as in Colab."""
    try:
        return load(chapter, run)
    except FileNotFoundError:
        return []


def save_arrays(
    chapter: str, parameters: Mapping[str, object], **arrays: "np.ndarray"
) -> Path | None:
    """Keep named arrays beside the records of a run, as ``<chapter>.<run>.npz``.

    Where `save` keeps nothing, neither does this. ValueError without an array.
    """
    import numpy as np

    if not arrays:
        raise ValueError("there is no array to save")
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return runs.write(chapter, runs.run_name(chapter, parameters), content.getvalue(), "npz")


def load_arrays(chapter: str, run: str) -> dict[str, "np.ndarray"]:
    """Read what `save_arrays` kept; FileNotFoundError as in `load`."""
    import numpy as np

    with np.load(runs.kept(chapter, run, "npz"), allow_pickle=False) as file:
        return dict(file)


class Recorder:
    """The records of one chapter's run, in the order of their measurement.

    Parameters
    ----------
    chapter : such as "02_deepkde"
    document : the paper, as in `record`
    **common : further fields that all records share, such as ``device``

    Called with the fields of `record`, it keeps the record and returns it.
    """

    def __init__(self, chapter: str, document: str, **common: Any) -> None:
        self.chapter, self.common = chapter, {"document": document, **common}
        self.records: list[Record] = []

    def __call__(self, **fields: Any) -> Record:
        entry = record(**(self.common | fields))
        self.records.append(entry)
        return entry

    def table(self, *items: str) -> "pd.DataFrame":
        """`table` of all records, or of those of the named items."""
        return table(entry for entry in self.records if not items or entry["item"] in items)

    def save(self, parameters: Mapping[str, object]) -> Path | None:
        """`save` the records of the run with these parameters: a notebook's ``globals()``."""
        return save(self.chapter, self.records, parameters)


def mean_std(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard deviation (n - 1) of repetitions for a table: "0.941 ± 0.012".

    One value stands alone, as it has no spread. A mean that rounds to zero has no sign.
    """
    values = [float(value) for value in values]
    mean = f"{math.fsum(values) / len(values):.{digits}f}"
    mean = mean.removeprefix("-") if float(mean) == 0 else mean
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def read(path: Path) -> list[Record]:
    """Read and check the records in one file; ValueError if it does not hold any."""
    try:
        return _validated(json.loads(Path(path).read_text(encoding="utf-8"))["records"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a results file: {error}") from error


def table(records: Iterable[Record]) -> "pd.DataFrame":
    """Set the paper's values beside ours, one line a record, formatted for display.

    Columns: document (left out if all are the same), item, row, metric, paper, ours, n, setting,
    time; formatted as in `display_row`. In a notebook it shows without its index.
    """
    import pandas as pd

    class Table(pd.DataFrame):
        def _repr_html_(self) -> str:
            return self.to_html(index=False, border=0, justify="left")

    rows = [display_row(entry) for entry in records]
    hidden = {"device"} if len({row["document"] for row in rows}) > 1 else {"device", "document"}
    return Table([{k: v for k, v in row.items() if k not in hidden} for row in rows])


def display_row(entry: Record) -> dict[str, str]:
    """Format a record: column name to text.

    - ours is "0.941 ± 0.012": the standard deviation to two digits and the mean to the same
      decimals; one seed is a number alone, to four digits, for it has no spread;
    - metric carries ↑ or ↓, the better direction; a row's TeX loses its marks;
    - "—" stands for what is not known.
    """
    arrow = {True: " ↑", False: " ↓", None: ""}[entry["higher_is_better"]]
    return {
        "document": entry["document"],
        "item": entry["item"],
        "row": re.sub(r"[${}]", "", entry["row"]),
        "metric": entry["metric"] + arrow,
        "paper": "—" if entry["paper"] is None else _number(entry["paper"], digits=6),
        "ours": _mean_and_std(entry["mean"], entry["std"]),
        "n": str(entry["n_seeds"]),
        "setting": entry["setting"] or "—",
        "device": entry["device"],
        "time": "—" if entry["seconds"] is None else _duration(entry["seconds"]),
    }


def _sequence(ours: float | Iterable[float]) -> list[float]:
    # A 0-d array or tensor has __iter__ too, and refuses it: ask for its dimension first.
    scalar = getattr(ours, "ndim", None) == 0 or not isinstance(ours, Iterable)
    return [ours] if scalar or isinstance(ours, str) else list(ours)


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number


def _round(value: float) -> float | int:
    """Six significant digits; whole numbers (parameter counts) stay exact."""
    if value == int(value):
        return int(value)
    return round(value, max(0, 5 - math.floor(math.log10(abs(value)))))


def _device_name(device: object) -> str:
    name = "cpu" if device is None else str(device)
    if name == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"CPU, {cores} cores"
    torch = sys.modules.get("torch")
    if name.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return name


def _versions() -> dict[str, str]:
    names = ["numpy", "scikit-learn"] + (["torch"] if "torch" in sys.modules else [])
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: found for name in names if (found := _version(name))}


@cache  # there may be hundreds of records, and each search goes through all that is installed
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _validated(records: Iterable[Record]) -> list[Record]:
    records, seen = list(records), set()
    if not records:
        raise ValueError("there is no record")
    for entry in records:
        if not isinstance(entry, Mapping) or set(entry) != set(FIELDS):
            raise ValueError(f"not made by results.record: {entry!r}")
        key = tuple(entry[field] for field in _KEY)
        if key in seen:
            raise ValueError(f"two records of the same number: {' | '.join(map(str, key))}")
        seen.add(key)
    return [{field: entry[field] for field in FIELDS} for entry in records]


def _number(value: float, digits: int = 4) -> str:
    if value == int(value) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    return f"{value:.{digits}g}"


def _mean_and_std(mean: float, std: float | None) -> str:
    if std is None:
        return _number(mean)
    if std <= 1e-12 * abs(mean):  # what rounding leaves of equal numbers
        return f"{_number(mean)} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(std)))
    if decimals > 6:
        return f"{mean:.4g} ± {std:.2g}"
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
