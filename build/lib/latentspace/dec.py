"""Deep embedded clustering: soft assignments, target distributions, gradients, pooled statistics.

Points ``z`` (n, d) of a latent space belong to K clusters with ``centres`` (K, d) by a Student-t
kernel, ``q`` (n, K). A target ``p`` (n, K) is made from all of ``q`` and held fixed, and training
lowers KL(p || q). The methods differ in the weight ``w`` (K,) that each cluster gets in the target,

    p_ij = (q_ij^2 / w_j) / sum_k (q_ik^2 / w_k) .

Sources: DEC (Xie et al. 2016); StatDEC, whose equations are numbered as printed; "corrected" marks
those whose printed form does not hold (the book's errata page, D1 to D6, shows each with numbers).
"""

import torch
from torch import Tensor, nn

__all__ = [
    "ClusterStatistics", "PooledDecoder", "clustering_gradients", "clustering_loss",
    "log_assignment", "member_surprise", "soft_assignment", "soft_frequency", "squared_distances",
    "target_distribution", "total_surprise",
]  # fmt: skip


# --- assignments ----------------------------------------------------------------------------------


def soft_assignment(z: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """Student-t similarity of points and centres, normalised over the centres (StatDEC eq. 3).

    Parameters
    ----------
    z : (n, d)
    centres : (K, d)
    alpha : float > 0
        Degrees of freedom; DEC and StatDEC have 1.

    Returns
    -------
    q (n, K), positive, rows sum to 1. Differentiable in both, also where a point is on a centre.

    Raises
    ------
    ValueError
        Shapes that do not agree, or alpha <= 0.
    """
    return log_assignment(z, centres, alpha).exp()


def log_assignment(z: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """``ln q`` of `soft_assignment`, (n, K): finite also where q itself would be 0."""
    if z.ndim != 2 or centres.ndim != 2 or z.shape[1] != centres.shape[1]:
        raise ValueError(
            f"z {tuple(z.shape)} and centres {tuple(centres.shape)} are not (n, d) and (K, d)"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    return (-(alpha + 1) / 2 * torch.log1p(squared_distances(z, centres) / alpha)).log_softmax(1)


def squared_distances(z: Tensor, centres: Tensor) -> Tensor:
    """``|z_i - m_j|^2`` (n, K) by one matrix product, about the centres' mean to keep digits."""
    middle = centres.detach().mean(0)
    z, centres = z - middle, centres - middle
    square = z.square().sum(1, keepdim=True) - 2 * z @ centres.T + centres.square().sum(1)
    return square.clamp_min(0)


# --- targets --------------------------------------------------------------------------------------


def soft_frequency(q: Tensor) -> Tensor:
    """``u_j = sum_i q_ij``, the weight of DEC (K,)."""
    return q.sum(0)


def member_surprise(q: Tensor, gamma: float = 2.0) -> Tensor:
    """``v_j``, summed over the members of cluster j only (StatDEC eq. 5, corrected: D2, D3).

    The sum over i with argmax q_i = j of ``sqrt(-(N / N_j) (1 - q_ij)^gamma ln q_ij)``, where N_j
    is the number of members and N that of all points. A cluster of few members gets a small sum,
    hence a large share in the target, as with `soft_frequency`; without members it is 0.

    ``q`` (n, K); gamma >= 0. Returns (K,).
    """
    n, k = q.shape
    own, label = q.max(1)
    size = label.bincount(minlength=k).to(q.dtype)
    surprise = _surprise(own, gamma) * (n / size[label]).sqrt()
    return q.new_zeros(k).index_add(0, label, surprise)


def total_surprise(q: Tensor, gamma: float = 2.0) -> Tensor:
    """``v_j`` as printed, in its domain: the sum over *all* points (StatDEC eq. 5, D2).

    It is largest for small clusters, from which most points are far, so in the target it weighs
    them *down*, against the method's aim (D3). As `member_surprise` otherwise.
    """
    n, k = q.shape
    size = q.argmax(1).bincount(minlength=k).to(q.dtype).clamp_min(1)
    return _surprise(q, gamma).sum(0) * (n / size).sqrt()


def _surprise(q: Tensor, gamma: float) -> Tensor:
    tiny = torch.finfo(q.dtype).tiny
    return (-((1 - q).clamp_min(0) ** gamma) * q.clamp_min(tiny).log()).clamp_min(0).sqrt()


def target_distribution(q: Tensor, weight: Tensor | None = None) -> Tensor:
    """The target p (n, K) for assignments ``q`` (n, K), without gradient; rows sum to 1.

    ``weight`` (K,), positive, is `soft_frequency` by default (DEC); StatDEC adds `member_surprise`
    (eq. 4 with one weight above and below: D1). ValueError if a weight is not positive and finite.
    """
    with torch.no_grad():
        weight = soft_frequency(q) if weight is None else weight
        if weight.shape != q.shape[1:] or not (torch.isfinite(weight) & (weight > 0)).all():
            raise ValueError(f"weight must hold {q.shape[1]} positive numbers, got {weight}")
        share = q.square() / weight
        return share / share.sum(1, keepdim=True)


# --- the loss and its gradients -------------------------------------------------------------------


def clustering_loss(p: Tensor, z: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """``KL(p || q)``, averaged over the points: a scalar, differentiable in z and centres.

    ``p`` (n, K) is held fixed; 0 counts as 0 ln 0 = 0.
    """
    log_q = log_assignment(z, centres, alpha)
    if p.shape != log_q.shape:
        raise ValueError(f"p is {tuple(p.shape)}, q is {tuple(log_q.shape)}")
    return (torch.special.xlogy(p, p) - p * log_q).sum(1).mean()


def clustering_gradients(
    z: Tensor, centres: Tensor, p: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradients of the *summed* KL(p || q) by hand (StatDEC eq. 7 and 8, corrected: D4).

    ``dL/dz_i = (alpha + 1)/alpha sum_j (1 + |z_i - m_j|^2/alpha)^-1 (p_ij - s_i q_ij)(z_i - m_j)``
    with ``s_i = sum_k p_ik``, which is 1 for a proper target, and minus the same summed over the
    points for a centre. Returns (n, d) and (K, d).
    """
    difference = z[:, None] - centres
    kernel = 1 / (1 + difference.square().sum(2) / alpha)
    q = soft_assignment(z, centres, alpha)
    pull = (alpha + 1) / alpha * kernel * (p - p.sum(1, keepdim=True) * q)
    each = pull[:, :, None] * difference
    return each.sum(1), -each.sum(0)


# --- statistics pooling ---------------------------------------------------------------------------


class ClusterStatistics(nn.Module):
    """Size, mean and variance of each cluster's hidden features, appended to its members' features.

    StatDEC's statistics pooling (eq. 6). The paper leaves open how the statistics reach the next
    layer and what happens to a cluster with few members in a batch (D10); here they are running
    averages, without gradient, that a batch updates in training by ``momentum`` for each cluster it
    holds, and a row becomes ``[h, ln(N_y / N), mean_y, variance_y]``.

    Parameters
    ----------
    n_clusters, width : int
        K clusters and W features.
    momentum : float in (0, 1]

    Called with features (n, W) and labels (n,) int64 it returns (n, 1 + 3 W).
    """

    def __init__(self, n_clusters: int, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        if n_clusters < 1 or width < 1 or not 0 < momentum <= 1:
            raise ValueError(
                f"need n_clusters, width >= 1 and momentum in (0, 1]: {n_clusters}, {width}, "
                f"{momentum}"
            )
        self.momentum = momentum
        self.register_buffer("share", torch.full((n_clusters,), 1 / n_clusters))
        self.register_buffer("mean", torch.zeros(n_clusters, width))
        self.register_buffer("variance", torch.ones(n_clusters, width))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        if features.shape[1:] != self.mean.shape[1:] or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit "
                f"{tuple(self.mean.shape)} statistics"
            )
        if self.training:
            self._update(features.detach(), labels)
        size = self.share[labels, None].log()
        return torch.cat([features, size, self.mean[labels], self.variance[labels]], 1)

    @torch.no_grad()
    def _update(self, features: Tensor, labels: Tensor) -> None:
        k = len(self.share)
        count = labels.bincount(minlength=k).to(features.dtype)
        self.share.lerp_((count + 1) / (count.sum() + k), self.momentum)
        safe = count.clamp_min(1)[:, None]
        total = torch.zeros_like(self.mean).index_add_(0, labels, features)
        square = torch.zeros_like(self.mean).index_add_(0, labels, features.square())
        mean = total / safe
        variance = (square / safe - mean.square()).clamp_min(0)
        there = (count > 0)[:, None]
        self.mean.copy_(torch.where(there, self.mean.lerp(mean, self.momentum), self.mean))
        enough = (count > 1)[:, None]  # one row has no variance
        new = self.variance.lerp(variance, self.momentum)
        self.variance.copy_(torch.where(enough, new, self.variance))


class PooledDecoder(nn.Module):
    """A decoder one of whose layers also sees the statistics of the row's cluster (StatDEC eq. 6).

    It is the linear layer number ``layer``, counted from 0: the one on top of that many hidden
    layers. The weights on the statistics start at zero, so it starts as the ``decoder`` it was made
    from.
    """

    def __init__(self, decoder: nn.Sequential, n_clusters: int, layer: int = 2) -> None:
        super().__init__()
        linear = [i for i, part in enumerate(decoder) if isinstance(part, nn.Linear)]
        if len(linear) <= layer:
            raise ValueError(f"statistics pooling needs {layer} hidden layers in the decoder")
        old = decoder[linear[layer]]
        self.head, self.tail = decoder[: linear[layer]], decoder[linear[layer] + 1 :]
        self.pooling = ClusterStatistics(n_clusters, old.in_features)
        self.joined = nn.Linear(1 + 3 * old.in_features, old.out_features)
        with torch.no_grad():
            self.joined.weight.zero_()
            self.joined.weight[:, : old.in_features] = old.weight
            self.joined.bias.copy_(old.bias)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.tail(self.joined(self.pooling(self.head(z), labels)))
