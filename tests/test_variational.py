"""Likelihoods, divergence and discrepancy against torch.distributions, scipy and loops.

Errata of the thesis: S3 (the reparameterisation, the reconstruction error), S4 (the norm of beta).
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Bernoulli, Normal, kl_divergence

from latentspace.variational import (
    bernoulli_error,
    draw,
    gaussian_error,
    kl_to_standard,
    mmd,
    normalised_beta,
    warm_up,
)

G = torch.Generator().manual_seed(0)
MEAN = torch.randn(7, 3, generator=G, dtype=torch.float64)
LOG_VARIANCE = torch.randn(7, 3, generator=G, dtype=torch.float64)


def test_bernoulli_error_is_the_log_probability_of_torch():
    logits = 3 * torch.randn(5, 1, 4, 4, generator=G)
    bits = (torch.rand(5, 1, 4, 4, generator=G) < 0.5).float()
    expected = -Bernoulli(logits=logits).log_prob(bits).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_error(logits, bits), expected)
    grey = torch.rand(5, 1, 4, 4, generator=G)  # between bits it is linear
    p = logits.sigmoid()
    expected = -(grey * p.log() + (1 - grey) * (1 - p).log()).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_error(logits, grey), expected)


def test_gaussian_error_is_the_log_density_of_torch_less_its_constant():
    mean, x = torch.randn(2, 5, 3, 4, 4, generator=G)
    for variance in (1.0, 0.3):
        density = Normal(mean, math.sqrt(variance)).log_prob(x).sum((1, 2, 3))
        constant = 48 / 2 * math.log(2 * math.pi * variance)
        torch.testing.assert_close(gaussian_error(mean, x, variance), -density - constant)
    with pytest.raises(ValueError, match="variance"):
        gaussian_error(mean, x, 0.0)


def test_s3_the_printed_reconstruction_error_is_no_likelihood():
    """Eq. 2.5 is a norm without the square: its gradient has the length 1, however near it is."""
    x = torch.zeros(1, 9)
    for distance in (1e-3, 1.0):
        painted = torch.full((1, 9), distance, requires_grad=True)
        printed = (x - painted).norm()
        (slope,) = torch.autograd.grad(printed, painted)
        torch.testing.assert_close(slope.norm(), torch.tensor(1.0))
        (slope,) = torch.autograd.grad(gaussian_error(painted, x).sum(), painted)
        torch.testing.assert_close(slope.norm(), torch.tensor(3 * distance))


def test_divergence_is_that_of_torch_and_of_an_integral():
    code = Normal(MEAN, (LOG_VARIANCE / 2).exp())
    expected = kl_divergence(code, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard(MEAN, LOG_VARIANCE), expected)
    m, s = float(MEAN[0, 0]), math.exp(float(LOG_VARIANCE[0, 0]) / 2)
    one, other = stats.norm(m, s), stats.norm()
    value, _ = integrate.quad(
        lambda v: one.pdf(v) * (one.logpdf(v) - other.logpdf(v)), m - 9 * s, m + 9 * s
    )
    assert float(kl_to_standard(MEAN[:1, :1], LOG_VARIANCE[:1, :1])) == pytest.approx(value)
    assert float(kl_to_standard(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


def test_s3_noise_is_multiplied_by_the_deviation_not_the_covariance():
    noise = torch.randn(200_000, 1, generator=G)
    mean, log_variance = torch.full_like(noise, 2.0), torch.full_like(noise, math.log(4.0))
    drawn = draw(mean, log_variance, noise)
    assert float(drawn.mean()) == pytest.approx(2, abs=0.02)
    assert float(drawn.var()) == pytest.approx(4, rel=0.01)
    printed = mean + log_variance.exp() * noise
    assert float(printed.var()) == pytest.approx(16, rel=0.01)  # a variance of 4 was asked for


def kernel(a, b):
    square, d = sum((p - q) ** 2 for p, q in zip(a, b, strict=True)), len(a)
    return sum(s * 2 * d / (s * 2 * d + square) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))


def test_discrepancy_by_loops():
    z, prior = MEAN[:5].tolist(), LOG_VARIANCE[:4].tolist()
    within = sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / 20
    other = sum(kernel(a, b) for i, a in enumerate(prior) for j, b in enumerate(prior) if i != j)
    across = sum(kernel(a, b) for a in z for b in prior) / 20
    found = float(mmd(MEAN[:5], LOG_VARIANCE[:4]))
    assert found == pytest.approx(within + other / 12 - 2 * across, rel=1e-9)


def test_discrepancy_is_unbiased_and_sees_a_shift():
    generator = torch.Generator().manual_seed(1)
    same = [float(mmd(*torch.randn(2, 30, 3, generator=generator))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20 and min(same) < 0
    z, prior = torch.randn(2, 200, 3, generator=generator)
    assert float(mmd(z + 1, prior)) > 10 * np.std(same)
    assert float(mmd(0.5 * z, prior)) > float(mmd(z, prior))
    with pytest.raises(ValueError, match="two points"):
        mmd(z[:1], prior)


def test_warm_up_rises_linearly_from_none_to_all():
    assert [warm_up(epoch, 4) for epoch in range(1, 8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert warm_up(1, 0) == warm_up(1, -1) == 1


def test_s4_the_norm_of_beta_needs_beta():
    assert normalised_beta(4, 10, 256) == pytest.approx(0.15625)
    # As printed, every beta has the norm of beta = 1.
    assert normalised_beta(4, 10, 256) != 10 / 256 == normalised_beta(1, 10, 256)
    for wrong in ((math.inf, 10, 256), (1, 0, 256)):
        with pytest.raises(ValueError, match="finite"):
            normalised_beta(*wrong)
