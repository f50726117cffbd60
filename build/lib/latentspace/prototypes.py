"""Prototypes and codes: what SwAV compares instead of pairs of images.

Shapes: ``n`` images, ``K`` prototypes, ``V`` views of each image, of which the first ``G`` have
codes; ``d`` is the width of the sphere on which features and prototypes lie. The method is
SwAV (Caron et al. 2020), which the seminar slides review.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Prototypes", "Queue", "nt_xent", "sinkhorn", "swapped_prediction"]


def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int = 3) -> torch.Tensor:
    """Codes of a batch: the entropic optimal transport from images to equally used prototypes.

    Approaches ``n Q`` for the ``Q`` that maximises ``sum(Q * scores) + epsilon * H(Q)`` among
    matrices with row sums 1/n and column sums 1/K. All is done on logarithms, so no ``epsilon``
    overflows; half precision is computed in float32. The rounding error of a code is about
    ``1e-7 * max|scores| / epsilon`` relatively in float32: use float64 for epsilon below 1e-3.

    Parameters
    ----------
    scores : Tensor (n, K), similarities (minus the cost: slides, L4)
    epsilon : float > 0
    iterations : int >= 1
        Each normalises the prototypes (columns), then the images (rows).

    Returns
    -------
    Tensor (n, K), without gradient. Rows sum to 1 (L5: this is n times the transport plan), columns
    to n/K in the limit. With more prototypes than images a code spreads over K/n or more of them.

    Raises
    ------
    ValueError
        Scores that are not finite or not a non-empty matrix, epsilon or iterations out of range.

    Source: slides on online clustering (SwAV eq. 3-5), scaled as errata L5 says.
    """
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"scores must be a non-empty (n, K), got {tuple(scores.shape)}")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    scores = scores.detach()
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if not scores.isfinite().all():
        raise ValueError("scores hold NaN or infinite values")
    log_q = (scores - scores.max()) / epsilon
    log_q = log_q.clamp(min=torch.finfo(log_q.dtype).min / 4)  # -inf would become NaN below
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def swapped_prediction(
    scores: torch.Tensor, codes: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Cross-entropy of each code and every *other* view's prediction of it, averaged.

    Parameters
    ----------
    scores : Tensor (V, n, K), similarities of every view and prototype, V >= 2
    codes : Tensor (G, n, K), 1 <= G <= V, codes of the first G views
    temperature : float > 0

    Returns
    -------
    Scalar tensor: the mean over images, the G codes and their V - 1 other views. The slides write
    sums over both, which only scales the learning rate.

    Raises
    ------
    ValueError
        Shapes that do not fit, or temperature out of range.

    Source: slides, "Swapped Prediction problem" and "Multi-crop" (SwAV eq. 1, 2 and 6).
    """
    views, coded = len(scores), len(codes)
    if scores.ndim != 3 or scores.shape[1:] != codes.shape[1:] or not 1 <= coded <= views > 1:
        raise ValueError(f"scores {tuple(scores.shape)} and codes {tuple(codes.shape)} do not fit")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_p = (scores / temperature).log_softmax(-1)
    cross_entropy = -torch.einsum("gnk,vnk->gv", codes, log_p) / scores.shape[1]
    own = cross_entropy.diagonal().sum()
    return (cross_entropy.sum() - own) / (coded * (views - 1))


def nt_xent(z: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Instance discrimination, SimCLR's loss: find an image's other view among 2n - 1 views.

    Parameters
    ----------
    z : Tensor (2, n, d), unit vectors; n >= 2
    temperature : float > 0

    Raises
    ------
    ValueError
        Another shape, fewer than two images, or temperature out of range.

    Source: Chen et al. 2020, eq. 1.
    """
    if z.ndim != 3 or len(z) != 2 or z.shape[1] < 2:
        raise ValueError(f"z must be (2, n, d) with n >= 2, got {tuple(z.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    n = z.shape[1]
    views = z.flatten(0, 1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(-math.inf)  # a view is not its own partner
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


class Prototypes(nn.Module):
    """K trainable unit vectors, compared with unit features by the dot product.

    Parameters
    ----------
    n_prototypes, width : int
    """

    def __init__(self, n_prototypes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(n_prototypes, width), dim=1))

    def forward(self, z: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Scores (..., K) of features (..., d); ``frozen`` gives the prototypes no gradient."""
        return z @ (self.weight.detach() if frozen else self.weight).T

    @torch.no_grad()
    def normalise(self) -> None:
        """Put the prototypes back onto the sphere, in place; before each step (SwAV's code)."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class Queue(nn.Module):
    """Features of past batches, so that codes of a small batch come from a larger one.

    Parameters
    ----------
    views, length, width : int
        ``length`` features of ``width`` are kept for each of the ``views`` that have codes.
    """

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.zeros(views, length, width))
        self.register_buffer("count", torch.tensor(0))

    @property
    def full(self) -> bool:
        """Whether all ``length`` places hold features."""
        return int(self.count) >= self.rows.shape[1]

    @torch.no_grad()
    def push(self, z: torch.Tensor) -> None:
        """Put features (views, n, width) in front; the oldest go."""
        self.count += z.shape[1]
        self.rows.copy_(torch.cat([z, self.rows], 1)[:, : self.rows.shape[1]])
