"""What the Dirichlet-process mixtures share: the course of a fit, and the answers after it.

`DirichletMixture.fit` is the course: clusters are improved, split or merged in turn, and watched.
How they are improved, and who assigns the points, is left to hooks. `split_merge` fills them with
hard EM, `deepdpm` with networks.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from latentspace.coordinates import invariant_coordinates
from latentspace.dirichlet import (
    NIW,
    Statistics,
    default_prior,
    e_step,
    label_statistics,
    learn_prior,
    map_estimate,
    map_weights,
    posterior,
    temper,
)
from latentspace.estimators import POSITIVE, at_least, draw_seed, fitting
from latentspace.moves import Moves, merge, split

__all__ = ["DirichletMixture", "Fit", "Snapshot"]


class Snapshot(NamedTuple):
    """What a callback sees of a fit, in the units of the data: arrays of K clusters, N points."""

    labels: np.ndarray  # (N,)
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covariances: np.ndarray  # (K, d, d)
    sub_means: np.ndarray | None  # (K, 2, d), where there are halves


@dataclass
class Fit:
    """All that changes during a fit, in coordinates; the estimator itself changes at the end."""

    x: Tensor  # (N, r)
    labels: Tensor  # (N,), no number left out
    prior: NIW
    base: Tensor  # (r, r): the hyperprior's mean of psi
    power: float  # what one point counts
    generator: torch.Generator
    mixture: tuple[Tensor, Tensor, Tensor]  # weights (K,), means (K, r), covariances (K, r, r)
    after: NIW  # the posterior of each cluster
    log_density: float = math.nan  # mean log density of a point under the mixture last used
    emptied: int = 0  # clusters that lost their last point in this round

    @property
    def k(self) -> int:
        return len(self.mixture[0])


Course = TypeVar("Course", bound=Fit)  # what a subclass carries through its fit


class DirichletMixture(ClusterMixin, BaseEstimator, Generic[Course]):
    """Base of the mixtures that find K by splits and merges. See `DPMixture` and `DeepDPM`."""

    _parameter_constraints: dict[str, list[Any]] = {
        "initial_clusters": [at_least(1)],
        "alpha": [POSITIVE],
        "kappa": [POSITIVE],
        "nu": [POSITIVE, None],
        "psi_scale": [StrOptions({"learned"}), POSITIVE],
        "coarsening": [POSITIVE, None],
        "neighbours": [at_least(1)],
        "random_state": ["random_state"],
    }

    # --- the course of a fit ---

    def fit(
        self, X: Any, y: Any = None, callback: Callable[[int, Snapshot], object] | None = None
    ) -> Self:
        """Cluster ``X`` (n, d); ``y`` is ignored.

        ``callback(epoch, snapshot)`` is called at the end of each round. Raises ValueError on NaN
        or parameters out of range. If it does not come to its end, for whatever reason, the
        estimator is what it was before.
        """
        with fitting(self):
            fit = self._begin(X)
            history, events, last_move = [], [], 0
            for epoch in range(1, self._rounds() + 1):
                self._improve(fit)
                k, moves = fit.k + fit.emptied, self._move(fit, self._kind(epoch))
                events += event_rows(epoch, k, fit.emptied, moves)
                history.append(self._history_row(epoch, fit, moves))
                if callback is not None:
                    callback(epoch, self._snapshot(fit))
                last_move = epoch if moves.log_ratios else last_move
                if epoch - last_move == self._patience:
                    break
            fit.emptied = 0
            self._end(fit)
            events += event_rows(epoch, fit.k + fit.emptied, fit.emptied, self._move(fit, None))
            self._publish(fit, history, events)
        return self

    def _begin(self, X: Any) -> Course:
        """Check the data, and start from the initial clusters."""
        X = validate_data(self, X, dtype=np.float64)
        if self.initial_clusters > len(X):
            raise ValueError(
                f"initial_clusters must be at most n_samples={len(X)}, got {self.initial_clusters}"
            )
        self._coordinates = invariant_coordinates(X)
        x = torch.from_numpy(self._coordinates.of(X))
        prior = default_prior(
            x, self.kappa, 1.0 if self.psi_scale == "learned" else self.psi_scale, self.nu
        )
        a = self.coarsening
        power = 1.0 if a is None else a / (a + len(x))
        seed = draw_seed(self.random_state)
        labels = self._initial_labels(X, x, seed)
        none = x.new_zeros(0)
        fit = Fit(
            x, labels, prior, prior.psi, power, torch.Generator().manual_seed(seed),
            (none, none, none), prior,
        )  # fmt: skip
        self._m_step(fit, label_statistics(x, labels, int(labels.max()) + 1))
        return self._prepared(fit)

    def _initial_labels(self, X: np.ndarray, x: Tensor, seed: int) -> Tensor:
        # K-means warns where there are fewer distinct points than clusters.
        k = self.initial_clusters
        k = 1 if k == 1 else min(k, len(np.unique(X, axis=0)))
        if k == 1:
            return torch.zeros(len(x), dtype=torch.int64)
        from sklearn.cluster import KMeans

        labels = KMeans(k, n_init=1, random_state=seed).fit(x.numpy()).labels_
        return torch.from_numpy(labels).long().unique(return_inverse=True)[1]

    def _m_step(self, fit: Fit, stats: Statistics) -> None:
        """Prior and mixture from the clusters' statistics."""
        stats = temper(stats, fit.power)
        if self.psi_scale == "learned":
            fit.prior = learn_prior(fit.prior, fit.base, stats)
        fit.mixture = (map_weights(stats.count, self.alpha), *map_estimate(fit.prior, stats))
        fit.after = posterior(fit.prior, stats)

    def _move(self, fit: Course, kind: str | None) -> Moves:
        """A round of splits, of merges or of nothing; labels and mixture follow."""
        k = fit.k
        if kind is None:
            return Moves("", fit.labels, torch.arange(k), torch.zeros(k, dtype=torch.bool), [])
        stats = label_statistics(fit.x, fit.labels, k)
        if kind == "split":
            halves = self._halves(fit, stats)
            moves = split(
                fit.x, fit.labels, halves, k, fit.prior, self.alpha, fit.generator, fit.power
            )
        else:
            moves = merge(
                fit.labels, stats, fit.prior, self.alpha, fit.generator, fit.power, self.neighbours
            )
        if moves.log_ratios:
            fit.labels = moves.labels
            stats = label_statistics(fit.x, fit.labels, len(moves.parents))
            self._m_step(fit, stats)
            self._follow(fit, stats, moves)
        return moves

    # --- hooks ---

    _patience: int | None = None  # rounds without a move after which the fit ends

    @abstractmethod
    def _rounds(self) -> int:
        """How many rounds there are at most."""

    @abstractmethod
    def _kind(self, epoch: int) -> str | None:
        """Which moves end this round: "split", "merge" or None."""

    @abstractmethod
    def _prepared(self, fit: Fit) -> Course:
        """The fit with what a subclass adds to it."""

    @abstractmethod
    def _improve(self, fit: Course) -> None:
        """A round without moves: new labels and mixture; sets ``log_density`` and ``emptied``."""

    @abstractmethod
    def _halves(self, fit: Course, stats: Statistics) -> Tensor:
        """Where each cluster might be cut: 0 or 1 (N,)."""

    def _follow(self, fit: Course, stats: Statistics, moves: Moves) -> None:
        """After accepted moves: the rest of the fit follows the new clusters."""

    @abstractmethod
    def _end(self, fit: Course) -> None:
        """The last labels and mixture, and attributes of the subclass."""

    def _history_row(self, epoch: int, fit: Course, moves: Moves) -> dict[str, float]:
        return {
            "epoch": epoch,
            "n_clusters": fit.k,
            "log_likelihood": fit.log_density - self._coordinates.log_volume(),
            "splits": len(moves.log_ratios) * (moves.kind == "split"),
            "merges": len(moves.log_ratios) * (moves.kind == "merge"),
        }

    def _sub_means(self, fit: Course) -> Tensor | None:
        """Centres of the halves (K, 2, r), where there are any."""
        return None

    # --- results ---

    def _in_units(self, fit: Course) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights, means, covariances = (part.numpy() for part in fit.mixture)
        back = self._coordinates
        return weights.copy(), back.back(means), back.back_covariance(covariances)

    def _snapshot(self, fit: Course) -> Snapshot:
        sub_means = self._sub_means(fit)
        if sub_means is not None:
            sub_means = self._coordinates.back(sub_means.double().numpy())
        return Snapshot(fit.labels.numpy().copy(), *self._in_units(fit), sub_means)

    def _publish(self, fit: Course, history: list[dict], events: list[dict]) -> None:
        import pandas as pd

        self.labels_ = fit.labels.numpy()
        self.weights_, self.means_, self.covariances_ = self._in_units(fit)
        self.n_clusters_ = len(self.weights_)
        self.prior_, self.posterior_, self._mixture = fit.prior, fit.after, fit.mixture
        self.history_ = pd.DataFrame(history)
        columns = ["epoch", "kind", "log_ratio", "before", "after"]
        self.events_ = pd.DataFrame(events, columns=columns)
        self.n_iter_ = len(history)

    # --- after the fit ---

    def predict(self, X: Any) -> np.ndarray:
        """The most probable cluster of each row (n,)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities (n, K) under the fitted mixture."""
        return e_step(self._located(X), *self._mixture)[0].numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of each row under the fitted mixture (n,), in the units of the data.

        Where features are constant, or sums of others, it is the density on the subspace that the
        training data fill.
        """
        log_density = e_step(self._located(X), *self._mixture)[1].numpy()
        return log_density - self._coordinates.log_volume()

    def _located(self, X: Any) -> Tensor:
        """Coordinates (n, r) of new points."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return torch.from_numpy(self._coordinates.of(X))


def event_rows(epoch: int, k: int, emptied: int, moves: Moves) -> list[dict]:
    """Rows of ``events_`` of a round that began its moves with ``k`` clusters, empty ones too."""
    step = 1 if moves.kind == "split" else -1
    kinds = [("empty", math.nan, -1)] * emptied
    kinds += [(moves.kind, ratio, step) for ratio in moves.log_ratios]
    rows = []
    for kind, ratio, change in kinds:
        row = {"epoch": epoch, "kind": kind, "log_ratio": ratio, "before": k, "after": k + change}
        rows.append(row)
        k += change
    return rows
