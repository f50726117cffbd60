"""Data sets by name, from the data home or, once, from their public home.

The data home is the folder named by the environment variable LATENTSPACE_DATA (an absolute path) or
else the user's cache folder. A set stands there as `<name>/<split>.npz` with arrays `x`, `y` and,
where the file knows them, `names`.
"""

import difflib
import errno
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from latentspace.data.embedded import Dataset
from latentspace.data.sources import SETS, Source
from latentspace.files import replacing

__all__ = ["PATIENCE", "data_home", "fetch", "find_source", "gather", "load", "names"]

# What a full, protected or wrongly placed folder answers; all other failures are the network's.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR,
               errno.EEXIST, errno.EIO}  # fmt: skip


PATIENCE = 600.0
"""Seconds to wait for another process that fetches the same set and shows no progress."""


def names() -> list[str]:
    """Return the names of all data sets."""
    return list(SETS)


def data_home() -> Path:
    """Return the folder that holds the fetched sets.

    ValueError if LATENTSPACE_DATA is a relative path: a notebook, a tool and the shell have
    different working directories, so it would mean another folder to each.
    """
    if folder := os.environ.get("LATENTSPACE_DATA"):
        home = Path(folder).expanduser()
        if not home.is_absolute():
            raise ValueError(
                f"LATENTSPACE_DATA must be an absolute path, and is {folder!r}. Seen from here "
                f"that is {home.absolute()}, from a notebook another folder."
            )
        return home
    import pooch

    return Path(pooch.os_cache("latentspace"))


def load(name: str, split: str = "train") -> Dataset:
    """Load a split of a data set, fetching it if it is not in the data home.

    Returns
    -------
    Dataset
        `x` (N, H, W) or (N, H, W, 3) uint8 images, or (N, d) float32 vectors; `y` (N,) int64 in
        0..K-1 (-1 in the split "unlabeled"); `names`, the K class names.

    Raises
    ------
    ValueError
        Unknown set or split; a file in the data home that is damaged or breaks the above; a data
        home that is not absolute.
    FileNotFoundError
        The set is not in the data home and could not be fetched.
    OSError
        The data home cannot be read or written.
    """
    source = find_source(name, split)
    if source.make:
        return source.make(split)
    path = data_home() / name / f"{split}.npz"
    if not os.path.isfile(path):
        fetch(name, split)
    try:
        return _read(path, split, source)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged or not a data file: {error}. "
            f"Delete it and run `{_command(name, split)}`."
        ) from error


def gather(
    name: str, splits: Iterable[str], n: int | None = None, seed: int = 0
) -> Dataset:
    """Load several splits of a data set as one, or ``n`` of its samples drawn with ``seed``.

    The samples keep their order. Raises as `load` does, and ValueError for n < 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    parts = [load(name, split) for split in splits]
    x = np.concatenate([part.x for part in parts])
    y = np.concatenate([part.y for part in parts])
    if n is not None and n < len(x):
        chosen = np.sort(np.random.default_rng(seed).choice(len(x), n, replace=False))
        x, y = x[chosen], y[chosen]
    return Dataset(x, y, parts[0].names)


def fetch(name: str, split: str) -> None:
    """Fetch a split from its home into the data home, unless it is there.

    One process at a time works on a set; the others say that they wait for it, and give up when it
    has shown no progress for `PATIENCE` seconds. A server may be silent for a minute. Nothing
    half-written stays: files appear whole or not at all. Splits that come in the same download are
    kept as well. Raises FileNotFoundError if the set cannot be had, OSError if the data home cannot
    be written.
    """
    source, folder = find_source(name, split), data_home() / name
    if source.make or os.path.isfile(folder / f"{split}.npz"):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, name):
            if not os.path.isfile(folder / f"{split}.npz"):  # another process may have been first
                _fetch_into(folder, split, source)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise OSError(
                error.errno,
                f"{name}/{split}.npz cannot be written ({error.strerror}). Make room and allow "
                "writing, or set LATENTSPACE_DATA to another folder",
                str(folder),
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FileNotFoundError(
            f"{name}/{split}.npz is not in {data_home()} and could not be fetched from "
            f"{source.home}. With a network, run `{_command(name, split)}`; or put the file "
            f"{folder / f'{split}.npz'} there yourself. Reason: {reason}"
        ) from error


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the set's lock; while another process has it, wait as long as that one gets on."""
    from filelock import FileLock, Timeout

    lock, told, seen, since = FileLock(folder / ".lock"), False, None, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1, poll_interval=0.05)
            break
        except Timeout:
            if not told:
                _say(f"{name}: waiting for another process that is fetching it into {folder}")
                told = True
            if (now := _progress(folder)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise TimeoutError(
                    f"another process holds {folder / '.lock'} and has not got on for "
                    f"{PATIENCE:.0f} s: end it, and try again"
                ) from None
    try:
        yield
    finally:
        lock.release()


def _progress(folder: Path) -> list[tuple[str, int]]:
    """What changes in a folder while something is fetched into it: names and sizes."""
    found = []
    for path in folder.rglob("*"):
        try:
            found.append((str(path), path.stat().st_size))
        except OSError:  # gone in the meantime
            continue
    return sorted(found)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _fetch_into(folder: Path, split: str, source: Source) -> None:
    raw = folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)  # left by a process that was killed, as are parts
    for part in folder.glob(".*.part"):
        part.unlink()
    raw.mkdir()
    try:
        for part, arrays in source.fetch(raw, split):
            if not os.path.isfile(folder / f"{part}.npz"):
                _checked(arrays, part, source)
                _write(folder / f"{part}.npz", arrays)
    finally:
        shutil.rmtree(raw, ignore_errors=True)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)


def _read(path: Path, split: str, source: Source) -> Dataset:
    with np.load(path, allow_pickle=False) as file:
        return _checked(dict(file), split, source)


def _checked(arrays: Mapping[str, np.ndarray], split: str, source: Source) -> Dataset:
    """Return the arrays as a Dataset, or raise ValueError if they do not make one."""
    x, y, known = arrays["x"], arrays["y"], source.classes
    known = range(known) if isinstance(known, int) else known
    class_names = tuple(map(str, arrays.get("names", known)))
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(x) != len(y) or not len(y):
        raise ValueError(f"x {x.shape} and y {y.shape} {y.dtype} are not N samples and N labels")
    y = y.astype(np.int64, copy=False)
    lowest = -1 if split == "unlabeled" else 0
    if y.min() < lowest or y.max() >= len(class_names):
        raise ValueError(f"labels {y.min()}..{y.max()} are not in {lowest}..{len(class_names) - 1}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")
    return Dataset(x, y, class_names)


def find_source(name: str, split: str | None = None) -> Source:
    """The `Source` of a set; ValueError with a near name if there is no such set or split."""
    if name not in SETS:
        near = difflib.get_close_matches(str(name).lower(), SETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SETS)}"
        raise ValueError(f"unknown data set {name!r}; {hint}")
    splits = SETS[name].splits
    if split is not None and split not in splits:
        near = difflib.get_close_matches(str(split).lower(), splits, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(splits)}{hint}")
    return SETS[name]


def _command(name: str, split: str) -> str:
    return f"python -m latentspace.data {name} --split {split}"
