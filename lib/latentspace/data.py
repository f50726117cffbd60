"""Data sets by name: `load("mnist", "train")`; `python -m latentspace.data` lists and fetches them.

Embedded sets (moons, colour-shapes, digits, mnist-5k) need neither network nor disk. The others
live in the data home, the folder named by the environment variable LATENTSPACE_DATA or else the
user's cache folder, as `<name>/<split>.npz` with arrays `x`, `y` and, where the file knows them,
`names`. What is not there is fetched from its public home (`latentspace.sources`).
"""

import argparse
import difflib
import errno
import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

from .embedded import Dataset, colour_shapes, moons
from .sources import SETS

__all__ = [
    "Dataset", "colour_shapes", "data_home", "fetch", "fingerprint", "load", "long_tailed", "moons",
    "names", "step_imbalance",
]  # fmt: skip

# What a full, protected or wrongly placed folder answers; all other failures are the network's.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR,
               errno.EEXIST, errno.EIO}  # fmt: skip


def names():
    """Return the names of all data sets."""
    return list(SETS)


def data_home():
    """Return the folder that holds the fetched sets."""
    if folder := os.environ.get("LATENTSPACE_DATA"):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("latentspace"))


def load(name, split="train"):
    """Load a split of a data set, fetching it if it is not in the data home.

    Returns
    -------
    Dataset
        `x` (N, H, W) or (N, H, W, 3) uint8 images, or (N, d) float32 vectors; `y` (N,) int64 in
        0..K-1 (-1 in the split "unlabeled"); `names`, the K class names.

    Raises
    ------
    ValueError
        Unknown set or split; a file in the data home that is damaged or breaks the above.
    FileNotFoundError
        The set is not in the data home and could not be fetched.
    OSError
        The data home cannot be read or written.
    """
    source = _source(name, split)
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


def fetch(name, split):
    """Fetch a split from its home into the data home, unless it is there.

    One process at a time works on a set; the others wait for it. Nothing half-written stays: files
    appear whole or not at all. Splits that come in the same download are kept as well. Raises
    FileNotFoundError if the set cannot be had, OSError if the data home cannot be written.
    """
    source, folder = _source(name, split), data_home() / name
    if source.make or os.path.isfile(folder / f"{split}.npz"):
        return
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
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


def _fetch_into(folder, split, source):
    raw = folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)  # left by a process that was killed
    raw.mkdir()
    try:
        for part, arrays in source.fetch(raw, split):
            if not os.path.isfile(folder / f"{part}.npz"):
                _checked(arrays, part, source)
                _write(folder / f"{part}.npz", arrays)
    finally:
        shutil.rmtree(raw, ignore_errors=True)


def _write(path, arrays):
    """Write an npz file that appears under its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _read(path, split, source):
    with np.load(path, allow_pickle=False) as file:
        return _checked(dict(file), split, source)


def _checked(arrays, split, source):
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


def _source(name, split=None):
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


def _command(name, split):
    return f"python -m latentspace.data {name} --split {split}"


# --- Imbalance ----------------------------------------------------------------------------------


def long_tailed(y, ratio, n_max=None, seed=0):
    """Choose samples so that class sizes fall off geometrically.

    Of the i-th of C classes (in the order of their labels) floor(n_max * ratio**(-i / (C - 1)))
    samples are kept: `n_max` of the first, `n_max / ratio` of the last. This is the exponential
    decay of StatDEC's long-tailed CIFAR.

    Parameters
    ----------
    y : array (N,) of labels
    ratio : float >= 1, the largest class size over the smallest
    n_max : size of the largest class; by default that of the smallest class in `y`
    seed : chooses which samples; for one seed, a larger ratio keeps a subset of a smaller one's

    Returns
    -------
    Indices into `y` (int64), ascending.
    """
    y, sizes = _class_sizes(y, ratio)
    n_max = min(sizes.values()) if n_max is None else n_max
    exponents = np.arange(len(sizes)) / (len(sizes) - 1)
    wanted = n_max * float(ratio) ** -exponents
    return _choose(y, dict(zip(sizes, wanted, strict=True)), seed)


def step_imbalance(y, ratio, n_max=None, minority=None, seed=0):
    """Choose samples so that minority classes are `ratio` times smaller than the others.

    Majority classes keep `n_max` samples, minority classes floor(n_max / ratio): the
    step imbalance of StatDEC's CIFAR.

    Parameters and result as for `long_tailed`; `minority` lists the labels of the small classes,
    by default the upper half of them (the smaller half if their number is odd).
    """
    y, sizes = _class_sizes(y, ratio)
    n_max = min(sizes.values()) if n_max is None else n_max
    minority = list(sizes)[(len(sizes) + 1) // 2 :] if minority is None else list(minority)
    if unknown := set(minority) - set(sizes):
        raise ValueError(f"minority classes {sorted(unknown)} do not occur in y")
    wanted = {label: n_max / ratio if label in minority else n_max for label in sizes}
    return _choose(y, wanted, seed)


def _class_sizes(y, ratio):
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must have one dimension, not {y.ndim}")
    labels, counts = np.unique(y, return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"imbalance needs at least 2 classes, y has {len(labels)}")
    if not 1 <= ratio < np.inf:
        raise ValueError(f"ratio must be a finite number >= 1, not {ratio}")
    return y, dict(zip(labels.tolist(), counts.tolist(), strict=True))


def _choose(y, wanted, seed):
    rng = np.random.default_rng(seed)
    chosen = []
    for label, size in wanted.items():
        members = rng.permutation(np.flatnonzero(y == label))
        size = int(size * (1 + 1e-12))  # 49 * (1 / 49) is a hair below 1
        if not 1 <= size <= len(members):
            raise ValueError(f"class {label} has {len(members)} samples, the imbalance asks {size}")
        chosen.append(members[:size])
    return np.sort(np.concatenate(chosen))


def fingerprint(*arrays):
    """Return 12 hex characters of a sha256 over each array's dtype, shape and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array, order="C")
        if array.dtype.hasobject:
            raise ValueError("an array of Python objects has no fingerprint")
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


# --- Command line -------------------------------------------------------------------------------


def _present(name, source):
    if source.make:
        return "embedded"
    found = [s for s in source.splits if os.path.isfile(data_home() / name / f"{s}.npz")]
    return "yes" if len(found) == len(source.splits) else ", ".join(found) or "no"


def _table():
    rows = [("set", "splits", "MB", "present", "licence", "source")]
    for name, s in SETS.items():
        size = f"{s.megabytes:g}" if s.megabytes else "-"
        rows.append((name, ", ".join(s.splits), size, _present(name, s), s.licence, s.home))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return f"Data home: {data_home()}\n\n" + "\n".join(lines)


def main(argv=None):
    """List the data sets, or fetch the named ones. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m latentspace.data",
        description="List the data sets with size, licence and source, or fetch some by name.",
    )
    parser.add_argument("name", nargs="*", help="sets to fetch; none: list all")
    parser.add_argument("--split", help="fetch only this split (default: all)")
    args = parser.parse_args(argv)
    if not args.name:
        print(_table())
        return 0
    try:
        wanted = [
            (name, split)
            for name in args.name
            for split in _source(name, args.split).splits
            if args.split in (None, split)
        ]
    except ValueError as error:
        parser.error(str(error))
    failed = False
    for name, split in wanted:
        if SETS[name].make:
            print(f"{name}/{split}: embedded, nothing to fetch")
            continue
        try:
            fetch(name, split)
            print(data_home() / name / f"{split}.npz")
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
