"""Moves between partitions: where a cluster could be cut, and which cuts and unions are taken.

A cut that nobody proposes cannot be accepted, so each cluster is cut along four axes and the
evidence chooses among the four. All clusters move in the same passes over the data. Nothing here
depends on the coordinates: an invertible linear map of points and prior gives the same moves.

Sources: DeepDPM (Ronen et al. 2022) for the moves and their acceptance, errata L7 and L9; the axes
are this book's choice.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from latentspace.dirichlet import (
    NIW,
    Statistics,
    label_statistics,
    log_hastings_merge,
    log_hastings_split,
    select,
    temper,
)

__all__ = [
    "Moves",
    "accept_merges",
    "accept_splits",
    "best_halves",
    "cut_axes",
    "frames",
    "in_frames",
    "merge",
    "split",
    "two_means",
]


class Moves(NamedTuple):
    """A round of accepted moves: K old clusters become K' new ones."""

    kind: str  # "split" or "merge"
    labels: Tensor  # (N,) in 0..K'-1
    parents: Tensor  # (K',): the old cluster, or the larger of the two, that each comes from
    fresh: Tensor  # (K',) bool: clusters that a move has made
    log_ratios: list[float]  # ln H of each move


# --- each cluster in its own frame ---


def frames(stats: Statistics, prior: NIW) -> tuple[Tensor, Tensor]:
    """Centres (K, d) and maps W (K, d, d): z = W (x - centre) has about unit covariance.

    W is the inverse Cholesky factor of (psi + scatter) / (nu + count), so it exists for every
    cluster, flat or empty ones included.
    """
    covariance = (prior.psi + stats.scatter) / (prior.nu + stats.count)[:, None, None]
    triangles = torch.linalg.cholesky(covariance)
    identity = torch.eye(triangles.shape[-1], dtype=triangles.dtype).expand_as(triangles)
    return stats.mean, torch.linalg.solve_triangular(triangles, identity, upper=False)


def in_frames(x: Tensor, labels: Tensor, centres: Tensor, maps: Tensor) -> Tensor:
    """Each point (N, d) in the frame of its own cluster (N, d)."""
    order = labels.argsort()
    sizes = torch.bincount(labels, minlength=len(centres)).tolist()
    groups = zip(x[order].split(sizes), centres, maps, strict=True)
    out = torch.empty_like(x)
    out[order] = torch.cat([(rows - centre) @ w.T for rows, centre, w in groups])
    return out


def cut_axes(z: Tensor, labels: Tensor, maps: Tensor, prior: NIW) -> Tensor:
    """Unit vectors (A, K, d) along which clusters may be cut, in their frames; A is at most 4.

    ``z`` (N, d) are points `in_frames` with ``maps`` (K, d, d). Two axes are those on which the
    cluster is longest as measured by the prior, by ``x' psi^-1 x``. On the other two the fourth
    moment E[|z|^2 z z'] is least and largest: there lie two groups of like or of unlike size.
    """
    k, d = maps.shape[:2]
    _, by_length = torch.linalg.eigh(maps @ prior.psi @ maps.mT)
    sizes = torch.bincount(labels, minlength=k).tolist()
    groups = (z * z.square().sum(1, keepdim=True).sqrt())[labels.argsort()].split(sizes)
    fourth = torch.stack([g.T @ g / max(1, len(g)) for g in groups])
    _, by_tails = torch.linalg.eigh(fourth)
    axes = [by_length[..., 0], by_length[..., 1 % d], by_tails[..., 0], by_tails[..., -1]]
    return torch.stack(axes[: 1 if d == 1 else 4])


def two_means(z: Tensor, labels: Tensor, axes: Tensor, steps: int = 10) -> Tensor:
    """Halves 0 or 1 (N,) of each cluster by 2-means that starts on its axis (K, d).

    ``z`` (N, d) are points in the frames of their clusters, where 2-means is hard EM with a common
    covariance. Half 0 is the larger one.
    """
    k = len(axes)
    halves = ((z * axes[labels]).sum(1) > 0).long()
    for _ in range(steps):
        parts = 2 * labels + halves
        count = torch.bincount(parts, minlength=2 * k).to(z.dtype)
        mean = z.new_zeros(2 * k, z.shape[1]).index_add_(0, parts, z) / count.clamp_min(1)[:, None]
        mean, whole = mean.view(k, 2, -1), count.view(k, 2).min(1).values == 0
        # Nearer to the second mean: on its side of the perpendicular plane in between.
        direction, middle = mean[:, 1] - mean[:, 0], mean.mean(1)
        offset = (middle * direction).sum(1)
        new = ((z * direction[labels]).sum(1) > offset[labels]).long()
        new = torch.where(whole[labels], halves, new)
        if torch.equal(new, halves):
            break
        halves = new
    count = torch.bincount(2 * labels + halves, minlength=2 * k).view(k, 2)
    return halves ^ (count[:, 1] > count[:, 0])[labels].long()


def best_halves(
    x: Tensor, labels: Tensor, stats: Statistics, prior: NIW, alpha: float, power: float = 1.0
) -> Tensor:
    """Halves 0 or 1 (N,) of each cluster: of the cuts along `cut_axes`, the one with the largest H.

    ``stats`` are the `label_statistics` of ``x`` (N, d); they and the halves are weighed with each
    point counting ``power``.
    """
    k = len(stats.count)
    centres, maps = frames(stats, prior)
    z = in_frames(x, labels, centres, maps)
    best = torch.full_like(stats.count, -math.inf)
    chosen = torch.zeros_like(labels)
    for axes in cut_axes(z, labels, maps, prior):
        halves = two_means(z, labels, axes)
        ratio = log_hastings_split(*_pairs(x, labels, halves, k, power), prior, alpha)
        chosen = torch.where((ratio > best)[labels], halves, chosen)
        best = torch.maximum(best, ratio)
    return chosen


def _pairs(
    x: Tensor, labels: Tensor, halves: Tensor, k: int, power: float
) -> tuple[Statistics, Statistics]:
    parts = temper(label_statistics(x, 2 * labels + halves, 2 * k), power)
    return select(parts, slice(0, None, 2)), select(parts, slice(1, None, 2))


# --- which moves are taken ---


def accept_splits(
    first: Statistics, second: Statistics, prior: NIW, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which clusters are split into their two halves, and ``ln H_s`` of each: (K,) bool, (K,).

    ``first`` and ``second`` are the (tempered) statistics of the halves. A split is accepted with
    probability min(1, H_s). Clusters decide independently, so all may split at once.
    """
    log_ratio = log_hastings_split(first, second, prior, alpha)
    uniform = torch.rand(len(log_ratio), generator=generator, dtype=log_ratio.dtype)
    return uniform.log() < log_ratio, log_ratio


def accept_merges(
    stats: Statistics, prior: NIW, alpha: float, generator: torch.Generator, neighbours: int = 3
) -> list[tuple[int, int, float]]:
    """Pairs of clusters to join: a list of (i, j, ln H_m), i < j, no cluster in two of them.

    Each cluster may join its ``neighbours`` nearest by their means, at distances measured by the
    prior's psi; the best ratios go first, and each is accepted with probability min(1, H_m).
    """
    k = len(stats.count)
    if k < 2:
        return []
    triangle = torch.linalg.cholesky(prior.psi)
    means = torch.linalg.solve_triangular(triangle, (stats.mean - prior.mean).T, upper=False).T
    distance = torch.cdist(means, means).fill_diagonal_(math.inf)
    nearest = distance.topk(min(neighbours, k - 1), largest=False).indices
    pairs = torch.stack([torch.arange(k)[:, None].expand_as(nearest), nearest], -1).view(-1, 2)
    pairs = pairs.sort(1).values.unique(dim=0)
    first, second = select(stats, pairs[:, 0]), select(stats, pairs[:, 1])
    log_ratio = log_hastings_merge(first, second, prior, alpha)
    uniform = torch.rand(len(pairs), generator=generator, dtype=log_ratio.dtype)
    accepted, taken = [], set[int]()
    for p in log_ratio.argsort(descending=True).tolist():
        i, j = pairs[p].tolist()
        if uniform[p].log() < log_ratio[p] and not {i, j} & taken:
            accepted.append((i, j, float(log_ratio[p])))
            taken |= {i, j}
    return accepted


def split(
    x: Tensor, labels: Tensor, halves: Tensor, n_clusters: int, prior: NIW, alpha: float,
    generator: torch.Generator, power: float = 1.0,
) -> Moves:  # fmt: skip
    """A round of splits into ``halves`` (N,): second halves become the clusters K, K + 1, ..."""
    pairs = _pairs(x, labels, halves, n_clusters, power)
    accepted, log_ratio = accept_splits(*pairs, prior, alpha, generator)
    new = torch.where(accepted, n_clusters - 1 + accepted.cumsum(0), torch.arange(n_clusters))
    parents = torch.cat([torch.arange(n_clusters), accepted.nonzero()[:, 0]])
    return Moves(
        "split", torch.where(halves == 1, new[labels], labels), parents, accepted[parents],
        log_ratio[accepted].tolist(),
    )  # fmt: skip


def merge(
    labels: Tensor, stats: Statistics, prior: NIW, alpha: float, generator: torch.Generator,
    power: float = 1.0, neighbours: int = 3,
) -> Moves:  # fmt: skip
    """A round of merges of clusters with statistics ``stats``; the numbers close up."""
    pairs = accept_merges(temper(stats, power), prior, alpha, generator, neighbours)
    k = len(stats.count)
    target, parents = torch.arange(k), torch.arange(k)
    fresh = torch.zeros(k, dtype=torch.bool)
    for i, j, _ in pairs:
        target[j], fresh[i] = i, True
        parents[i] = i if stats.count[i] >= stats.count[j] else j
    left, target = target.unique(return_inverse=True)
    return Moves("merge", target[labels], parents[left], fresh[left], [r for *_, r in pairs])
