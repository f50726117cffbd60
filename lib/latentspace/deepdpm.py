"""DeepDPM: a network that learns cluster assignments while clusters split and merge."""

import math

import numpy as np
import torch
from torch import nn

from latentspace.dirichlet import (
    e_step,
    label_statistics,
    sufficient_statistics,
)
from latentspace.dpm import DPMixture, move, principal_halves, without_gaps

LEAST = -80.0  # log probabilities below this are one number: their exponentials would be subnormal
LEAST_STEPS = 20  # an epoch, on small data
COLUMNS = 2048  # points a cluster and pass through the subclustering networks


class ClusteringNet(nn.Module):
    """One hidden layer: points (n, d) to log assignments (n, K)."""

    def __init__(self, d, k, hidden=50):
        super().__init__()
        self.hidden = nn.Linear(d, hidden)
        self.output = nn.Linear(hidden, k)

    def forward(self, x):
        return torch.log_softmax(self.output(torch.relu(self.hidden(x))), -1)

    def unit_parameters(self):
        """The parameters whose leading axis counts clusters."""
        return {"output.weight": self.output.weight, "output.bias": self.output.bias}


class SubclusteringNets(nn.Module):
    """K networks with one hidden layer, as one batched module: (K, n, d) to halves (K, n, 2).

    Each looks at the points of its own cluster through ``centre`` (K, d) and ``width`` (K, d),
    because a small cluster is a dot to a network with weights of order one.
    """

    def __init__(self, k, d, hidden=50):
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(k, d, hidden))
        self.b1 = nn.Parameter(torch.empty(k, 1, hidden))
        self.w2 = nn.Parameter(torch.empty(k, hidden, 2))
        self.b2 = nn.Parameter(torch.empty(k, 1, 2))
        self.register_buffer("centre", torch.zeros(k, d))
        self.register_buffer("width", torch.ones(k, d))
        self.reset(torch.arange(k))

    @torch.no_grad()
    def reset(self, which, generator=None):
        """Fresh weights for the networks ``which``, uniform as in nn.Linear."""
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            bound = weight.shape[1] ** -0.5
            for parameter in (weight, bias):
                fresh = torch.rand(parameter[which].shape, generator=generator)
                parameter[which] = bound * (2 * fresh - 1)

    def forward(self, x):
        x = (x - self.centre[:, None]) / self.width[:, None]
        hidden = torch.relu(torch.baddbmm(self.b1, x, self.w1))
        return torch.softmax(torch.baddbmm(self.b2, hidden, self.w2), -1)

    def unit_parameters(self):
        """The parameters whose leading axis counts clusters: all of them."""
        return dict(self.named_parameters())


# --- losses ---


def assignment_loss(log_r, log_target, direction="target"):
    """Mean KL divergence between assignments (n, K) and E-step probabilities, given by their logs.

    ``"network"`` is KL(r || r^E), which the paper prints; ``"target"`` is KL(r^E || r), which its
    code minimises (erratum L8). Both are 0 where they agree.
    """
    log_r, log_target = log_r.clamp_min(LEAST), log_target.clamp_min(LEAST)
    if direction == "network":
        return (log_r.exp() * (log_r - log_target)).sum(1).mean()
    if direction == "target":
        return (log_target.exp() * (log_target - log_r)).sum(1).mean()
    raise ValueError(f"direction must be 'network' or 'target', got {direction!r}")


def subcluster_loss(x, r, means):
    """Isotropic loss of the halves: x (K, n, d), r (K, n, 2), means (K, 2, d), a scalar.

    The mean over all points of ``sum_j r_j |x - mean_j|^2``.
    """
    squares = (x[:, :, None] - means[:, None]).square().sum(-1)
    return (r * squares).sum(-1).mean()


# --- network surgery ---


@torch.no_grad()
def reindex(module, optimizer, index, fresh=None):
    """Give cluster i of ``module`` the unit that cluster ``index[i]`` had; in place.

    Duplicates and omissions make splits and merges. Adam's running moments follow their units;
    those of the units ``fresh`` (a mask over the new clusters) start at zero.
    """
    for name, parameter in module.unit_parameters().items():
        new = nn.Parameter(parameter[index].clone())
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new)
        for group in optimizer.param_groups:
            group["params"] = [new if p is parameter else p for p in group["params"]]
        state = optimizer.state.pop(parameter, None)
        if state:
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    value = value[index].clone()
                    if fresh is not None:
                        value[fresh] = 0
                    state[key] = value
            optimizer.state[new] = state
    for name, buffer in module.named_buffers():
        setattr(module, name, buffer[index].clone())


# --- points grouped by cluster ---


def draw_members(labels, n_clusters, size, generator):
    """``size`` random members of each cluster, with replacement: indices (K, size)."""
    order = labels.argsort()
    sizes = torch.bincount(labels, minlength=n_clusters)
    starts = sizes.cumsum(0) - sizes
    uniform = torch.rand(n_clusters, size, generator=generator, dtype=torch.float64)
    return order[starts[:, None] + (uniform * sizes[:, None]).long()]


@torch.no_grad()
def own_halves(networks, x, labels):
    """Each point's soft halves (N, 2) by the network of its own cluster."""
    order = labels.argsort(stable=True)
    cluster = labels[order]
    sizes = torch.bincount(labels, minlength=len(networks.centre))
    place = torch.arange(len(x)) - (sizes.cumsum(0) - sizes)[cluster]
    out = x.new_empty(len(x), 2)
    for start in range(0, int(sizes.max()), COLUMNS):
        chosen = (place >= start) & (place < start + COLUMNS)
        rows, k, column = order[chosen], cluster[chosen], place[chosen] - start
        padded = x.new_zeros(len(sizes), int(column.max()) + 1, x.shape[1])
        padded[k, column] = x[rows]
        out[rows] = networks(padded)[k, column]
    return out


def half_means(x, labels, halves, n_clusters):
    """Weighted means (K, 2, d) of the halves (N, 2) of each cluster."""
    total = x.new_zeros(n_clusters, 2, x.shape[1])
    weight = x.new_zeros(n_clusters, 2).index_add(0, labels, halves)
    for j in (0, 1):
        total[:, j].index_add_(0, labels, halves[:, j, None] * x)
    return total / weight.clamp_min(1e-6)[..., None]


# --- the estimator ---


class DeepDPM(DPMixture):
    """Clustering with an unknown number of clusters by networks that imitate a mixture.

    A clustering network proposes soft assignments r. It is trained towards the E-step of a Gaussian
    mixture whose parameters are in turn estimated with r. For each cluster a subclustering network
    learns two halves; in turn, splits into these halves and merges of neighbours are accepted by
    their Hastings ratio, and the networks follow.

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
    move_every : int
        Epochs between rounds of moves; splits and merges take turns.
    freeze : int
        Epochs after a move in which the mixture keeps its parameters, so that the network can
        learn the new assignment.
    settle : int
        Epochs without moves at the end.

    Attributes
    ----------
    n_clusters_, weights_, means_, covariances_, prior_, posterior_, n_iter_
        As in `DPMixture`.
    events_ : DataFrame
        As in `DPMixture`, with a third kind: "empty", a unit that no point chose was taken away.
    labels_ : array (n,), the network's
    mixture_labels_ : array (n,), those of the mixture that the network imitates
    network_ : ClusteringNet
    subnetworks_ : SubclusteringNets
    history_ : DataFrame, one row an epoch
        As in `DPMixture`, and loss, sub_loss.

    Source: DeepDPM (Ronen et al. 2022), errata L7-L9 and B6.
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
        hidden=50,
        epochs=80,
        batch_size=1024,
        sub_batch_size=64,
        lr=1e-2,
        sub_lr=1e-2,
        direction="target",
        move_every=3,
        freeze=2,
        settle=10,
        random_state=None,
    ):
        super().__init__(
            initial_clusters=initial_clusters,
            alpha=alpha,
            kappa=kappa,
            nu=nu,
            psi_scale=psi_scale,
            coarsening=coarsening,
            neighbours=neighbours,
            random_state=random_state,
        )
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.sub_batch_size = sub_batch_size
        self.lr = lr
        self.sub_lr = sub_lr
        self.direction = direction
        self.move_every = move_every
        self.freeze = freeze
        self.settle = settle

    def fit(self, X, y=None, callback=None):
        """Cluster ``X`` (n, d); ``y`` is ignored.

        ``callback(epoch, snapshot)`` is called after each epoch. Raises ValueError on NaN or
        parameters out of range.
        """
        x = self._start(X)
        labels, k = without_gaps(self._initial_labels(x))
        self._build(x, labels, k)
        history, events, frozen = [], [], self.freeze
        for epoch in range(1, self.epochs + 1):
            losses, log_density = self._train(x, labels)
            labels, r, emptied = self._assign(x, epoch)
            if frozen:
                frozen -= 1
            else:
                self._m_step(sufficient_statistics(x, r))
            halves = own_halves(self.subnetworks_, x.float(), labels)
            self._sub_means = half_means(x.float(), labels, halves, r.shape[1])
            moves = []
            if epoch % self.move_every == 0 and epoch <= self.epochs - self.settle:
                stats = label_statistics(x, labels, r.shape[1])
                if epoch // self.move_every % 2:
                    labels, moves = self._split(x, labels, stats, epoch, halves.argmax(1))
                else:
                    labels, moves = self._merge(labels, stats, epoch)
                if moves:
                    labels = self._operate(x, labels)
                    frozen = self.freeze
            events += emptied + moves
            history.append(self._row(epoch, len(self._sub_means), log_density, moves, **losses))
            if callback is not None:
                callback(epoch, self._snapshot(x, labels, self._sub_means))
        labels, r, emptied = self._assign(x, self.epochs)
        events += emptied
        self._m_step(sufficient_statistics(x, r))
        self._finish(history, events)
        self.labels_ = labels.numpy()
        self.mixture_labels_ = e_step(x, *self._mixture)[0].argmax(1).numpy()
        return self

    def _check(self, x):
        super()._check(x)
        for name in ("hidden", "epochs", "batch_size", "sub_batch_size", "move_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("lr", "sub_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.direction not in ("target", "network"):
            raise ValueError(f"direction must be 'target' or 'network', got {self.direction!r}")

    def _build(self, x, labels, k):
        """Networks, their optimiser and the first mixture, all from the initial labels."""
        d = x.shape[1]
        with torch.random.fork_rng(devices=[]):  # keeps the caller's global random state
            torch.manual_seed(self._seed)
            self.network_ = ClusteringNet(d, k, self.hidden)
            self.subnetworks_ = SubclusteringNets(k, d, self.hidden)
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(self.network_.parameters()), "lr": self.lr},
                {"params": list(self.subnetworks_.parameters()), "lr": self.sub_lr},
            ]
        )
        # Features of small variance would be learned last.
        width = x.std(0, correction=0)
        self._width = torch.where(width > 1e-6, width, 1.0)
        stats = label_statistics(x, labels, k)
        self._m_step(stats)
        self._sub_means = x.new_zeros(k, 2, d).float()
        self._start_halves(x, labels, stats, torch.ones(k, dtype=torch.bool))

    def _start_halves(self, x, labels, stats, fresh):
        """Means of the halves of the clusters ``fresh`` (a mask) by 2-means on the first axis."""
        width = (stats.scatter.diagonal(dim1=1, dim2=2) / stats.count[:, None]).sqrt()
        self.subnetworks_.centre[fresh] = stats.mean[fresh].float()
        self.subnetworks_.width[fresh] = torch.where(width > 1e-6, width, 1.0)[fresh].float()
        k = len(fresh)
        halves = principal_halves(x, labels, stats)
        means = label_statistics(x, 2 * labels + halves, 2 * k).mean.view(k, 2, -1)
        self._sub_means[fresh] = means[fresh].float()

    def _train(self, x, labels):
        """One epoch of all networks; the mean losses and the mixture's log densities."""
        responsibilities, log_density = e_step(x, *self._mixture)
        target = responsibilities.clamp_min(math.exp(LEAST)).log().float()
        x = x.float()
        inputs = x / self._width.float()
        losses = []
        size = min(self.batch_size, math.ceil(len(x) / LEAST_STEPS))
        steps = torch.randperm(len(x), generator=self._generator).split(size)
        k, b = len(self._sub_means), self.sub_batch_size
        drawn = draw_members(labels, k, len(steps) * b, self._generator).split(b, 1)
        for rows, own_rows in zip(steps, drawn, strict=True):
            members = x[own_rows]
            own = assignment_loss(self.network_(inputs[rows]), target[rows], self.direction)
            sub = subcluster_loss(members, self.subnetworks_(members), self._sub_means)
            self._optimizer.zero_grad()
            (own + sub).backward()
            self._optimizer.step()
            losses.append((own.item(), sub.item()))
        loss, sub_loss = np.mean(losses, 0)
        return {"loss": loss, "sub_loss": sub_loss}, log_density

    @torch.no_grad()
    def _assign(self, x, epoch):
        """Hard labels (N,), soft assignments (N, K), events: units without a point go."""
        r = self._soft(x)
        labels = r.argmax(1)
        used, renumbered = labels.unique(return_inverse=True)
        counts = range(r.shape[1], len(used), -1)
        if len(counts):
            self._keep(used)
            weights, means, covariances = (part[used] for part in self._mixture)
            self._mixture = (weights / weights.sum(), means, covariances)
            r = r[:, used] / r[:, used].sum(1, keepdim=True)
        return renumbered, r, [move(epoch, "empty", math.nan, k, k - 1) for k in counts]

    def _soft(self, x):
        inputs = (x / self._width).float()
        with torch.no_grad():
            return torch.cat([self.network_(rows) for rows in inputs.split(COLUMNS)]).double().exp()

    def _keep(self, index, fresh=None):
        """All networks get the units ``index``; subnetworks ``fresh`` (a mask) start anew."""
        reindex(self.network_, self._optimizer, index)
        reindex(self.subnetworks_, self._optimizer, index, fresh)
        self._sub_means = self._sub_means[index].clone()
        if fresh is not None:
            self.subnetworks_.reset(fresh, self._generator)

    def _operate(self, x, labels):
        """Network surgery after moves: units follow the clusters, the mixture their new labels.

        The unit of a new cluster is a copy of the unit it was split from, that of a merged one the
        unit of the larger part. Returns the labels renumbered to the new units.
        """
        # Which units the points of each new cluster came from, and how many.
        old = self._soft(x).argmax(1)
        used, labels = labels.unique(return_inverse=True)
        k, k_old = len(used), len(self._sub_means)
        table = torch.bincount(labels * k_old + old, minlength=k * k_old).view(k, k_old)
        index = table.argmax(1)
        unchanged = (table > 0).sum(1) == 1
        unchanged &= (table > 0).sum(0)[index] == 1
        self._keep(index, ~unchanged)
        stats = label_statistics(x, labels, k)
        self._m_step(stats)
        self._start_halves(x, labels, stats, ~unchanged)
        return labels

    def predict_proba(self, X):
        """Soft assignments (n, K) of the clustering network."""
        return self._soft(self._standardised(X)).numpy()
