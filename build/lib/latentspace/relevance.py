"""A network as a mixture model: normalised scores, posteriors and the EM loss on them.

The last layer's scores ``a`` (n, K) say how relevant each of K clusters is to each of n inputs.
Normalised over the batch and squashed they play the part of K cluster densities. As a loss on any
small network that ends in K scores, a clusterer or a gate::

    normalized = normalize_relevance(scores)
    loss = em_loss(normalized, sharpened_posterior(normalized))

Equations are numbered as in Tissera's thesis, chapter 4; "corrected" marks those whose printed form
does not hold (the book's errata page, T6 to T14, shows each with numbers).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "RelevanceNorm", "cluster_scores", "consistency_loss", "em_loss", "exact_posterior",
    "mutual_information_loss", "normalize_relevance", "normalized_score_bound",
    "sharpened_posterior", "update_prior",
]  # fmt: skip

# --- from scores to cluster distributions ---------------------------------------------------------


def normalize_relevance(scores: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Scores with mean 0 and variance 1 over the batch, each cluster on its own (eq. 4.11).

    Parameters
    ----------
    scores : tensor (n, K)
    eps : float
        Added to the variance, so that a score that is the same for all inputs becomes 0, not NaN.

    Returns
    -------
    tensor (n, K), none beyond ``normalized_score_bound(n)``. All zeros for one input, for identical
    inputs and in the column of a constant score c (up to the rounding of its mean: below 1e-3 |c|
    in single precision).

    Raises
    ------
    ValueError
        Not (n, K) floats, no row, or NaN or infinity among them (checked on the CPU only, as the
        check would stop a GPU; `training.fit` then finds it).
    """
    _check_scores(scores)
    if len(scores) == 1:
        return scores - scores  # zeros that carry a gradient, of zero
    return torch.batch_norm(scores, None, None, None, None, True, 0.0, eps, False)


class RelevanceNorm(nn.Module):
    """Normalisation of scores by the batch in training, by running statistics in evaluation.

    Batch normalisation without its affine part, which would undo it. Running statistics let one
    input be scored alone, but the cluster scores of a batch then average to one half only up to
    about ``1 / (4 gamma sqrt(n))`` (errata T10).

    Parameters
    ----------
    n_clusters : int
    momentum : float in (0, 1]
        Share of the new batch in the running statistics.
    eps : float

    Calling it maps (n, K) to (n, K) and raises as `normalize_relevance`. A training batch of one
    input becomes zeros and leaves the running statistics alone. The running variance has n - 1 in
    its denominator, as in `torch.nn.BatchNorm1d`.
    """

    def __init__(self, n_clusters: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if n_clusters < 1 or not 0 < momentum <= 1 or not eps > 0:
            raise ValueError(
                "need n_clusters >= 1, momentum in (0, 1] and eps > 0, "
                f"got {n_clusters}, {momentum}, {eps}"
            )
        self.momentum, self.eps = momentum, eps
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.register_buffer("running_mean", torch.zeros(n_clusters))
        self.register_buffer("running_var", torch.ones(n_clusters))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        _check_scores(scores)
        if scores.shape[1] != len(self.running_mean):
            raise ValueError(f"{scores.shape[1]} scores, but {len(self.running_mean)} clusters")
        if self.training and len(scores) == 1:
            return scores - scores
        running = self.running_mean, self.running_var
        return torch.batch_norm(
            scores, None, None, *running, self.training, self.momentum, self.eps, False
        )


def normalized_score_bound(n: int) -> float:
    """The largest |score| that n >= 1 scores normalised by eq. 4.11 can hold: ``sqrt(n - 1)``.

    One score apart from n - 1 equal ones reaches it. The thesis prints ``(n - 1) / sqrt(n)``, which
    belongs to a standard deviation with n - 1 in its denominator (errata T7).
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    return math.sqrt(n - 1)


def cluster_scores(normalized: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """``h = sigmoid(a* / gamma)``, the unnormalised cluster distributions (eq. 4.12, corrected).

    Parameters
    ----------
    normalized : tensor (n, K)
        The *normalised* scores; the printed equation shows raw ones (errata T12).
    gamma : float > 0
        Temperature. The larger, the closer the mean of h over the batch is to one half (T9).
    """
    return torch.sigmoid(normalized / _positive(gamma))


# --- posteriors: the E-step -----------------------------------------------------------------------


def sharpened_posterior(
    normalized: torch.Tensor, log_prior: torch.Tensor | None = None
) -> torch.Tensor:
    """``softmax(a* + log prior)``, what the method takes for its posterior (eq. 4.20).

    Far sharper than `exact_posterior`, which is about ``softmax(a* / (2 gamma))``, and what makes
    the training cluster (errata T13). Exact for densities ``exp(a*)`` (T14).

    Parameters
    ----------
    normalized : tensor (n, K)
    log_prior : tensor (K,), optional
        Uniform by default.

    Returns
    -------
    tensor (n, K), rows sum to 1, without gradient: the M-step holds posteriors fixed.
    """
    return torch.softmax(_with_prior(normalized.detach(), log_prior), 1)


def exact_posterior(
    normalized: torch.Tensor, gamma: float = 5.0, log_prior: torch.Tensor | None = None
) -> torch.Tensor:
    """Bayes' rule: ``h_j pi_j`` over their sum (eq. 4.18, 4.19).

    Parameters and result as for `sharpened_posterior`.
    """
    log_density = F.logsigmoid(normalized.detach() / _positive(gamma))
    return torch.softmax(_with_prior(log_density, log_prior), 1)


def update_prior(
    prior: torch.Tensor, posterior: torch.Tensor, rate: float = 0.1
) -> torch.Tensor:
    """``(1 - rate) prior + rate * mean posterior``; the thesis has no formula: priors come
    from the posteriors of the step before.

    Parameters
    ----------
    prior : tensor (K,), sums to 1
    posterior : tensor (n, K), rows sum to 1
    rate : float in [0, 1]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    return torch.lerp(prior, posterior.detach().mean(0), rate)


# --- losses: the M-step ---------------------------------------------------------------------------


def em_loss(
    normalized: torch.Tensor,
    posterior: torch.Tensor,
    gamma: float = 5.0,
    log_prior: torch.Tensor | None = None,
) -> torch.Tensor:
    """Expected complete-data log-likelihood of a batch, with its sign turned (eq. 4.22).

    ``-1/n sum_ij p_ij (log pi_j + log sigmoid(a*_ij / gamma))``

    Parameters
    ----------
    normalized : tensor (n, K)
        Normalised scores, of the inputs or of changed copies of them (eq. 4.23). Unnormalised ones
        have a trivial minimum: all scores grow without bound (errata T14).
    posterior : tensor (n, K)
        Held fixed, whether it carries a gradient or not.
    gamma : float > 0
    log_prior : tensor (K,), optional
        Without one the constant ``log K`` of a uniform prior is left out, as in the thesis. It
        changes the value, not the gradient: the network feels a prior through ``posterior`` only
        (errata T12).

    Returns
    -------
    scalar tensor, >= 0
    """
    _check_pair(normalized, posterior)
    posterior = posterior.detach()
    # This is -gamma log sigmoid(a* / gamma) in one operation: a small step is all overhead.
    softplus = F.softplus(-normalized, beta=1 / _positive(gamma))
    loss = torch.vdot(softplus.flatten(), posterior.flatten()) / (gamma * len(posterior))
    return loss if log_prior is None else loss - posterior.mean(0) @ log_prior


def consistency_loss(
    posterior: torch.Tensor, log_probabilities: torch.Tensor
) -> torch.Tensor:
    """Mean over the batch of ``KL(p_i || q_i)`` with p held fixed (eq. 4.24).

    Parameters
    ----------
    posterior : tensor (n, K)
        p of the original inputs.
    log_probabilities : tensor (n, K)
        log q of the changed inputs, for instance ``normalized.log_softmax(1)``.
    """
    _check_pair(log_probabilities, posterior)
    return F.kl_div(log_probabilities, posterior.detach(), reduction="batchmean")


def mutual_information_loss(
    p: torch.Tensor, q: torch.Tensor, eps: float = 1e-12
) -> torch.Tensor:
    """Minus the mutual information (nats) of two soft assignments: IIC's loss, for comparison.

    ``-sum_jk P_jk log(P_jk / (P_j P_k))`` with ``P`` the symmetrised mean of ``p_i q_i^T``.

    Parameters
    ----------
    p, q : tensor (n, K), rows sum to 1
        Of the inputs and of changed copies of them; both carry the gradient.
    eps : float
        Probabilities below it count as eps.

    Returns
    -------
    scalar tensor in [-log K, 0], up to eps
    """
    _check_pair(p, q)
    joint = p.T @ q / len(p)
    joint = ((joint + joint.T) / 2).clamp_min(eps)
    margin = joint.sum(0)
    return -(joint * (joint.log() - margin.log() - margin.log()[:, None])).sum()


# --- checks ---------------------------------------------------------------------------------------


def _check_scores(scores: torch.Tensor) -> None:
    if scores.ndim != 2 or not scores.is_floating_point() or 0 in scores.shape:
        raise ValueError(
            f"scores must be floats of shape (n, K), got {scores.dtype} {tuple(scores.shape)}"
        )
    if scores.device.type == "cpu" and not math.isfinite(scores.detach().sum().item()):
        raise ValueError("scores contain NaN or infinity")


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"need two tensors (n, K), got {tuple(a.shape)} and {tuple(b.shape)}")


def _positive(gamma: float) -> float:
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    return gamma


def _with_prior(scores: torch.Tensor, log_prior: torch.Tensor | None) -> torch.Tensor:
    return scores if log_prior is None else scores + log_prior
