"""What all estimators share: one table of parameter rules, a fit that is all or nothing, seeds.

No estimator touches a global random state: its seed is drawn from ``random_state``, its weights
from `initial_weights`, and what it draws in training from the generator that `training.fit` gives
to each step. So fits in several threads do not disturb each other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "NOT_NEGATIVE", "POSITIVE", "RULES", "at_least", "column_scales", "draw_seed", "fitting",
    "initial_weights",
]  # fmt: skip

# --- parameter rules ------------------------------------------------------------------------------

# An estimator has a table `_parameter_constraints` in scikit-learn's form, one list of what is
# allowed for each parameter; `fitting` checks it. NaN and infinity lie in none of these intervals.

POSITIVE = Interval(Real, 0, None, closed="neither")
NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
RULES: dict[str, list] = {  # of the parameters that every estimator has
    "random_state": ["random_state"],
    "device": [str, torch.device, None],
    "progress": ["boolean"],
}


def at_least(least: int) -> Interval:
    """The rule for a whole number from ``least`` on."""
    return Interval(Integral, least, None, closed="left")


# --- fitting --------------------------------------------------------------------------------------


@contextmanager
def fitting(estimator: BaseEstimator) -> Iterator[None]:
    """The block that is an estimator's ``fit``: it happens wholly or not at all.

    First the parameters are checked against the table `_parameter_constraints` (ValueError), and
    the results of an earlier fit are taken away, so that none of them can outlive its data. If the
    block raises anything, `KeyboardInterrupt` included, the estimator is put back as it was. What
    the block finds must therefore be new objects, not changed old ones.
    """
    before = dict(vars(estimator))
    try:
        estimator._validate_params()
        for name in before:
            if name.endswith("_"):
                delattr(estimator, name)
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def column_scales(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of ``X`` (n, d), to standardise with, in float64.

    A column is constant if it varies by no more than a few units in the last place of its numbers,
    in the precision that ``X`` comes in; its mean is then its first value and its scale 1. Nothing
    depends on the unit of a column, however small or large it is.
    """
    precision = np.finfo(X.dtype).eps if X.dtype.kind == "f" else 0.0
    X = X.astype(np.float64, order="C", copy=False)  # sums depend on the order in memory
    least, most = X.min(0), X.max(0)
    largest = np.maximum(abs(least), abs(most))
    # Dividing by a power of two is exact, and the squares of what is left neither vanish nor
    # overflow.
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)
    scaled = X / unit
    mean, scale = scaled.mean(0) * unit, scaled.std(0) * unit
    constant = most / unit - least / unit <= 8 * precision * largest / unit
    mean[constant], scale[constant] = X[0, constant], 1
    return mean, scale


# --- randomness -----------------------------------------------------------------------------------


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """A seed for torch from scikit-learn's ``random_state``; None draws from numpy's global one."""
    return int(check_random_state(random_state).randint(2**31 - 1))


_DRAWS = frozenset(
    [torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli]
    + [torch.multinomial, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_]
    + [getattr(torch.Tensor, f"{name}_") for name in ("uniform", "normal", "random", "bernoulli")]
    + [getattr(torch.Tensor, f"{name}_") for name in ("exponential", "cauchy", "log_normal")]
)
_LIKE: dict[Callable, Callable] = {
    torch.rand_like: torch.Tensor.uniform_,
    torch.randn_like: torch.Tensor.normal_,
}


class _Source(TorchFunctionMode):
    """Gives its generator to each function that would draw from torch's global random state."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:  # noqa: ANN001
        kwargs = dict(kwargs or {})
        if func in _LIKE:
            return _LIKE[func](torch.empty_like(*args, **kwargs), generator=self.generator)
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def initial_weights(seed: int) -> TorchFunctionMode:
    """A context in which modules built on the CPU draw their weights from ``seed``.

    They are the weights that ``torch.manual_seed(seed)`` would give, but no global state is touched
    and other threads notice nothing::

        with initial_weights(seed):
            network = mlp(2, 10)
    """
    return _Source(torch.Generator().manual_seed(seed))
