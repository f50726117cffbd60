"""The latent finder on codes of known dimension, and explained variance against scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from latentspace.latent_size import explained_variance, latent_size

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(40, 40)) @ RNG.normal(size=(40, 256))


def flat(n=2_000, d=7, noise=0.0):
    """A d-dimensional subspace of 256 numbers, equally wide in all its directions."""
    directions = np.linalg.qr(RNG.normal(size=(256, d)))[0]
    return RNG.normal(size=(n, d)) @ directions.T + noise * RNG.normal(size=(n, 256)) + 3


def curved(n=2_000, d=7, turns=1):
    """A d-dimensional torus in 256 numbers: each angle moves on a circle of its own planes."""
    angles = RNG.uniform(0, 2 * np.pi, (n, d))
    planes = [f(k * angles) for k in range(1, turns + 1) for f in (np.cos, np.sin)]
    circles = np.hstack(planes)
    return circles @ np.linalg.qr(RNG.normal(size=(256, circles.shape[1])))[0].T


@pytest.mark.parametrize("n", [5, 40, 300])
def test_shares_are_those_of_scikit_learn(n):
    x = RNG.normal(size=(n, 40)) * np.geomspace(1, 1e-3, 40) + 5
    expected = PCA().fit(x).explained_variance_ratio_
    found = explained_variance(x)
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-6, atol=1e-12)
    assert found.shape == (40,) and found.sum() == pytest.approx(1)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 1.0])
def test_size_is_what_scikit_learn_keeps(share):
    x = RNG.normal(size=(400, 30)) * np.geomspace(1, 0.05, 30)
    kept = 30 if share == 1 else PCA(share).fit(x).n_components_
    assert latent_size(x, share) == kept


def test_a_flat_space_is_counted_right():
    assert latent_size(flat(), 0.9) == latent_size(flat(), 1.0) == 7
    # Noise in the other 249 directions is counted once it holds a share of its own.
    assert latent_size(flat(noise=0.01), 0.95) == 7
    assert latent_size(flat(noise=0.2), 0.9) > 50


def test_a_curved_space_is_counted_too_high():
    """Seven angles, and fourteen components, or as many more as the curve has turns."""
    assert latent_size(curved(), 0.95) == 14
    assert latent_size(curved(turns=3), 0.95) >= 40


def test_directions_of_little_variance_are_passed_over():
    assert latent_size(flat(d=7) + 30 * flat(d=1), 0.9) == 1


def test_units_shift_and_rotation_do_not_count():
    x, turn = flat(500, noise=0.1), np.linalg.qr(RNG.normal(size=(256, 256)))[0]
    for other in (1e-200 * x, 1e200 * x, x + 1e3, x @ turn, x[::-1]):
        np.testing.assert_allclose(explained_variance(other), explained_variance(x), rtol=1e-6)


def test_columns_that_do_not_vary_have_no_share():
    x = np.c_[RNG.normal(size=(50, 2)), np.full(50, 0.1), np.full(50, 1e9)]
    np.testing.assert_array_equal(explained_variance(x)[2:], 0)
    np.testing.assert_allclose(explained_variance(x)[:2], explained_variance(x[:, :2]))


def test_bad_input():
    good = RNG.normal(size=(5, 2))
    for wrong in (good[0], good[:1], good[:, :0], np.where(good > 0, good, np.nan), 0 * good + 7):
        with pytest.raises(ValueError, match="codes"):
            explained_variance(wrong)
    for share in (0, -1, 1.1, np.nan):
        with pytest.raises(ValueError, match="share"):
            latent_size(good, share)
