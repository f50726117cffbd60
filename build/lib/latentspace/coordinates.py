"""Coordinates of a data set that do not depend on how its features were chosen.

Points are whitened by their own covariance, in the subspace that they fill, and turned to the axes
on which their tails differ most. Change the units of the features, rotate them, mix them by any
invertible matrix, or repeat some: the coordinates stay the same, up to rounding. So does whatever
is computed from them.

Source: invariant coordinate selection (Tyler, Critchley, Dümbgen and Oja 2009), whose second
scatter matrix is here the one of fourth moments.
"""

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Coordinates", "invariant_coordinates"]

CONSTANT = 1e-12  # of its mean: a feature that varies less shows rounding
NULL = 1e-5  # of the largest standard deviation: a thinner direction is rounding, also in float32


class Coordinates(NamedTuple):
    """The map z = ((x - mean) / scale) @ axes to r coordinates, and its inverse on the subspace."""

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,), > 0
    axes: np.ndarray  # (d, r)
    inverse: np.ndarray  # (r, d): (x - mean) / scale = z @ inverse for x in the subspace

    def of(self, x: np.ndarray) -> np.ndarray:
        """Coordinates (n, r) of points (n, d); what lies outside the subspace is ignored."""
        return ((x - self.mean) / self.scale) @ self.axes

    def back(self, z: np.ndarray) -> np.ndarray:
        """Points (..., d) from their coordinates (..., r)."""
        return self.mean + self.scale * (z @ self.inverse)

    def back_covariance(self, covariance: np.ndarray) -> np.ndarray:
        """Covariances (..., d, d) from those of the coordinates; singular where r < d."""
        return self.scale[:, None] * (self.inverse.T @ covariance @ self.inverse) * self.scale

    def log_volume(self) -> float:
        """Log of the volume of a unit cube of coordinates: ln p(x) = ln p(z) - log_volume."""
        if not self.inverse.any():
            return 0.0
        unit = self.scale.max()  # the squares of very large or small numbers would overflow
        triangle = np.asarray(np.linalg.qr((self.inverse * (self.scale / unit)).T, mode="r"))
        logs = np.log(np.abs(triangle.diagonal()))
        return len(self.inverse) * math.log(unit) + float(logs.sum())


def invariant_coordinates(x: np.ndarray) -> Coordinates:
    """The invariant coordinates of points ``x`` (n, d): mean 0, covariance I, r <= min(d, n - 1).

    Features are first divided by their standard deviations. Directions whose standard deviation is
    then below a hundred-thousandth of the largest are left out, so copies and sums of features add
    nothing. The axes are the eigenvectors of E[|z|^2 z z^T], by increasing eigenvalue, each signed
    so that its third moment is positive. They are unique where these eigenvalues differ; with equal
    ones (a Gaussian cloud) they are unique up to a rotation. Equal points get one coordinate, 0.
    """
    mean = x.mean(0)
    x = x - mean
    scale = np.abs(x).max(0)
    varies = scale > CONSTANT * np.abs(mean)
    scale = np.where(varies, scale, 1.0)
    x = np.where(varies, x / scale, 0.0)
    deviation = np.where(varies, np.sqrt((x * x).mean(0)), 1.0)
    scale, x = scale * deviation, x / deviation
    _, lengths, directions = np.linalg.svd(x, full_matrices=False)
    kept = lengths > NULL * lengths[0]
    if not kept.any():
        none = np.zeros((len(mean), 1))
        return Coordinates(mean, scale, none, none.T)
    lengths, directions = lengths[kept] / math.sqrt(len(x)), directions[kept]
    z = (x @ directions.T) / lengths
    _, turn = np.linalg.eigh((z * (z * z).sum(1, keepdims=True)).T @ z)
    turn = turn * np.where(((z @ turn) ** 3).sum(0) < 0, -1.0, 1.0)
    return Coordinates(
        mean, scale, (directions.T / lengths) @ turn, turn.T @ (lengths[:, None] * directions)
    )
