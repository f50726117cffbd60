"""How many numbers a code needs: the thesis's latent finder, and the explained variance it reads.

The finder trains an autoencoder with many latent units and counts the principal components of its
codes that hold a share of their variance (thesis 3.3.1). The count is right for codes that lie in a
flat subspace and vary alike in all its directions. A curved surface needs more components than it
has dimensions, and directions of little variance are passed over.
"""

import numpy as np
from numpy.typing import ArrayLike

from latentspace.estimators import column_scales

__all__ = ["explained_variance", "latent_size"]


def explained_variance(codes: ArrayLike) -> np.ndarray:
    """Shares of the codes' variance along their principal components, falling, with the sum 1.

    ``codes`` (n, d), n >= 2, finite. Returns (d,); zeros where n < d + 1 leaves no direction.
    ValueError for anything else, and for codes that do not vary.
    """
    z = np.asarray(codes, dtype=np.float64)
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 1 or not np.isfinite(z).all():
        raise ValueError(f"codes must be finite and (n >= 2, d >= 1), got {z.shape}")
    mean, scale = column_scales(z)
    if not (z != mean).any():
        raise ValueError("the codes do not vary")
    unit = scale[(z != mean).any(0)].max()  # so that no square vanishes or overflows
    singular = np.linalg.svd((z - mean) / unit, compute_uv=False)
    shares = np.zeros(z.shape[1])
    shares[: len(singular)] = singular**2 / (singular**2).sum()
    return shares


def latent_size(codes: ArrayLike, share: float = 0.9) -> int:
    """The smallest number of principal components that hold ``share`` of the codes' variance.

    ``share`` is in (0, 1]; the thesis has .9 for clustering and .95 for reconstruction. Codes and
    errors as in `explained_variance`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    held = explained_variance(codes).cumsum()
    return int((held < share - 1e-9).sum()) + 1
