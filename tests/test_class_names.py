"""The superclasses against the table that circulates as a list of numbers."""

import numpy as np
import pytest

from latentspace.data.class_names import SUPERCLASSES, superclasses
from latentspace.data.embedded import Dataset

# Superclass of each of the 100 classes in alphabetical order, as in the set's own coarse labels.
COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15,
    3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4,
    2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


def test_superclasses():
    names = tuple(sorted(" ".join(SUPERCLASSES.values()).split()))
    assert len(set(names)) == 100
    y = np.random.default_rng(0).permutation(100)
    found = superclasses(Dataset(np.zeros((100, 2, 2), np.uint8), y, names))
    assert found.y.tolist() == [COARSE[label] for label in y]
    assert np.bincount(found.y).tolist() == [5] * 20
    assert len(found.names) == 20


def test_other_names():
    with pytest.raises(ValueError, match="not classes of CIFAR-100: dragon"):
        superclasses(Dataset(np.zeros((1, 2, 2)), np.zeros(1, int), ("dragon",)))
