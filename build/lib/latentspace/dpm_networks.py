"""The networks of DeepDPM: their losses, and their surgery when clusters split and merge."""

import torch
from torch import Tensor, nn

__all__ = [
    "ClusteringNet",
    "SubclusteringNets",
    "assignment_loss",
    "draw_members",
    "half_means",
    "own_halves",
    "reindex",
    "subcluster_loss",
]

LEAST = -80.0  # log probabilities below this are one number: their exponentials would be subnormal
COLUMNS = 2048  # points a cluster and pass through the subclustering networks


class ClusteringNet(nn.Module):
    """One hidden layer: points (n, d) to log assignments (n, K).

    Weights are uniform, as nn.Linear's, from ``generator``.
    """

    def __init__(
        self, d: int, k: int, hidden: int = 50, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        # nn.Linear itself would draw from the global generator.
        self.hidden = nn.utils.skip_init(nn.Linear, d, hidden)
        self.output = nn.utils.skip_init(nn.Linear, hidden, k)
        for layer in (self.hidden, self.output):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.output(torch.relu(self.hidden(x))), -1)

    def unit_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters whose leading axis counts clusters."""
        return {"output.weight": self.output.weight, "output.bias": self.output.bias}


class SubclusteringNets(nn.Module):
    """K networks with one hidden layer, as one batched module: (K, n, d) to halves (K, n, 2).

    Each sees the points of its own cluster in that cluster's frame, `locate`: a small or flat
    cluster would be a dot or a line to a network with weights of order one. The frame, ``centre``
    (K, d) and ``whiten`` (K, d, d), is set from outside.
    """

    def __init__(
        self, k: int, d: int, hidden: int = 50, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(k, d, hidden))
        self.b1 = nn.Parameter(torch.empty(k, 1, hidden))
        self.w2 = nn.Parameter(torch.empty(k, hidden, 2))
        self.b2 = nn.Parameter(torch.empty(k, 1, 2))
        self.register_buffer("centre", torch.zeros(k, d))
        self.register_buffer("whiten", torch.eye(d).repeat(k, 1, 1))
        self.reset(torch.arange(k), generator)

    @torch.no_grad()
    def reset(self, which: Tensor, generator: torch.Generator | None = None) -> None:
        """Fresh weights for the networks ``which``, uniform as in nn.Linear."""
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            bound = weight.shape[1] ** -0.5
            for parameter in (weight, bias):
                fresh = torch.rand(parameter[which].shape, generator=generator)
                parameter[which] = bound * (2 * fresh - 1)

    def locate(self, x: Tensor) -> Tensor:
        """Points (K, n, d), those of a cluster in each row, in the frames of the clusters."""
        return (x - self.centre[:, None]) @ self.whiten.mT

    def forward(self, z: Tensor) -> Tensor:
        """Halves (K, n, 2) of points ``z`` (K, n, d) in their frames."""
        hidden = torch.relu(torch.baddbmm(self.b1, z, self.w1))
        return torch.softmax(torch.baddbmm(self.b2, hidden, self.w2), -1)

    def unit_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters whose leading axis counts clusters: all of them."""
        return dict(self.named_parameters())


# --- losses ---


def assignment_loss(log_r: Tensor, log_target: Tensor, direction: str = "target") -> Tensor:
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


def subcluster_loss(z: Tensor, r: Tensor, means: Tensor) -> Tensor:
    """Isotropic loss of the halves: z (K, n, d), r (K, n, 2), means (K, 2, d), a scalar.

    The mean over all points of ``sum_j r_j |z - mean_j|^2``.
    """
    squares = (z[:, :, None] - means[:, None]).square().sum(-1)
    return (r * squares).sum(-1).mean()


# --- surgery ---


@torch.no_grad()
def reindex(
    module: ClusteringNet | SubclusteringNets,
    optimizer: torch.optim.Optimizer,
    index: Tensor,
    fresh: Tensor | None = None,
) -> None:
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


def draw_members(
    labels: Tensor, n_clusters: int, size: int, generator: torch.Generator
) -> Tensor:
    """``size`` random members of each cluster, with replacement: indices (K, size)."""
    order = labels.argsort()
    sizes = torch.bincount(labels, minlength=n_clusters)
    starts = sizes.cumsum(0) - sizes
    uniform = torch.rand(n_clusters, size, generator=generator, dtype=torch.float64)
    return order[starts[:, None] + (uniform * sizes[:, None]).long()]


@torch.no_grad()
def own_halves(networks: SubclusteringNets, z: Tensor, labels: Tensor) -> Tensor:
    """Soft halves (N, 2) of points ``z`` (N, d), each in the frame and by the network of its own
    cluster."""
    order = labels.argsort(stable=True)
    cluster = labels[order]
    sizes = torch.bincount(labels, minlength=len(networks.centre))
    place = torch.arange(len(z)) - (sizes.cumsum(0) - sizes)[cluster]
    out = z.new_empty(len(z), 2)
    for start in range(0, int(sizes.max()), COLUMNS):
        chosen = (place >= start) & (place < start + COLUMNS)
        rows, k, column = order[chosen], cluster[chosen], place[chosen] - start
        padded = z.new_zeros(len(sizes), int(column.max()) + 1, z.shape[1])
        padded[k, column] = z[rows]
        out[rows] = networks(padded)[k, column]
    return out


def half_means(z: Tensor, labels: Tensor, halves: Tensor, n_clusters: int) -> Tensor:
    """Weighted means (K, 2, d) of the halves (N, 2) of each cluster."""
    total = z.new_zeros(n_clusters, 2, z.shape[1])
    weight = z.new_zeros(n_clusters, 2).index_add(0, labels, halves)
    for j in (0, 1):
        total[:, j].index_add_(0, labels, halves[:, j, None] * z)
    return total / weight.clamp_min(1e-6)[..., None]
