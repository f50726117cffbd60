"""Imbalanced versions of a data set, by the recipes of StatDEC: which samples to keep."""

from collections.abc import Iterable

import numpy as np

__all__ = ["long_tailed", "step_imbalance"]


def long_tailed(
    y: np.ndarray, ratio: float, n_max: int | None = None, seed: int = 0
) -> np.ndarray:
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


def step_imbalance(
    y: np.ndarray,
    ratio: float,
    n_max: int | None = None,
    minority: Iterable[int] | None = None,
    seed: int = 0,
) -> np.ndarray:
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


def _class_sizes(y: np.ndarray, ratio: float) -> tuple[np.ndarray, dict[int, int]]:
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must have one dimension, not {y.ndim}")
    labels, counts = np.unique(y, return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"imbalance needs at least 2 classes, y has {len(labels)}")
    if not 1 <= ratio < np.inf:
        raise ValueError(f"ratio must be a finite number >= 1, not {ratio}")
    return y, dict(zip(labels.tolist(), counts.tolist(), strict=True))


def _choose(y: np.ndarray, wanted: dict[int, float], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = []
    for label, size in wanted.items():
        members = rng.permutation(np.flatnonzero(y == label))
        size = int(size * (1 + 1e-12))  # 49 * (1 / 49) is a hair below 1
        if not 1 <= size <= len(members):
            raise ValueError(f"class {label} has {len(members)} samples, the imbalance asks {size}")
        chosen.append(members[:size])
    return np.sort(np.concatenate(chosen))
