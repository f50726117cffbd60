"""Five Gaussians of unequal sizes and shapes in the plane: X (750, 2), Y (750,)."""

import numpy as np

SIZES, CENTRES = (300, 150, 60, 200, 40), np.array([[0, 0], [9, 2], [3, 12], [-8, -6], [12, 12]])


def blobs(seed):
    rng = np.random.default_rng(seed)
    x, y = [], np.repeat(np.arange(5), SIZES)
    for k, (n, centre) in enumerate(zip(SIZES, CENTRES, strict=True)):
        shape = np.array([[1.0 + 0.3 * k, 0], [0.5, 1.2 - 0.2 * k]])
        x.append(rng.normal(size=(n, 2)) @ shape.T + centre)
    return np.concatenate(x), y


X, Y = blobs(0)
