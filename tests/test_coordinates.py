"""Invariant coordinates: whitened, unique, and the same under every map they should not see."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, ortho_group

from latentspace.coordinates import invariant_coordinates


def points(n=400, seed=0):
    """Four dimensions with different tails and skewness, correlated, away from the origin."""
    rng = np.random.default_rng(seed)
    columns = [rng.exponential(size=n), rng.uniform(-1, 2, size=n), rng.normal(size=n) ** 3,
               rng.gamma(3.0, size=n) + 4.0 * rng.integers(2, size=n)]  # fmt: skip
    return np.column_stack(columns) @ rng.normal(size=(4, 4)) + [5.0, -3.0, 100.0, 0.1]


X = points()
MIX = np.random.default_rng(1).normal(size=(4, 4))


def test_mean_zero_covariance_one_and_ordered_signed_fourth_moments():
    z = invariant_coordinates(X).of(X)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(4), atol=1e-10)
    fourth = np.mean([np.outer(row, row) * (row @ row) for row in z], 0)
    np.testing.assert_allclose(fourth, np.diag(np.diag(fourth)), atol=1e-8)
    assert (np.diff(np.diag(fourth)) > 0).all()
    assert ((z**3).mean(0) > 0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * [1e-3, 1.0, 7e5, -2.0],
        lambda x: x * 1e-150,
        lambda x: x * 1e150,
        lambda x: x @ ortho_group.rvs(4, random_state=0),
        lambda x: x @ MIX + [3.0, 1e3, 0.0, -1e4],
        lambda x: x[:, [2, 0, 3, 1]],
        lambda x: np.c_[x, x, x],
        lambda x: x @ np.random.default_rng(2).normal(size=(4, 10)),
        lambda x: np.c_[x, np.full(len(x), 0.1), x.sum(1)],
    ],
    ids=["units", "small", "huge", "rotation", "any linear map", "order of features", "copies",
         "mixtures", "constant and sum"],
)  # fmt: skip
def test_a_linear_map_or_a_redundant_feature_changes_nothing(change):
    y = change(X)
    ours = invariant_coordinates(y)
    np.testing.assert_allclose(ours.of(y), invariant_coordinates(X).of(X), atol=1e-7)
    span = np.ptp(y, axis=0) + np.abs(y.mean(0))
    np.testing.assert_allclose(ours.back(ours.of(y)) / span, y / span, atol=1e-10)


def test_redundant_features_in_single_precision_are_seen_as_such():
    x = X.astype(np.float32)
    mixed = (x @ np.random.default_rng(2).normal(size=(4, 10)).astype(np.float32)).astype(float)
    ours = invariant_coordinates(mixed)
    assert ours.axes.shape == (10, 4)
    np.testing.assert_allclose(ours.of(mixed), invariant_coordinates(X).of(X), atol=2e-3)


def test_a_thin_but_real_direction_stays():
    assert invariant_coordinates(np.c_[X[:, 0], X[:, 0] + 1e-3 * X[:, 1]]).axes.shape == (2, 2)


def test_covariances_and_densities_come_back():
    ours = invariant_coordinates(X)
    covariance = np.cov(X.T, ddof=0)
    np.testing.assert_allclose(ours.back_covariance(np.eye(4)), covariance, rtol=1e-8)
    theirs = multivariate_normal(X.mean(0), covariance).logpdf(X)
    mine = multivariate_normal(np.zeros(4), np.eye(4)).logpdf(ours.of(X)) - ours.log_volume()
    np.testing.assert_allclose(mine, theirs, rtol=1e-8)


def test_log_volume_of_a_copy_is_that_on_the_diagonal():
    """A step of 1 in x is one of sqrt(2) in (x, x)."""
    one, two = (invariant_coordinates(x).log_volume() for x in (X[:, :1], X[:, [0, 0]]))
    assert two - one == pytest.approx(0.5 * math.log(2))


@pytest.mark.parametrize("x", [np.full((5, 3), 7.1), X[:1]], ids=["equal points", "one point"])
def test_no_spread(x):
    ours = invariant_coordinates(x)
    np.testing.assert_array_equal(ours.of(x), np.zeros((len(x), 1)))
    np.testing.assert_array_equal(ours.back(ours.of(x)), x)
    assert ours.log_volume() == 0
