"""What a generative autoencoder minimises: likelihoods, penalties on the codes, their weights.

Pure functions. Errors are sums over an image's pixels, divergences sums over a code's numbers, so
that error plus divergence is minus the evidence bound of that image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bernoulli_error",
    "draw",
    "gaussian_error",
    "kl_to_standard",
    "mmd",
    "normalised_beta",
    "warm_up",
]


def bernoulli_error(log_odds: Tensor, x: Tensor) -> Tensor:
    """Binary cross-entropy of ``x`` (n, ...) in [0, 1] with these log odds, in nats: (n,)."""
    return F.binary_cross_entropy_with_logits(log_odds, x, reduction="none").flatten(1).sum(1)


def gaussian_error(mean: Tensor, x: Tensor, variance: float = 1.0) -> Tensor:
    """Squared error of ``x`` (n, ...) over twice the variance: (n,).

    Minus the log density of N(mean, variance I) at ``x``, less its constant.
    """
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")
    return (x - mean).square().flatten(1).sum(1) / (2 * variance)


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)) of codes (n, d), in nats: (n,)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def draw(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from N(mean, variance), all (n, d), made of standard normal ``noise``.

    The noise is multiplied by the standard deviation. The thesis's text below eq. 2.8 takes the
    covariance, which squares the spread (S3).
    """
    return mean + (log_variance / 2).exp() * noise


def mmd(z: Tensor, prior: Tensor, variance: float = 1.0) -> Tensor:
    """Squared maximum mean discrepancy between codes (n, d) and draws from the prior (m, d): ().

    The unbiased estimate of Tolstikhin et al. (2018): pairs of a point with itself are left out, so
    it can be negative. The kernel is their sum of inverse multiquadratics C / (C + ||a - b||^2),
    with C = s 2 d ``variance`` for s = .1, .2, .5, 1, 2, 5, 10, ``variance`` being the prior's.
    ValueError for less than two points on a side. Source: thesis eq. 2.11.
    """
    n, m = len(z), len(prior)
    if min(n, m) < 2:
        raise ValueError(f"needs two points on each side, got {n} and {m}")
    within_z, within_prior, across = (
        _multiquadratic(a, b, 2 * z.shape[1] * variance)
        for a, b in ((z, z), (prior, prior), (z, prior))
    )
    mean_z = (within_z.sum() - within_z.diagonal().sum()) / (n * (n - 1))
    mean_prior = (within_prior.sum() - within_prior.diagonal().sum()) / (m * (m - 1))
    return mean_z + mean_prior - 2 * across.mean()


def _multiquadratic(a: Tensor, b: Tensor, scale: float) -> Tensor:
    square = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
    return torch.stack([s * scale / (s * scale + square) for s in _SCALES]).sum(0)


_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def warm_up(epoch: int, epochs: float) -> float:
    """Weight of the penalty in epoch 1, 2, ...: 0 in the first, then linearly to 1 (thesis 4.1).

    1 is reached ``epochs`` epochs after the first one, and for ``epochs`` <= 0 at once.
    """
    if epochs <= 0:
        return 1.0
    return min(1.0, (epoch - 1) / epochs)


def normalised_beta(beta: float, latent_dim: int, n_features: int) -> float:
    """beta M / N, for M latent and N observed dimensions: what Higgins et al. (2017) call the norm.

    The thesis's eq. 2.9 lacks beta itself (S4).
    """
    value = beta * latent_dim / n_features
    if not (math.isfinite(value) and min(latent_dim, n_features) >= 1):
        raise ValueError(f"need finite beta and sizes >= 1: {beta}, {latent_dim}, {n_features}")
    return value
