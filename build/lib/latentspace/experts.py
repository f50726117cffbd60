"""A manager and K variational autoencoders, each the expert of one cluster (thesis 3.2 and 4.5).

The manager gives each image probabilities over the experts. The mixture's loss weighs the experts'
errors by them and adds two entropies. A log probability is kept wherever a probability would do,
because an expert that has lost all images has probability 0 and must not make a gradient NaN.

The K experts are one network: copy k of each layer is a group of its convolutions, so that a step
of all of them is one pass, and images may be the same for all experts or each expert's own.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from latentspace.dynamic_autoencoder import (
    decoder_blocks,
    encoder_blocks,
    padded_size,
    padding_of,
    plan,
)
from latentspace.variational import bernoulli_error, draw, gaussian_error, kl_to_standard

__all__ = [
    "Experts", "Manager", "Mixture", "balanced_entropy", "batch_entropy", "expert_errors",
    "mixture_loss", "sample_entropy", "soft_labels",
]  # fmt: skip

# --- the loss -------------------------------------------------------------------------------------


def soft_labels(labels: ArrayLike, strengths: ArrayLike | None = None) -> np.ndarray:
    """Targets for the manager from clusters: float32 (n, K), each row's sum 1.

    A point in cluster k with strength w in [0, 1] has ``w + (1 - w) / K`` there and ``(1 - w) / K``
    elsewhere; without ``strengths`` the label alone counts. K is the largest label plus one.
    ValueError for a label below 0, none at all, or a strength outside [0, 1]. (The thesis says
    "soft cluster labels" and no more.)
    """
    y = np.asarray(labels)
    w = np.ones(len(y)) if strengths is None else np.asarray(strengths, dtype=np.float64)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu" or y.min() < 0 or w.shape != y.shape:
        raise ValueError(f"need labels (n >= 1) from 0 on and as many strengths, got {y.shape}")
    if not ((w >= 0) & (w <= 1)).all():
        raise ValueError("strengths must lie in [0, 1]")
    k = int(y.max()) + 1
    return (w[:, None] * np.eye(k)[y] + (1 - w[:, None]) / k).astype(np.float32)


def sample_entropy(log_p: Tensor) -> Tensor:
    """Mean entropy of the rows of log probabilities (n, K), in nats: () (thesis eq. 3.3)."""
    return -(log_p.exp() * log_p).sum(1).mean()


def batch_entropy(log_p: Tensor) -> Tensor:
    """Entropy of the mean of the rows' probabilities, in nats: (), at most ln K.

    Eq. 3.4 is minus this; the thesis calls both the batch-wise entropy (S10).
    """
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return -(log_mean.exp() * log_mean).sum()


def balanced_entropy(n: int, k: int) -> float:
    """The batch entropy to expect of n images with certain labels, drawn from K equal clusters.

    It is below ln K, by about (K - 1) / 2n, though nothing is out of balance (S16). Exact: a
    cluster's count is binomial.
    """
    from scipy.stats import binom

    share = np.arange(1, n + 1) / n
    return float(-k * (binom.pmf(np.arange(1, n + 1), n, 1 / k) * share * np.log(share)).sum())


def mixture_loss(
    log_p: Tensor, errors: Tensor, alpha: float = 100.0, beta: float = 1.0
) -> dict[str, Tensor]:
    """Loss of a batch and its parts, scalars: ``loss``, ``error``, ``sample``, ``batch``.

    ``log_p`` and ``errors`` (n, K): the manager's log probabilities, and what each expert makes of
    each image. The loss is the mean of the weighted errors, plus ``alpha`` times the sample
    entropy, minus ``beta`` times the batch entropy. Source: thesis eq. 3.2 to 3.5, corrected: S10,
    S15. The weights mean nothing without a unit of the errors: see `expert_errors`.
    """
    error = (log_p.exp() * errors).sum(1).mean()
    sample, batch = sample_entropy(log_p), batch_entropy(log_p)
    loss = error + alpha * sample - beta * batch
    return {"loss": loss, "error": error, "sample": sample, "batch": batch}


# --- the networks ---------------------------------------------------------------------------------


class Manager(nn.Module):
    """Images (n, channels, height, width) to scores (n, K), by the encoder of the autoencoders.

    Parameters
    ----------
    shape : (channels, height, width)
    n_clusters : int
        K.
    filters : int, optional
        Of the first block, see `dynamic_autoencoder.plan`.
    """

    def __init__(self, shape: Sequence[int], n_clusters: int, filters: int | None = None) -> None:
        super().__init__()
        channels, height, width = shape
        side = padded_size(height, width)
        self.shape, self.padding = tuple(shape), padding_of(height, width)
        self.body = encoder_blocks(channels, side, filters)
        self.scores = nn.Linear(4 * plan(side, filters).filters[-1], n_clusters)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, K), whose softmax are the probabilities."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"need images (n, {self.shape}), got {tuple(images.shape)}")
        return self.scores(self.body(F.pad(images, self.padding)).flatten(1))


class Experts(nn.Module):
    """K stochastic autoencoders as `dynamic_autoencoder.DynamicAutoencoder`, in one network.

    Parameters
    ----------
    shape : (channels, height, width)
    latent_sizes : sequence of K ints
        Length of each expert's code, d_k >= 1. Codes are (n, K, d), d being the largest; numbers
        beyond d_k are 0 and take no part.
    filters : int, optional
        Of each expert's first block.
    likelihood : {"bernoulli", "gaussian"}
        What is painted: log odds, or grey values with variance 1.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_sizes: Sequence[int],
        filters: int | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if not len(latent_sizes) or min(latent_sizes) < 1 or min(shape) < 1:
            raise ValueError(f"need positive sizes, got {tuple(shape)} and {list(latent_sizes)}")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
        self.shape, self.likelihood, self.k = tuple(shape), likelihood, len(latent_sizes)
        self.d = max(latent_sizes)
        side, self.padding = padded_size(height, width), padding_of(height, width)
        planes = plan(side, filters).filters
        k, flat = self.k, 4 * planes[-1]
        self.body = encoder_blocks(channels, side, filters, k)
        self.code = nn.Conv2d(k * flat, k * 2 * self.d, 1, groups=k)  # a linear layer for each
        self.start = nn.Conv2d(k * self.d, k * flat, 1, groups=k)
        self.back = decoder_blocks(side, filters, k)
        self.last = nn.Conv2d(k * planes[0], k * channels, 3, padding=1, groups=k)
        used = torch.arange(self.d) < torch.tensor(list(latent_sizes))[:, None]
        self.register_buffer("used", used.float())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances (n, K, d) of the codes.

        ``images`` (n, channels, height, width) for all experts, or (n, K, ...) each expert's own.
        """
        if tuple(images.shape[-3:]) != self.shape or images.ndim not in (4, 5):
            raise ValueError(f"need images (n, [K,] {self.shape}), got {tuple(images.shape)}")
        own = images.flatten(1, 2) if images.ndim == 5 else images.repeat(1, self.k, 1, 1)
        hidden = self.body(F.pad(own, self.padding)).reshape(len(images), -1, 1, 1)
        mean, log_variance = self.code(hidden).view(-1, self.k, 2, self.d).unbind(2)
        return mean * self.used, log_variance * self.used

    def decode(self, z: Tensor) -> Tensor:
        """What each expert paints from its codes (n, K, d): (n, K, channels, height, width)."""
        hidden = self.start((z * self.used).reshape(len(z), -1, 1, 1)).reshape(len(z), -1, 2, 2)
        left, _, up, _ = self.padding
        painted = self.last(self.back(hidden))
        painted = painted[:, :, up : up + self.shape[1], left : left + self.shape[2]]
        return painted.reshape(len(z), self.k, *self.shape)

    def grey(self, z: Tensor) -> Tensor:
        """The expected images (n, K, channels, height, width) of codes (n, K, d), in [0, 1]."""
        painted = self.decode(z)
        return painted.sigmoid() if self.likelihood == "bernoulli" else painted.clamp(0, 1)

    def by(self, k: int, z: Tensor) -> Tensor:
        """The expected images (n, channels, height, width) of expert ``k`` from codes (n, d)."""
        return self.grey(z[:, None].expand(-1, self.k, -1))[:, k]


def expert_errors(experts: Experts, images: Tensor, noise: Tensor | None = None) -> Tensor:
    """Minus the evidence bound of each image by each expert, in nats per pixel value: (n, K).

    It is the error of reconstruction plus the divergence of the code, both summed, over
    ``channels height width``: d of thesis eq. 3.2, in the unit for which the thesis sets the
    weights alpha = 100 and beta = 1.

    Parameters
    ----------
    images : (n, channels, height, width), or (n, K, ...) each expert's own
    noise : (n, K, d), standard normal, optional
        What the codes are drawn with; by default the means are decoded.
    """
    mean, log_variance = experts.encode(images)
    z = mean if noise is None else draw(mean, log_variance, noise)
    wanted = images if images.ndim == 5 else images[:, None].expand(-1, experts.k, -1, -1, -1)
    error = bernoulli_error if experts.likelihood == "bernoulli" else gaussian_error
    nats = error(experts.decode(z).flatten(0, 1), wanted.flatten(0, 1))
    nats = nats + kl_to_standard(mean.flatten(0, 1), log_variance.flatten(0, 1))
    return nats.view(-1, experts.k) / math.prod(experts.shape)


class Mixture(nn.Module):
    """A manager and its experts.

    It has two answers for an image, the manager's probabilities and the weighted paintings. Thesis
    eq. 3.1 declares the one and defines the other (S32).
    """

    def __init__(self, manager: Manager, experts: Experts) -> None:
        super().__init__()
        self.manager, self.experts = manager, experts

    def forward(self, images: Tensor) -> Tensor:
        """The manager's log probabilities (n, K) of images (n, channels, height, width)."""
        return self.manager(images).log_softmax(1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The experts' paintings of the mean codes, weighted by the manager: like ``images``."""
        painted = self.experts.grey(self.experts.encode(images)[0])
        return torch.einsum("nk,nkchw->nchw", self(images).exp(), painted)
