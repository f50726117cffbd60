"""Errata of the experts thesis where it reviews other methods: S5 to S8."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from latentspace.dec import soft_assignment, target_distribution


def normalised(rows):
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_s5_similarities_are_those_of_students_t(alpha):
    z, centres = np.array([-1.0, 0.5, 3.0]), np.array([-2.0, 1.0, 2.5])
    away = z[:, None] - centres
    right = normalised(student.pdf(away, df=alpha))
    ours = soft_assignment(torch.tensor(z)[:, None], torch.tensor(centres)[:, None], alpha)
    np.testing.assert_allclose(ours, right)

    def printed(z, centres, sign):
        return normalised(((1 + (z[:, None] + sign * centres) ** 2) / alpha) ** -((alpha + 1) / 2))

    assert (printed(z, centres, 1).argmax(1) != right.argmax(1)).any()
    moved = printed(z + 4, centres + 4, 1)  # the same distances
    assert np.abs(moved - printed(z, centres, 1)).max() > 0.3
    # With the right sign the place of alpha still matters, unless it is 1.
    assert np.allclose(printed(z, centres, -1), right) == (alpha == 1)


def test_s6_as_printed_the_target_is_the_same_for_all_points():
    q = normalised(np.random.default_rng(0).gamma(1.0, size=(6, 3)))
    f = q.sum(0)
    printed = (q**2 / f) / (q[:, :, None] ** 2 / f).sum(2)  # the sum is over f alone
    np.testing.assert_allclose(printed, np.tile(1 / f / (1 / f).sum(), (6, 1)))
    right = np.array([[row[j] ** 2 / f[j] for j in range(3)] for row in q])
    right = [row / sum(row) for row in right]
    np.testing.assert_allclose(target_distribution(torch.tensor(q)), right)
    assert np.ptp(right, axis=0).min() > 0.3


def test_s7_as_printed_the_shares_of_a_sample_do_not_add_up_to_one():
    p = normalised(np.random.default_rng(1).gamma(1.0, size=(8, 3)) * [4.0, 1.0, 1.0])
    root = np.sqrt(p.sum(0))
    for k in range(3):  # the second index is bound by nothing
        assert np.abs((p / (root / root[k])).sum(1) - 1).max() > 0.1
    right = normalised(p / root)
    assert np.std(right.sum(0)) < np.std(p.sum(0))  # what the target is for
    equal = np.array([[0.7, 0.3], [0.3, 0.7]])
    np.testing.assert_allclose(normalised(equal / np.sqrt(equal.sum(0))), equal)


def test_s8_the_prose_of_2_18_is_not_its_formula():
    """Both thresholds fall; in the end no point is to be conflicted, as the thesis says."""
    h = np.sort(normalised(np.random.default_rng(2).gamma(0.3, size=(500, 5))), 1)[:, ::-1]
    first, lead = h[:, 0], h[:, 0] - h[:, 1]
    formula, prose = [], []
    for share in (1.0, 0.5, 0.0):
        beta_1, beta_2 = 0.8 * share, 0.4 * share
        formula.append(((first < beta_1) | (lead < beta_2)).mean())
        prose.append(((lead > beta_1) | (first < beta_2)).mean())
    assert formula[0] > formula[1] > formula[2] == 0
    assert prose[-1] == 1
