"""Dirichlet-process mixtures of Gaussians: seats, conjugate priors, marginal likelihoods, ratios.

Everything is batched over clusters, which are the leading axis K of each tensor, and works in the
precision of its input. Data enter only through `Statistics`: counts, means and scatter matrices.

Sources: DeepDPM (Ronen et al. 2022), which leaves the prior and the marginal likelihood undefined
(erratum L7); the normal-inverse-Wishart formulas are the textbook ones, checked in the tests
against chains of Student-t predictives.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "NIW",
    "Statistics",
    "combine",
    "crp_expected_tables",
    "crp_log_probability",
    "crp_sample",
    "crp_table_distribution",
    "default_prior",
    "e_step",
    "gaussian_log_density",
    "label_statistics",
    "learn_prior",
    "log_determinant",
    "log_hastings_merge",
    "log_hastings_split",
    "log_marginal_likelihood",
    "map_estimate",
    "map_weights",
    "outer",
    "posterior",
    "select",
    "sufficient_statistics",
    "temper",
]

ROWS = 4096  # rows a block in the passes over the data, so that no (N, K, d) tensor is built
SMALLEST = 1e-6  # of the data's variances: the least prior scale, so that duplicates stay harmless


class NIW(NamedTuple):
    """Normal-inverse-Wishart: Sigma ~ IW(psi, nu), mu | Sigma ~ N(mean, Sigma / kappa).

    One prior has mean (d,), psi (d, d) and scalars; a batch of K has a leading axis everywhere.
    Needs kappa > 0, nu > d - 1, psi positive definite.
    """

    mean: Tensor
    kappa: Tensor
    psi: Tensor
    nu: Tensor


class Statistics(NamedTuple):
    """All that a Gaussian model knows of K clusters.

    count (K,) >= 0, possibly fractional; mean (K, d); scatter (K, d, d), the weighted sum of outer
    products about that mean. An empty cluster has count, mean and scatter 0.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor


# --- data to statistics ---


def sufficient_statistics(x: Tensor, responsibilities: Tensor) -> Statistics:
    """Statistics of points ``x`` (N, d) that belong to K clusters by ``responsibilities`` (N, K).

    The scatter is summed about the cluster's mean, so large offsets of the data do no harm.
    Responsibilities are >= 0; their rows need not sum to 1.
    """
    if x.ndim != 2 or responsibilities.ndim != 2 or len(x) != len(responsibilities):
        raise ValueError(
            f"x {tuple(x.shape)} and responsibilities {tuple(responsibilities.shape)} "
            "are not (N, d) and (N, K)"
        )
    count = responsibilities.sum(0)
    mean = responsibilities.T @ x / count.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    scatter = x.new_zeros(len(count), x.shape[1], x.shape[1])
    for rows, weights in zip(x.split(ROWS), responsibilities.split(ROWS), strict=True):
        centred = rows - mean[:, None]  # (K, n, d)
        scatter += (centred * weights.T[..., None]).mT @ centred
    return Statistics(count, mean, scatter)


def label_statistics(x: Tensor, labels: Tensor, n_clusters: int) -> Statistics:
    """Statistics of points ``x`` (N, d) with hard ``labels`` (N,) in 0..n_clusters-1.

    As `sufficient_statistics` of the one-hot matrix, at a cost that does not grow with K.
    """
    sizes = torch.bincount(labels, minlength=n_clusters)
    if len(sizes) != n_clusters:
        raise ValueError(f"labels reach {len(sizes) - 1}, there are {n_clusters} clusters")
    groups = x[labels.argsort()].split(sizes.tolist())
    mean = torch.stack([g.mean(0) if len(g) else g.new_zeros(x.shape[1]) for g in groups])
    scatter = torch.stack([(g - m).T @ (g - m) for g, m in zip(groups, mean, strict=True)])
    return Statistics(sizes.to(x.dtype), mean, scatter)


def select(stats: Statistics, index: Tensor | slice | list[int]) -> Statistics:
    """Statistics of the chosen clusters: an index tensor, a mask or a slice of the K axis."""
    return Statistics(*(part[index] for part in stats))


def combine(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of the unions of clusters, pair by pair (the parallel-axis theorem)."""
    count = first.count + second.count
    share = (second.count / count.clamp_min(torch.finfo(count.dtype).tiny))[..., None]
    shift = second.mean - first.mean
    between = (first.count * share[..., 0])[..., None, None] * outer(shift)
    return Statistics(count, first.mean + share * shift, first.scatter + second.scatter + between)


def temper(stats: Statistics, power: float) -> Statistics:
    """Statistics in which each point counts ``power``, in (0, 1].

    Likelihoods of them are those of the points to that power. After the coarsened posterior of
    Miller and Dunson (2019), power = a / (a + N); they temper the likelihood alone, but counts
    given to a prior on partitions shrink here as well.
    """
    if not 0 < power <= 1:
        raise ValueError(f"power must lie in (0, 1], got {power}")
    return Statistics(stats.count * power, stats.mean, stats.scatter * power)


def outer(v: Tensor) -> Tensor:
    """Outer products (..., d, d) of vectors (..., d) with themselves."""
    return v[..., :, None] * v[..., None, :]


# --- the conjugate family ---


def default_prior(
    x: Tensor, kappa: float = 1e-4, psi_scale: float = 0.1, nu: float | None = None
) -> NIW:
    """A vague prior from ``x`` (N, d): centred on the data, psi a fraction of their covariance.

    ``nu`` is d + 2 by default, the smallest integer for which the prior mean of Sigma exists; it
    then equals psi = ``psi_scale`` * covariance. So the prior follows the data through every
    change of units and every other invertible map: ratios of marginal likelihoods do not move.
    It is vague about where a cluster lies, not about how many there are: ``psi_scale``, ``nu`` and
    ``kappa`` all change what one more cluster costs.
    Where the correlations are singular, their eigenvalues are lifted to a millionth of the largest;
    a constant feature gets a millionth of the largest variance (all constant: 1).
    """
    d = x.shape[1]
    nu = d + 2 if nu is None else nu
    if not (kappa > 0 and psi_scale > 0 and nu > d - 1):
        raise ValueError(
            f"needs kappa > 0, psi_scale > 0 and nu > d - 1, got {kappa}, {psi_scale}, {nu}"
        )
    mean = x.mean(0)
    deviations = (x - mean).square().mean(0).sqrt()
    constant = deviations <= 10 * torch.finfo(x.dtype).eps * mean.abs()  # rounding
    least = math.sqrt(SMALLEST) * deviations.max() if not constant.all() else 1.0
    deviations = torch.where(constant, least, deviations)
    standard = (x - mean) / deviations
    correlations = standard.T @ standard / len(x)
    correlations.diagonal()[constant] = 1
    values, vectors = torch.linalg.eigh(correlations)
    correlations = (vectors * values.clamp_min(SMALLEST * values[-1])) @ vectors.T
    psi = psi_scale * deviations[:, None] * correlations * deviations
    return NIW(mean, x.new_tensor(kappa), psi, x.new_tensor(nu))


def learn_prior(prior: NIW, base: Tensor, stats: Statistics, steps: int = 20) -> NIW:
    """The prior with psi fitted to the clusters: empirical Bayes by EM on their covariances.

    Sigma_k ~ IW(psi, nu), and psi ~ Wishart with mean ``base`` (d, d) and d + 2 degrees of
    freedom, which matters only while there are one or two clusters. Each step takes the posterior
    means of the precisions, nu* Psi*^-1, and moves psi to its mode given them,

        (d + 2 + K nu - d - 1) ((d + 2) base^-1 + sum_k nu*_k Psi*_k^-1)^-1,

    and psi stays above a millionth of ``base``.
    """
    d = len(base)
    dof = d + 2
    base_precision = dof * torch.linalg.inv(base)
    psi = prior.psi
    for _ in range(steps):
        after = posterior(prior._replace(psi=psi), stats)
        precisions = after.nu[:, None, None] * torch.linalg.inv(after.psi)
        total = base_precision + precisions.sum(0)
        mode = (dof + len(precisions) * prior.nu - d - 1) * torch.linalg.inv(total)
        psi = (mode + mode.T) / 2 + SMALLEST * base
    return prior._replace(psi=psi)


def posterior(prior: NIW, stats: Statistics) -> NIW:
    """The NIW posterior of each cluster (B6: kappa*, nu*, m*, Psi*), a batch of K."""
    kappa, nu = prior.kappa + stats.count, prior.nu + stats.count
    shift = stats.mean - prior.mean
    mean = prior.mean + (stats.count / kappa)[..., None] * shift
    shrink = (prior.kappa * stats.count / kappa)[..., None, None]
    return NIW(mean, kappa, prior.psi + stats.scatter + shrink * outer(shift), nu)


def map_estimate(prior: NIW, stats: Statistics) -> tuple[Tensor, Tensor]:
    """The joint mode of (mu, Sigma): means (K, d) and covariances Psi* / (nu* + d + 2) (K, d, d).

    It exists for an empty cluster too, which gets the prior's mode.
    """
    after = posterior(prior, stats)
    d = after.mean.shape[-1]
    return after.mean, after.psi / (after.nu + d + 2)[..., None, None]


def map_weights(count: Tensor, alpha: float) -> Tensor:
    """Weights (N_k + alpha / K) / (N + alpha) of K clusters with counts (K,): they sum to 1.

    The posterior mean (not the mode) under a symmetric Dirichlet prior of total alpha.
    """
    return (count + alpha / len(count)) / (count.sum() + alpha)


def log_marginal_likelihood(prior: NIW, stats: Statistics) -> Tensor:
    """``ln f`` of each cluster's points with (mu, Sigma) integrated out (K,); 0 if it is empty."""
    after = posterior(prior, stats)
    d = prior.mean.shape[-1]
    return (
        -0.5 * d * math.log(math.pi) * stats.count
        + torch.special.multigammaln(after.nu / 2, d)
        - torch.special.multigammaln(prior.nu / 2, d)
        + 0.5 * prior.nu * log_determinant(prior.psi)
        - 0.5 * after.nu * log_determinant(after.psi)
        + 0.5 * d * torch.log(prior.kappa / after.kappa)
    )


def log_determinant(matrices: Tensor) -> Tensor:
    """``ln |A|`` of symmetric positive definite matrices (..., d, d)."""
    triangles = torch.linalg.cholesky(matrices)
    return 2 * triangles.diagonal(dim1=-2, dim2=-1).log().sum(-1)


# --- moves between partitions ---


def log_hastings_split(
    first: Statistics, second: Statistics, prior: NIW, alpha: float
) -> Tensor:
    """``ln H_s`` of splitting each union into its ``first`` and ``second`` half (K,).

    alpha Gamma(N_1) f_1 Gamma(N_2) f_2 / (Gamma(N) f): the ratio of the posteriors of the two
    partitions. A side without points gives -inf.
    """
    whole = combine(first, second)
    log_f = [log_marginal_likelihood(prior, stats) for stats in (first, second, whole)]
    ratio = (
        math.log(alpha)
        + torch.lgamma(first.count)
        + torch.lgamma(second.count)
        - torch.lgamma(whole.count)
        + log_f[0]
        + log_f[1]
        - log_f[2]
    )
    return ratio.where((first.count > 0) & (second.count > 0), -math.inf)


def log_hastings_merge(
    first: Statistics, second: Statistics, prior: NIW, alpha: float
) -> Tensor:
    """``ln H_m = -ln H_s`` of joining clusters pair by pair (K,); joining an empty one: +inf."""
    return -log_hastings_split(first, second, prior, alpha)


# --- the mixture ---


def gaussian_log_density(x: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """``ln N(x_i; mu_k, Sigma_k)`` for x (N, d), means (K, d), covariances (K, d, d): (N, K)."""
    d = x.shape[1]
    triangles = torch.linalg.cholesky(covariances)
    identity = torch.eye(d, dtype=x.dtype, device=x.device).expand_as(triangles)
    whiten = torch.linalg.solve_triangular(triangles, identity, upper=False)  # (K, d, d)
    constant = triangles.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * d * math.log(2 * math.pi)
    # One product for all clusters; centring first keeps the digits of far-away data.
    centre = means.mean(0)
    offset = (whiten @ (means - centre)[..., None])[..., 0]  # (K, d)
    square = [
        ((rows - centre) @ whiten.mT - offset[:, None]).square().sum(-1) for rows in x.split(ROWS)
    ]
    return -0.5 * torch.cat(square, 1).T - constant


def e_step(
    x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor
) -> tuple[Tensor, Tensor]:
    """Responsibilities (N, K) and log densities (N,) under a Gaussian mixture, in log space."""
    joint = gaussian_log_density(x, means, covariances) + weights.log()
    log_density = joint.logsumexp(1)
    return (joint - log_density[:, None]).exp(), log_density


# --- the Chinese restaurant ---


def crp_sample(
    n: int, alpha: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Seat ``n`` customers: the i-th (from 0) opens a table with probability alpha / (alpha + i).

    Otherwise it joins a customer chosen uniformly among those before it, hence a table in
    proportion to its size. Returns the table of each customer (n,) int64, numbered in order of
    opening, and the sizes (T,).
    """
    _check_restaurant(n, alpha)
    before = torch.arange(n, dtype=torch.float64)
    opens = torch.rand(n, generator=generator, dtype=torch.float64) < alpha / (alpha + before)
    opens[0] = True
    friend = (torch.rand(n, generator=generator, dtype=torch.float64) * before).long()
    leader = torch.where(opens, torch.arange(n), friend)
    while not torch.equal(leader, leader[leader]):  # log n doublings
        leader = leader[leader]
    table = opens.cumsum(0) - 1
    seating = table[leader]
    return seating, seating.bincount()


def crp_log_probability(sizes: Iterable[int], alpha: float) -> float:
    """``ln P`` of one partition whose blocks have these ``sizes`` (each >= 1), a float.

    T ln alpha + sum ln Gamma(n_t) - sum_i ln(alpha + i): the order of arrival does not matter.
    """
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be integers >= 1, got {sizes}")
    _check_restaurant(sum(sizes), alpha)
    blocks = sum(math.lgamma(size) for size in sizes)
    normaliser = math.lgamma(alpha + sum(sizes)) - math.lgamma(alpha)
    return len(sizes) * math.log(alpha) + blocks - normaliser


def crp_expected_tables(n: int, alpha: float) -> float:
    """Expected number of tables of ``n`` customers: the sum of alpha / (alpha + i), i < n."""
    _check_restaurant(n, alpha)
    return float((alpha / (alpha + np.arange(n))).sum())


def crp_table_distribution(n: int, alpha: float) -> np.ndarray:
    """P(T = t) for t = 0..n, (n + 1,) float64: one more customer is one step of the recursion."""
    _check_restaurant(n, alpha)
    p = np.zeros(n + 1)
    p[0] = 1
    for i in range(n):
        opened = alpha / (alpha + i)
        p[1:] = p[1:] * (1 - opened) + p[:-1] * opened
        p[0] = 0
    return p


def _check_restaurant(n: int, alpha: float) -> None:
    if n < 1 or not alpha > 0:
        raise ValueError(f"needs n >= 1 customers and alpha > 0, got {n} and {alpha}")
