"""Reading, exchanging and regularising the gates of a multi-path network.

What a network's gates decide is a list, one tensor (n, m, k) a router: image, input path, output
path. `read` gets it; `exchanged` runs the network with another list in its place, which is how one
finds out whether the gates matter; the losses at the end say what a gate should be like. The losses
take the scores before the softmax, in the same lists, as `watched` collects them in training::

    with watched(model) as scores:
        logits = model(images)
    loss = F.cross_entropy(logits, y) + 0.01 * mixture(scores)

All of it works for any model that holds a `routing.GateNetwork`. Source: Tissera's thesis, section
3.5 (reading) and chapter 5 (the mixture loss; what it leaves open stands in errata T19).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentspace.relevance import em_loss, normalize_relevance, sharpened_posterior
from latentspace.routing import CrossConnection, CrossPrediction, GateNetwork
from latentspace.training import predict

__all__ = [
    "GateMixture", "Route", "average", "entropies", "entropy_loss", "exchanged", "explained",
    "freeze", "gate_score", "importance_loss", "load_balancing_loss", "log_odds",
    "predict_exchanged", "read", "routes", "shuffle", "swap", "watched",
]  # fmt: skip

# --- reading --------------------------------------------------------------------------------------


def _gate_networks(model: nn.Module) -> list[GateNetwork]:
    found = [module for module in model.modules() if isinstance(module, GateNetwork)]
    if not found:
        raise ValueError("the model has no gates that look at their input")
    return found


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the scores before the softmax of every router that runs in the block.

    The list that it gives holds a tensor (n, m, k) for each router, in the order of their running,
    with its gradient; it is emptied when the model, called as a whole, begins anew. ValueError for
    a model without gates.
    """
    scores: list[Tensor] = []
    with ExitStack() as hooks:
        for gates in _gate_networks(model):
            handle = gates.scores.register_forward_hook(lambda *call: scores.append(call[-1]))
            hooks.callback(handle.remove)
        hooks.callback(model.register_forward_pre_hook(lambda *call: scores.clear()).remove)
        yield scores


def read(model: nn.Module, x: Tensor, before: bool = False, batch_size: int = 500) -> list[Tensor]:
    """What each router decides for each image, in evaluation mode and without gradient.

    Parameters
    ----------
    model : nn.Module that holds gate networks
    x : (n, ...), as the model takes it
    before : bool
        Give the scores before the softmax.

    Returns
    -------
    list of (n, m, k), in the order of the routers; gates sum to 1 over the last axis.

    Raises
    ------
    ValueError
        The model has no gates, or ``x`` no rows.
    """
    found = predict(_Reader(model), x, batch_size=batch_size)
    return list(found) if before else [a.softmax(-1) for a in found]


class _Reader(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with watched(self.model) as scores:
            self.model(x)
        return tuple(scores)


class Route(NamedTuple):
    """One router's part of the route diagram (thesis Fig. 3.7).

    ``gates`` (n, m, k); ``inputs`` (n, m) and ``outputs`` (n, k), the strengths of the tensors that
    go in and come out: their mean absolute value, as a share of those beside them.
    """

    gates: Tensor
    inputs: Tensor
    outputs: Tensor


@torch.no_grad()
def routes(model: nn.Module, x: Tensor) -> list[Route]:
    """The data of the route diagram of images ``x`` (n, ...), one `Route` a router.

    After a ReLU the absolute value changes nothing; the first router's input, the image itself, may
    be negative. A model in training mode normalises by ``x`` itself, so give it in evaluation mode.
    ValueError for a model without cross-connections and cross-predictions.
    """
    found: list[Route] = []

    def keep(router: nn.Module, given: tuple, output: Tensor) -> None:
        paths = given[0] if torch.is_tensor(given[0]) else torch.stack(list(given[0]), 1)
        sizes = [t.flatten(2).abs().mean(2) for t in (paths, output)]
        shares = [size / size.sum(1, keepdim=True).clamp_min(1e-30) for size in sizes]
        found.append(Route(router.gates(paths), *shares))

    with ExitStack() as hooks:
        routers = [r for r in model.modules() if isinstance(r, CrossConnection | CrossPrediction)]
        if not routers:
            raise ValueError("the model has no cross-connection and no cross-prediction")
        for router in routers:
            hooks.callback(router.register_forward_hook(keep).remove)
        model(x)
    return found


def explained(values: Tensor, groups: Tensor) -> Tensor:
    """The share of each value's variance that lies between groups, the correlation ratio.

    Parameters
    ----------
    values : (n, ...), such as gates
    groups : (n,) integers, such as classes, or deciles of a number

    Returns
    -------
    (...) in [0, 1]; 0 where a value is the same for all images. Groups that say nothing have about
    (groups - 1) / (n - 1). ValueError for other lengths.
    """
    if groups.shape != values.shape[:1] or len(groups) == 0:
        raise ValueError(f"{tuple(groups.shape)} groups for values {tuple(values.shape)}")
    values = values.double()
    centred = values - values.mean(0)
    between = torch.zeros_like(values[0])
    for group in groups.unique():
        mine = centred[groups == group]
        between += len(mine) * mine.mean(0).square()
    total = centred.square().sum(0)
    still = total <= 1e-20 * len(values)
    return torch.where(still, 0.0, between / total.where(~still, torch.ones_like(total)))


def log_odds(scores: Tensor) -> Tensor:
    """The logarithm of g / (1 - g) for gates before the softmax, (..., k) -> (..., k).

    Unlike a score it depends on nothing else than its gate: adding a number to all scores of a path
    changes no gate and no odds. For two outputs it is the difference of the two scores.

    Raises ValueError for fewer than two outputs.
    """
    k = scores.shape[-1]
    if k < 2:
        raise ValueError("a gate towards the only output is always 1 and has no odds")
    others = scores[..., None, :].expand(*scores.shape, k)
    others = others.masked_fill(torch.eye(k, dtype=torch.bool, device=scores.device), -torch.inf)
    return scores - others.logsumexp(-1)


def gate_score(
    model: nn.Module, router: int, units: Sequence[tuple[int, int]]
) -> Callable[[Tensor], Tensor]:
    """The function for `maximize.maximize` that gives image i the log odds of gate ``units[i]``.

    Parameters
    ----------
    model : nn.Module in evaluation mode
    router : int
        Which one, counted from 0.
    units : sequence of (input, output)
        One gate an image.

    The score before the softmax, which the thesis maximises, can rise without its gate: see
    `log_odds`. ValueError at the call for a router or a gate that is not there, or another number
    of images.
    """
    chosen = torch.as_tensor(units).cpu().reshape(-1, 2)

    def score(images: Tensor) -> Tensor:
        with watched(model) as found:
            model(images)
        if not 0 <= router < len(found):
            raise ValueError(f"router must lie in 0 .. {len(found) - 1}, got {router}")
        odds = log_odds(found[router])
        n, m, k = odds.shape
        sizes = torch.tensor([m, k])
        if len(chosen) != n or ((chosen < 0) | (chosen >= sizes)).any():
            raise ValueError(f"{chosen.tolist()} are no {n} of the {m} x {k} gates of this router")
        return odds[torch.arange(n), chosen[:, 0], chosen[:, 1]]

    return score


# --- exchanging -----------------------------------------------------------------------------------

Gates = Sequence[Tensor | None]


def freeze(gates: Sequence[Tensor]) -> list[Tensor]:
    """Each gate is for all images what it is on average over them."""
    return [g.mean(0, keepdim=True).expand_as(g) for g in gates]


def average(gates: Sequence[Tensor]) -> list[Tensor]:
    """Every gate is 1 / k."""
    return [torch.full_like(g, 1 / g.shape[-1]) for g in gates]


def shuffle(gates: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Each image gets all gates of one other image (a random cycle through all of them)."""
    n = len(gates[0])
    order = torch.randperm(n, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return [g[other] for g in gates]


def swap(gates: Sequence[Tensor]) -> list[Tensor]:
    """Each input's gates go one output further: with two outputs they change places."""
    return [g.roll(1, -1) for g in gates]


@contextmanager
def exchanged(model: nn.Module, gates: Gates) -> Iterator[None]:
    """In the block the model's routers use these gates instead of those that they compute.

    ``gates``: for each router (n, m, k) or (1, m, k), or None where it shall go on as it is, with
    what then reaches it. The routers come in the order in which the model holds them. At the call,
    ValueError for gates of another shape than the router's.
    """
    networks = _gate_networks(model)
    with ExitStack() as hooks:
        for network, given in zip(networks, gates, strict=True):
            if given is not None:
                hook = network.register_forward_hook(_replacement(given))
                hooks.callback(hook.remove)
        yield


def _replacement(given: Tensor) -> Callable:
    def replace(network: nn.Module, inputs: tuple, own: Tensor) -> Tensor:
        if given.shape[1:] != own.shape[1:] or len(given) not in (1, len(own)):
            raise ValueError(f"gates {tuple(given.shape)} for a router of {tuple(own.shape)}")
        return given.to(own).expand_as(own)

    return replace


def predict_exchanged(
    model: nn.Module, x: Tensor, gates: Gates, batch_size: int = 500
) -> Tensor:
    """The model's outputs (n, ...) for ``x`` with gates for its n images, see `exchanged`."""
    parts = []
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        mine = [g if g is None or len(g) == 1 else g[rows] for g in gates]
        with exchanged(model, mine):
            parts.append(predict(model, x[rows], batch_size=batch_size))
    return torch.cat(parts)


# --- what a gate should be like: losses -----------------------------------------------------------


class GateMixture(nn.Module):
    """The mixture loss on every gate network, with a prior of its own for each (thesis, ch. 5).

    Each input path's scores are normalised over the batch (eq. 4.11) and clustered by one step of
    EM (eq. 4.20, 4.22); the loss is the mean over all gate networks. Whether the routers themselves
    use raw or normalised scores (`cluster_gates`) the thesis does not say, nor how the prior
    follows (T19): here it moves by ``rate`` towards the batch's mean posterior after each loss in
    training mode, and with rate 0 it stays uniform.

    Parameters
    ----------
    sizes : sequence of (m, k)
        Inputs and outputs of each router, as `GateMixture.of` finds them.
    gamma : float > 0
    rate : float in [0, 1]

    ``forward``: a list of scores (n, m, k), as from `watched`, to a scalar >= 0. ValueError for
    scores of other shapes. ``priors`` are buffers (m, k).
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], gamma: float = 5.0, rate: float = 0.1
    ) -> None:
        super().__init__()
        self.gamma, self.rate, self.count = gamma, rate, len(sizes)
        for i, (m, k) in enumerate(sizes):
            self.register_buffer(f"prior{i}", torch.full((m, k), 1 / k))

    @classmethod
    def of(cls, model: nn.Module, gamma: float = 5.0, rate: float = 0.1) -> "GateMixture":
        """For all gate networks of a model."""
        return cls([(g.inputs, g.outputs) for g in _gate_networks(model)], gamma, rate)

    @property
    def priors(self) -> list[Tensor]:
        return [getattr(self, f"prior{i}") for i in range(self.count)]

    def forward(self, scores: Sequence[Tensor]) -> Tensor:
        losses = []
        for i, (a, prior) in enumerate(zip(scores, self.priors, strict=True)):
            if a.shape[1:] != prior.shape:
                raise ValueError(f"scores {tuple(a.shape)} for priors {tuple(prior.shape)}")
            # All paths at once: as columns to normalise, then as rows to cluster.
            normalized = normalize_relevance(a.flatten(1)).view(-1, a.shape[2])
            log_prior = prior.clamp_min(1e-12).log()
            posterior = sharpened_posterior(normalized, log_prior.repeat(len(a), 1))
            mean = posterior.view_as(a).mean(0)
            constant = (mean * log_prior).sum(1).mean()
            losses.append(len(prior) * (em_loss(normalized, posterior, self.gamma) - constant))
            if self.training:
                setattr(self, f"prior{i}", torch.lerp(prior, mean, self.rate))
        return torch.stack(losses).sum() / sum(len(prior) for prior in self.priors)


def entropies(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Two entropies of each input path's gates, in nats: scores (n, m, k) -> (m,) and (m,).

    The first is the mean over images of the entropy of an image's gates: 0 if each image takes one
    output, log k if it takes all alike. The second is the entropy of the mean gates: log k if all
    outputs get as much. Second minus first is how much the gates say about the image; it is >= 0.
    """
    gates = scores.softmax(-1)
    each = -(gates * scores.log_softmax(-1)).sum(-1).mean(0)
    mean = gates.mean(0)
    return each, -torch.xlogy(mean, mean).sum(-1)


def entropy_loss(scores: Sequence[Tensor]) -> Tensor:
    """First entropy minus second, the mean over all gate networks: in [-log k, 0].

    Least if every image takes one output and all outputs get as many images.
    """
    return torch.cat([each - whole for each, whole in map(entropies, scores)]).mean()


def importance_loss(scores: Sequence[Tensor]) -> Tensor:
    """Squared coefficient of variation of what each output gets, the mean over all gate networks.

    0 if every output gets as much, k - 1 if one gets all. Source: sparsely-gated mixtures of
    experts (Shazeer et al. 2017), eq. 6 and 7, with n in the variance's denominator.
    """
    shares = [a.softmax(-1).mean(0) for a in scores]
    return torch.cat([g.shape[-1] * g.square().sum(-1) - 1 for g in shares]).mean()


def load_balancing_loss(scores: Sequence[Tensor]) -> Tensor:
    """k times the sum over outputs of (images whose largest gate it is) x (mean gate).

    1 if all is even. The first factor is a share without gradient. For routers that send an image
    to its largest gate alone. Source: Switch Transformers (Fedus et al. 2022), eq. 4 to 6.
    """
    losses = []
    for a in scores:
        k = a.shape[-1]
        taken = nn.functional.one_hot(a.argmax(-1), k).to(a.dtype).mean(0)
        losses.append(k * (taken * a.softmax(-1).mean(0)).sum(-1))
    return torch.cat(losses).mean()
