"""DeepDPM: a network that learns cluster assignments while clusters split and merge."""

import math
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from latentspace.dirichlet import Statistics, e_step, label_statistics, sufficient_statistics
from latentspace.dirichlet_mixture import DirichletMixture, Fit
from latentspace.dpm_networks import (
    LEAST,
    ClusteringNet,
    SubclusteringNets,
    assignment_loss,
    draw_members,
    half_means,
    own_halves,
    reindex,
    subcluster_loss,
)
from latentspace.estimators import POSITIVE, at_least
from latentspace.moves import Moves, best_halves, frames, in_frames

__all__ = ["DeepDPM"]

LEAST_STEPS = 20  # an epoch, on small data
ROWS = 4096  # points a pass through the clustering network
NOT_NEGATIVE = Interval(Integral, 0, None, closed="left")


@dataclass
class DeepFit(Fit):
    """A fit with networks."""

    network: ClusteringNet = field(init=False)
    subnetworks: SubclusteringNets = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    sub_means: Tensor = field(init=False)  # (K, 2, r), in the frames of the clusters
    halves: Tensor = field(init=False)  # (N, 2), soft
    frozen: int = 0  # epochs for which the mixture still keeps its parameters
    losses: tuple[float, float] = (math.nan, math.nan)


class DeepDPM(DirichletMixture):
    """Clustering with an unknown number of clusters by networks that imitate a mixture.

    A clustering network proposes soft assignments r. It is trained towards the E-step of a Gaussian
    mixture whose parameters are in turn estimated with r. For each cluster a subclustering network
    learns two halves; in turn, splits into these halves and merges of neighbours are accepted by
    their Hastings ratio, and the networks follow. A subclustering network starts with the means of
    `best_halves`, when the fit begins and when a move has made its cluster; a refusal leaves it.

    Networks and mixture see `invariant_coordinates`, so that any invertible linear map of the
    features, and copies or sums of features among them, change nothing but rounding.

    Parameters
    ----------
    initial_clusters, alpha, kappa, nu, psi_scale, coarsening, neighbours, random_state
        As in `DPMixture`.
    hidden : int
        Units of the hidden layer of every network.
    epochs, batch_size : int
        Passes of the clustering network over the data, and points a step (at most a twentieth
        of the data).
    sub_batch_size : int
        Points of each cluster a step for its subclustering network.
    lr, sub_lr : float
        Adam's learning rates for the clustering and the subclustering networks.
    direction : {"target", "network"}
        Of the Kullback-Leibler loss, see `assignment_loss`.
    assign_by : {"network", "mixture"}
        Whose assignments are r. With "mixture" the E-step takes the clustering network's place:
        what the network adds is the difference.
    move_every : int
        Epochs between rounds of moves; splits and merges take turns.
    freeze : int
        Epochs after a move in which the mixture keeps its parameters, so that the network can
        learn the new assignment.
    settle : int
        Epochs without moves at the end.

    Attributes
    ----------
    n_clusters_, weights_, means_, covariances_, prior_, posterior_, events_, n_iter_
        As in `DPMixture`.
    labels_ : array (n,), by the assignments r
    mixture_labels_ : array (n,), those of the mixture that the network imitates
    network_ : ClusteringNet
    subnetworks_ : SubclusteringNets
    history_ : DataFrame, one row an epoch
        As in `DPMixture`, and loss, sub_loss.

    Source: DeepDPM (Ronen et al. 2022), errata L7-L9 and B6.
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **DirichletMixture._parameter_constraints,
        **dict.fromkeys(["hidden", "epochs", "batch_size", "sub_batch_size"], [at_least(1)]),
        "move_every": [at_least(1)],
        **dict.fromkeys(["lr", "sub_lr"], [POSITIVE]),
        **dict.fromkeys(["freeze", "settle"], [NOT_NEGATIVE]),
        "direction": [StrOptions({"target", "network"})],
        "assign_by": [StrOptions({"network", "mixture"})],
    }

    def __init__(
        self,
        initial_clusters: int = 1,
        alpha: float = 10.0,
        kappa: float = 1e-4,
        nu: float | None = None,
        psi_scale: str | float = "learned",
        coarsening: float | None = 660.0,
        neighbours: int = 3,
        hidden: int = 50,
        epochs: int = 80,
        batch_size: int = 1024,
        sub_batch_size: int = 64,
        lr: float = 1e-2,
        sub_lr: float = 1e-2,
        direction: str = "target",
        assign_by: str = "network",
        move_every: int = 3,
        freeze: int = 2,
        settle: int = 10,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.initial_clusters = initial_clusters
        self.alpha = alpha
        self.kappa = kappa
        self.nu = nu
        self.psi_scale = psi_scale
        self.coarsening = coarsening
        self.neighbours = neighbours
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.sub_batch_size = sub_batch_size
        self.lr = lr
        self.sub_lr = sub_lr
        self.direction = direction
        self.assign_by = assign_by
        self.move_every = move_every
        self.freeze = freeze
        self.settle = settle
        self.random_state = random_state

    # --- the schedule ---

    def _rounds(self) -> int:
        return self.epochs

    def _kind(self, epoch: int) -> str | None:
        if epoch % self.move_every or epoch > self.epochs - self.settle:
            return None
        return "split" if epoch // self.move_every % 2 else "merge"

    # --- an epoch ---

    def _prepared(self, fit: Fit) -> DeepFit:
        """The fit with its networks and their optimiser."""
        deep = DeepFit(**{part.name: getattr(fit, part.name) for part in fields(fit)})
        k, r = deep.mixture[1].shape
        deep.network = ClusteringNet(r, k, self.hidden, deep.generator)
        deep.subnetworks = SubclusteringNets(k, r, self.hidden, deep.generator)
        deep.optimizer = torch.optim.Adam(
            [
                {"params": list(deep.network.parameters()), "lr": self.lr},
                {"params": list(deep.subnetworks.parameters()), "lr": self.sub_lr},
            ]
        )
        deep.sub_means = torch.zeros(k, 2, r)
        deep.frozen = self.freeze
        every = torch.ones(k, dtype=torch.bool)
        self._start_halves(deep, label_statistics(deep.x, deep.labels, k), every)
        return deep

    def _improve(self, fit: DeepFit) -> None:
        """Train all networks for an epoch; new assignments, then a new mixture from them."""
        self._train(fit)
        r = self._assign(fit)
        if fit.frozen:
            fit.frozen -= 1
        else:
            self._m_step(fit, sufficient_statistics(fit.x, r))
        nets = fit.subnetworks
        z = in_frames(fit.x.float(), fit.labels, nets.centre, nets.whiten)
        fit.halves = own_halves(nets, z, fit.labels)
        fit.sub_means = half_means(z, fit.labels, fit.halves, fit.k)

    def _train(self, fit: DeepFit) -> None:
        """An epoch of steps on both losses, towards the E-step of the mixture as it is now."""
        responsibilities, log_density = e_step(fit.x, *fit.mixture)
        fit.log_density = log_density.mean().item()
        target = responsibilities.clamp_min(math.exp(LEAST)).log().float()
        x, nets = fit.x.float(), fit.subnetworks
        size = min(self.batch_size, math.ceil(len(x) / LEAST_STEPS))
        steps = torch.randperm(len(x), generator=fit.generator).split(size)
        b = self.sub_batch_size
        drawn = draw_members(fit.labels, fit.k, len(steps) * b, fit.generator).split(b, 1)
        losses = []
        for rows, members in zip(steps, drawn, strict=True):
            loss = assignment_loss(fit.network(x[rows]), target[rows], self.direction)
            z = nets.locate(x[members])
            sub_loss = subcluster_loss(z, nets(z), fit.sub_means)
            fit.optimizer.zero_grad()
            (loss + sub_loss).backward()
            fit.optimizer.step()
            losses.append((loss.item(), sub_loss.item()))
        fit.losses = tuple(np.mean(losses, 0).tolist())

    def _assign(self, fit: DeepFit) -> Tensor:
        """Assignments r (N, K), their labels; units that no point chooses are taken away."""
        by_mixture = self.assign_by == "mixture"
        r = e_step(fit.x, *fit.mixture)[0] if by_mixture else soft(fit.network, fit.x)
        used, fit.labels = r.argmax(1).unique(return_inverse=True)
        fit.emptied = r.shape[1] - len(used)
        if fit.emptied:
            self._keep(fit, used)
            weights, means, covariances = (part[used] for part in fit.mixture)
            fit.mixture = (weights / weights.sum(), means, covariances)
            r = r[:, used] / r[:, used].sum(1, keepdim=True)
        return r

    # --- moves ---

    def _halves(self, fit: DeepFit, stats: Statistics) -> Tensor:
        return fit.halves.argmax(1)

    def _follow(self, fit: DeepFit, stats: Statistics, moves: Moves) -> None:
        """Units follow their clusters: a new one is a copy of the unit it was split from, a merged
        one that of the larger part; their subclustering networks start anew."""
        self._keep(fit, moves.parents, moves.fresh)
        fit.subnetworks.reset(moves.fresh, fit.generator)
        self._start_halves(fit, stats, moves.fresh)
        fit.frozen = self.freeze

    def _keep(self, fit: DeepFit, index: Tensor, fresh: Tensor | None = None) -> None:
        """All networks get the units ``index``; the momentum of ``fresh`` subnetworks is gone."""
        reindex(fit.network, fit.optimizer, index)
        reindex(fit.subnetworks, fit.optimizer, index, fresh)
        fit.sub_means = fit.sub_means[index].clone()

    def _start_halves(self, fit: DeepFit, stats: Statistics, fresh: Tensor) -> None:
        """Frames of the clusters ``fresh`` (a mask), and the means of their best halves there."""
        k = len(fresh)
        centre, whiten = frames(stats, fit.prior)
        halves = best_halves(fit.x, fit.labels, stats, fit.prior, self.alpha, fit.power)
        z = in_frames(fit.x, fit.labels, centre, whiten)
        means = half_means(z, fit.labels, torch.nn.functional.one_hot(halves, 2).to(z.dtype), k)
        fit.subnetworks.centre[fresh] = centre[fresh].float()
        fit.subnetworks.whiten[fresh] = whiten[fresh].float()
        fit.sub_means[fresh] = means[fresh].float()

    # --- results ---

    def _end(self, fit: DeepFit) -> None:
        self._m_step(fit, sufficient_statistics(fit.x, self._assign(fit)))
        self.network_, self.subnetworks_ = fit.network, fit.subnetworks
        self.mixture_labels_ = e_step(fit.x, *fit.mixture)[0].argmax(1).numpy()

    def _history_row(self, epoch: int, fit: DeepFit, moves: Moves) -> dict[str, float]:
        loss, sub_loss = fit.losses
        return super()._history_row(epoch, fit, moves) | {"loss": loss, "sub_loss": sub_loss}

    def _sub_means(self, fit: DeepFit) -> Tensor:
        nets = fit.subnetworks
        return torch.linalg.solve(nets.whiten, fit.sub_means.mT).mT + nets.centre[:, None]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Soft assignments (n, K): the clustering network's, or as ``assign_by`` says."""
        if self.assign_by == "mixture":
            return super().predict_proba(X)
        x = self._located(X)
        return soft(self.network_, x).numpy()


@torch.no_grad()
def soft(network: ClusteringNet, x: Tensor) -> Tensor:
    """Soft assignments (N, K) of points (N, r), in double precision."""
    return torch.cat([network(rows) for rows in x.float().split(ROWS)]).double().exp()
