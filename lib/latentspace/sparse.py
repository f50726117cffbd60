"""Sparse routing: of k paths side by side, each image goes through the one with its largest gate.

A soft router computes all paths and weighs them. A top-1 router computes one, so that k paths cost
the arithmetic of one and of the gate network. Its output is the chosen path times the chosen gate:
through that factor the task's loss reaches the gate network, though the choice itself has no
derivative.

Source: what Tissera's thesis, section 5.3, proposes ("divide to paths, compute, and accumulate
layer-wise"); the factor as in Switch Transformers (Fedus et al. 2022), eq. 2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentspace.contexts import ConstantGates, LearnedGates
from latentspace.multipath import MultiPath, multipath
from latentspace.parallel import ParallelDense
from latentspace.routing import GateNetwork, check_sizes

__all__ = ["SparseDense", "TopOne", "dispatch", "in_turn", "sparse_network", "top_one"]


def top_one(gates: Tensor) -> Tensor:
    """Gates (..., k) of which only the largest is kept and the others are 0.

    Of equal ones the first that `torch.argmax` names.
    """
    return gates * F.one_hot(gates.argmax(-1), gates.shape[-1])


def dispatch(x: Tensor, chosen: Tensor, paths: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Row i is ``paths[chosen[i]](x[i])``; each path is called once, with its own rows alone.

    ``x`` (n, ...) and ``chosen`` (n,) integers; a path that nobody chose is not called. ValueError
    for choices of other rows or of paths that are not there, or without a row.
    """
    if chosen.shape != x.shape[:1] or len(x) == 0:
        raise ValueError(f"choices {tuple(chosen.shape)} for {len(x)} rows; need one or more")
    picked = chosen.tolist()
    if not 0 <= min(picked) <= max(picked) < len(paths):
        raise ValueError(f"choices must lie in 0 .. {len(paths) - 1}")
    if min(picked) == max(picked):  # as with a single image: nothing to sort, nothing to copy
        return paths[picked[0]](x)
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(paths)).tolist()
    shares = x.index_select(0, order).split(counts)  # three times as fast as x[order]
    done = [path(part) for path, part in zip(paths, shares, strict=True) if len(part)]
    return torch.cat(done).index_select(0, order.argsort())


class TopOne(nn.Module):
    """A router and its k paths: the chosen path's output times its gate.

    Parameters
    ----------
    paths : sequence of nn.Module
        Each from (n, 1, c, ...) to outputs of one shape.
    width : int >= 1
        Channels c of what comes in.
    hidden : int >= 1
        Units of the gate network, see `routing.GateNetwork`.

    ``forward``: (n, 1, c, ...) to (n, 1, c', ...). ValueError for no path or no image.
    """

    def __init__(self, paths: Sequence[nn.Module], width: int, hidden: int = 10) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.gates = GateNetwork(1, len(self.paths), width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate, chosen = self.gates(x)[:, 0].max(-1)
        y = dispatch(x, chosen, list(self.paths))
        return y * gate.view(-1, *[1] * (y.ndim - 1))


class _InTurn(nn.Module):
    def __init__(self, gates: nn.Module, k: int, images: int) -> None:
        super().__init__()
        self.gates = gates
        self.lead: Tensor
        self.register_buffer("lead", torch.eye(k).repeat(-(-images // k), 1)[:images, None])

    def forward(self, paths: Tensor) -> Tensor:
        return self.gates(paths) + self.lead[: len(paths)]


def in_turn(model: nn.Module, images: int) -> nn.Module:
    """Let image i of a batch choose path i mod k in every `TopOne`, and return the model.

    For timing: untrained gates send nearly all images to one path, so that hardly anything is
    dispatched. The gate networks still run; 1 is added to the gate whose turn it is. Batches of up
    to ``images``.
    """
    for router in [part for part in model.modules() if isinstance(part, TopOne)]:
        router.gates = _InTurn(router.gates, len(router.paths), images)
    return model


def sparse_network(
    plan: str, shape: Sequence[int], n_classes: int, paths: int, hidden: int = 10
) -> MultiPath:
    """The sparse relative of a network with cross-connections, from the same plan.

    Parameters
    ----------
    plan : str
        As `multipath.multipath` takes it, with "R" where an image chooses: the layers up to the
        next "R" exist in ``paths`` versions. Layers before the first "R" exist once.
    shape, n_classes, hidden : as there

    One dense layer of logits follows. ValueError for a plan that cannot be built, or one without
    "R".
    """
    check_sizes(paths=paths)
    common, *routed = plan.split("R")
    if not routed:
        raise ValueError(f"nothing to choose in {plan!r}: it has no R")
    stages, size = [], tuple(shape)

    def segment(items: str) -> nn.Sequential:
        return nn.Sequential(*multipath(items, size, 1).stages[:-1])  # without its logits

    for items, versions in ((common, 1), *((part, paths) for part in routed)):
        if not items.strip():
            continue
        built = [segment(items) for _ in range(versions)]
        stages.append(built[0] if versions == 1 else TopOne(built, size[0], hidden))
        size = tuple(built[0].eval()(torch.zeros(1, 1, *size)).shape[2:])
        built[0].train()
    inputs = int(torch.tensor(size).prod())
    return MultiPath([*stages, ParallelDense(1, inputs, n_classes, relu=False)])


class SparseDense(nn.Module):
    """Dense layers, each in k versions of which an image uses one; s such networks side by side.

    It computes every version and keeps one, which is the cheaper way to *train* many small networks
    at once; the numbers are those of `TopOne` (tested).

    Parameters
    ----------
    widths : sequence of int
        Pixels, hidden units, classes.
    paths : int, or one a layer
        k; a layer of one path has no choice.
    seeds : int
        s.
    gates : callable (layer, m, k, width) -> nn.Module, optional
        As in `contexts.GatedDense`, with m = 1; learned gates by default.
    soft : bool
        Weigh all versions by their gates instead of choosing.

    ``forward``: pixels (n, s, d) and contexts (n, s) to logits (n, s, classes); the gates, before
    one is chosen, are appended to the list ``found``, each (n, s, 1, k). So the functions of
    `contexts` train and test it.
    """

    def __init__(
        self, widths: Sequence[int], paths: int | Sequence[int], seeds: int,
        gates: Callable[[int, int, int, int], nn.Module] | None = None, soft: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.seeds, self.soft, last = seeds, soft, len(widths) - 2
        counts = [paths] * (last + 1) if isinstance(paths, int) else list(paths)
        self.layers = nn.ModuleList(
            ParallelDense(seeds * k, widths[i], widths[i + 1], i < last)
            for i, k in enumerate(counts)
        )
        build = gates or (lambda layer, m, k, width: LearnedGates(m, k, width, seeds))
        single = ConstantGates(torch.ones(1, 1), seeds)
        self.gates = nn.ModuleList(
            single if k == 1 else build(i, 1, k, widths[i]) for i, k in enumerate(counts)
        )

    def forward(self, x: Tensor, context: Tensor, found: list[Tensor] | None = None) -> Tensor:
        for gates, layer in zip(self.gates, self.layers, strict=True):
            g = gates(x[:, :, None], context)
            if found is not None:
                found.append(g)
            weights = g if self.soft else top_one(g)
            versions = x[:, :, None].expand(-1, -1, g.shape[-1], -1)
            y = layer(versions.flatten(1, 2)).unflatten(1, (self.seeds, -1))
            x = torch.einsum("nsk,nskc->nsc", weights[:, :, 0], y)
        return x
