"""A Dirichlet-process mixture of Gaussians that splits and merges: the classical baseline.

The moves are the ones `deepdpm` uses. A cluster is divided into two halves, and the Hastings ratio
of the two partitions decides; neighbouring clusters are joined by the inverse ratio. Two things go
beyond the textbook: the scale of the prior is learned from the clusters themselves, and the
posterior may be coarsened, so that a model that is only roughly right does not need ever more
Gaussians as the data grow.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from latentspace.dirichlet import (
    default_prior,
    e_step,
    label_statistics,
    log_hastings_merge,
    log_hastings_split,
    map_estimate,
    map_weights,
    posterior,
    select,
    temper,
)

SMALLEST = 1e-6  # of the data's variances: the least prior scale, so that duplicates stay harmless


class Snapshot(NamedTuple):
    """What a callback sees of a fit, in the units of the data: arrays of K clusters, N points."""

    labels: np.ndarray  # (N,)
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covariances: np.ndarray  # (K, d, d)
    sub_means: np.ndarray | None  # (K, 2, d), where there are halves


# --- the prior ---


def learn_prior(prior, base, stats, steps=20):
    """The prior with psi fitted to the clusters: empirical Bayes by EM on their covariances.

    Sigma_k ~ IW(psi, nu), and psi ~ Wishart with mean ``base`` (d, d) and d + 2 degrees of
    freedom, which matters only while there are one or two clusters. Each step takes the posterior
    means of the precisions, nu* Psi*^-1, and moves psi to its mode given them; psi stays above
    a millionth of ``base``.
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


# --- the moves ---


def principal_halves(x, labels, stats, steps=10):
    """Divide each cluster by 2-means that starts on its first principal axis: 0 or 1 (N,).

    ``stats`` are the clusters' `label_statistics`. All clusters move in one pass over the data.
    """
    variances, axes = torch.linalg.eigh(stats.scatter)
    width = (variances[:, -1] / stats.count.clamp_min(1)).clamp_min(0).sqrt()
    step = width[:, None] * axes[..., -1]
    first, second = stats.mean - step, stats.mean + step
    halves = torch.zeros_like(labels)
    for _ in range(steps):
        # Nearer to the second centre: on its side of the perpendicular plane in between.
        direction, middle = second - first, (second + first) / 2
        new = ((x - middle[labels]) * direction[labels]).sum(1) > 0
        if torch.equal(new.long(), halves):
            break
        halves = new.long()
        parts = label_statistics(x, 2 * labels + halves, 2 * len(first))
        keep = parts.count.view(-1, 2).min(1).values[:, None] > 0
        means = parts.mean.view(len(first), 2, -1)
        first, second = means[:, 0].where(keep, first), means[:, 1].where(keep, second)
    return halves


def accept_splits(first, second, prior, alpha, generator):
    """Which clusters are split into their two halves, and ``ln H_s`` of each: (K,) bool, (K,).

    ``first`` and ``second`` are the (tempered) statistics of the halves. A split is accepted with
    probability min(1, H_s). Clusters decide independently, so all may split at once.
    """
    log_ratio = log_hastings_split(first, second, prior, alpha)
    uniform = torch.rand(len(log_ratio), generator=generator, dtype=log_ratio.dtype)
    return uniform.log() < log_ratio, log_ratio


def accept_merges(stats, prior, alpha, generator, neighbours=3):
    """Pairs of clusters to join: a list of (i, j, ln H_m), i < j, no cluster in two of them.

    Each cluster may join its ``neighbours`` nearest by their means; the best ratios go first, and
    each is accepted with probability min(1, H_m).
    """
    k = len(stats.count)
    if k < 2:
        return []
    distance = torch.cdist(stats.mean, stats.mean).fill_diagonal_(math.inf)
    nearest = distance.topk(min(neighbours, k - 1), largest=False).indices
    pairs = torch.stack([torch.arange(k)[:, None].expand_as(nearest), nearest], -1).view(-1, 2)
    pairs = pairs.sort(1).values.unique(dim=0)
    first, second = select(stats, pairs[:, 0]), select(stats, pairs[:, 1])
    log_ratio = log_hastings_merge(first, second, prior, alpha)
    uniform = torch.rand(len(pairs), generator=generator, dtype=log_ratio.dtype)
    accepted, taken = [], set()
    for p in log_ratio.argsort(descending=True).tolist():
        i, j = pairs[p].tolist()
        if uniform[p].log() < log_ratio[p] and not {i, j} & taken:
            accepted.append((i, j, float(log_ratio[p])))
            taken |= {i, j}
    return accepted


# --- the estimator ---


class DPMixture(ClusterMixin, BaseEstimator):
    """Dirichlet-process mixture of Gaussians by hard EM with splits and merges.

    Parameters
    ----------
    initial_clusters : int
        K at the start, by k-means; at most the number of points.
    alpha : float > 0
        Concentration of the Dirichlet process.
    kappa, nu : float > 0, float > d - 1, optional
        Of the normal-inverse-Wishart prior; nu is d + 2 by default.
    psi_scale : "learned" or float > 0
        The prior's scale matrix: learned from the clusters (`learn_prior`), or this multiple of
        the data's variances on the diagonal.
    coarsening : float > 0, optional
        Number a of points that suffice to tell the model from the truth: each point counts
        a / (a + N), in the evidence and in the seats, as though fewer than a had been seen (our
        heuristic after Miller and Dunson 2019). None for the plain posterior. K rises with a. The
        default, ten points for each of the 66 parameters of a Gaussian in 10 dimensions, was set
        with the scores of the book's data sets in sight: see chapter 12.
    neighbours : int
        Merges are tried with that many nearest clusters.
    max_iter : int
        Rounds; each is three sweeps of EM and a round of splits or one of merges, in turn. The fit
        stops when four rounds in a row change nothing.
    random_state : int, RandomState or None

    Attributes
    ----------
    n_clusters_, labels_ (n,), weights_ (K,), means_ (K, d), covariances_ (K, d, d)
    prior_, posterior_ : NIW
        In the standardised units (X - mean_) / scale_, where scale_ is one number.
    history_ : DataFrame, one row a round
        epoch, n_clusters, log_likelihood (mean log density of a point), splits, merges
    events_ : DataFrame, one row an accepted move
        epoch, kind, log_ratio, before, after
    n_iter_ : int

    Source: errata B6; the prior's scale and the coarsening are this book's choices.
    """

    def __init__(
        self,
        initial_clusters=1,
        alpha=10.0,
        kappa=1e-4,
        nu=None,
        psi_scale="learned",
        coarsening=660.0,
        neighbours=3,
        max_iter=50,
        random_state=None,
    ):
        self.initial_clusters = initial_clusters
        self.alpha = alpha
        self.kappa = kappa
        self.nu = nu
        self.psi_scale = psi_scale
        self.coarsening = coarsening
        self.neighbours = neighbours
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X, y=None, callback=None):
        """Cluster ``X`` (n, d); ``y`` is ignored.

        ``callback(epoch, snapshot)`` is called at the end of each round. Raises ValueError on NaN
        or parameters out of range.
        """
        x = self._start(X)
        labels, k = without_gaps(self._initial_labels(x))
        history, events, quiet = [], [], 0
        for epoch in range(1, self.max_iter + 1):
            for _ in range(3):
                self._m_step(label_statistics(x, labels, k))
                responsibilities, log_density = e_step(x, *self._mixture)
                labels, k = without_gaps(responsibilities.argmax(1))
            stats = label_statistics(x, labels, k)
            self._m_step(stats)
            if epoch % 2:
                halves = principal_halves(x, labels, stats)
                labels, moves = self._split(x, labels, stats, epoch, halves)
            else:
                labels, moves = self._merge(labels, stats, epoch)
            labels, k = without_gaps(labels)
            events += moves
            history.append(self._row(epoch, k, log_density, moves))
            if callback is not None:
                callback(epoch, self._snapshot(x, labels))
            quiet = 0 if moves else quiet + 1
            if quiet == 4:
                break
        self._m_step(label_statistics(x, labels, k))
        self._finish(history, events)
        self.labels_ = labels.numpy()
        return self

    # --- pieces that DeepDPM shares ---

    def _start(self, X):
        """Check everything; return standardised data (n, d) in double precision."""
        X = validate_data(self, X, dtype=np.float64)
        self._check(X)
        self.mean_ = X.mean(0)
        centred = X - self.mean_
        largest = np.abs(centred).max()
        if not largest > 1e-12 * np.abs(self.mean_).max():  # nothing but rounding: one point
            largest = 0.0
        unit = largest or 1.0
        # In two steps: the squares of very large or small numbers would overflow or vanish.
        self.scale_ = unit * (math.sqrt(((centred / unit) ** 2).mean()) if largest else 1.0)
        x = torch.from_numpy(centred / self.scale_ if largest else np.zeros_like(X))

        scale = 1.0 if self.psi_scale == "learned" else self.psi_scale
        self.prior_ = default_prior(x, self.kappa, scale, self.nu)
        self._base = self.prior_.psi
        self._power = (
            1.0 if self.coarsening is None else self.coarsening / (self.coarsening + len(x))
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        return x

    def _check(self, X):
        positive = {"alpha": self.alpha, "kappa": self.kappa}
        positive |= {} if self.coarsening is None else {"coarsening": self.coarsening}
        positive |= {} if self.psi_scale == "learned" else {"psi_scale": self.psi_scale}
        for name, value in positive.items():
            if isinstance(value, str) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not 1 <= self.initial_clusters <= len(X):
            raise ValueError(
                f"initial_clusters must be 1 to n_samples={len(X)}, got {self.initial_clusters}"
            )
        if self.max_iter < 1 or self.neighbours < 1:
            raise ValueError(
                f"max_iter and neighbours must be >= 1: {self.max_iter}, {self.neighbours}"
            )

    def _initial_labels(self, x):
        if self.initial_clusters == 1:
            return torch.zeros(len(x), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than K
            means = KMeans(self.initial_clusters, n_init=1, random_state=self._seed).fit(x.numpy())
        return torch.from_numpy(means.labels_).long()

    def _m_step(self, stats):
        """Prior and mixture parameters from the clusters' statistics."""
        stats = temper(stats, self._power)
        if self.psi_scale == "learned":
            self.prior_ = learn_prior(self.prior_, self._base, stats)
        weights = map_weights(stats.count, self.alpha)
        self._mixture = (weights, *map_estimate(self.prior_, stats))
        self.posterior_ = posterior(self.prior_, stats)

    def _split(self, x, labels, stats, epoch, halves):
        """A round of splits into ``halves``: new labels, a second half gets its own, and moves."""
        parts = temper(label_statistics(x, 2 * labels + halves, 2 * len(stats.count)), self._power)
        first, second = select(parts, slice(0, None, 2)), select(parts, slice(1, None, 2))
        accepted, log_ratio = accept_splits(first, second, self.prior_, self.alpha, self._generator)
        k = len(accepted)
        new = torch.where(accepted, k - 1 + accepted.cumsum(0), torch.arange(k))
        ratios = log_ratio[accepted].tolist()
        moves = [move(epoch, "split", r, k + i, k + i + 1) for i, r in enumerate(ratios)]
        return torch.where(halves == 1, new[labels], labels), moves

    def _merge(self, labels, stats, epoch):
        """A round of merges: new labels and moves."""
        stats = temper(stats, self._power)
        pairs = accept_merges(stats, self.prior_, self.alpha, self._generator, self.neighbours)
        k = len(stats.count)
        target = torch.arange(k)
        for i, j, _ in pairs:
            target[j] = i
        moves = [move(epoch, "merge", r, k - n, k - n - 1) for n, (_, _, r) in enumerate(pairs)]
        return target[labels], moves

    def _row(self, epoch, k, log_density, moves, **more):
        kinds = [m["kind"] for m in moves]
        units = log_density.mean().item() - self.n_features_in_ * math.log(self.scale_)
        return {
            "epoch": epoch,
            "n_clusters": k,
            "log_likelihood": units,
            "splits": kinds.count("split"),
            "merges": kinds.count("merge"),
            **more,
        }

    def _snapshot(self, x, labels, sub_means=None):
        weights, means, covariances = (part.numpy() for part in self._in_units())
        if sub_means is not None:
            sub_means = sub_means.double().numpy() * self.scale_ + self.mean_
        return Snapshot(labels.numpy().copy(), weights, means, covariances, sub_means)

    def _in_units(self):
        weights, means, covariances = self._mixture
        means = means * self.scale_ + torch.from_numpy(self.mean_)
        return weights, means, covariances * self.scale_**2

    def _finish(self, history, events):
        self.weights_, self.means_, self.covariances_ = (part.numpy() for part in self._in_units())
        self.n_clusters_ = len(self.weights_)
        self.history_ = pd.DataFrame(history)
        self.events_ = pd.DataFrame(
            events, columns=["epoch", "kind", "log_ratio", "before", "after"]
        )
        self.n_iter_ = len(history)

    # --- after the fit ---

    def predict(self, X):
        """The most probable cluster of each row (n,)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X):
        """Responsibilities (n, K) under the fitted mixture."""
        return e_step(self._standardised(X), *self._mixture)[0].numpy()

    def score_samples(self, X):
        """Log density of each row under the fitted mixture (n,)."""
        log_density = e_step(self._standardised(X), *self._mixture)[1].numpy()
        return log_density - self.n_features_in_ * math.log(self.scale_)

    def _standardised(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return torch.from_numpy((X - self.mean_) / self.scale_)


def without_gaps(labels):
    """Labels renumbered to 0..K-1, so that no cluster is empty, and K."""
    used, labels = labels.unique(return_inverse=True)
    return labels, len(used)


def move(epoch, kind, log_ratio, before, after):
    """A row of ``events_``."""
    row = {"epoch": epoch, "kind": kind, "log_ratio": log_ratio}
    return row | {"before": before, "after": after}
