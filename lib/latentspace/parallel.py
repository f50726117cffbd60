"""Layers of parallel paths, each path by itself: convolutions and dense layers.

What paths exchange stands in `routing`; networks of both are made in `multipath`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentspace.routing import SqueezeExcitation, check_sizes

__all__ = ["ParallelConvolutions", "ParallelDense"]

SQUEEZED = 32  # hidden units of "E", as fits the thesis's counts best


class ParallelConvolutions(nn.Module):
    """Convolutions and poolings of m paths that do not see each other.

    Parameters
    ----------
    paths, width : int >= 1
        m, and the channels of a path that comes in.
    items : sequence of str
        "C64": 3 x 3 convolution to 64 channels of the same size, batch normalisation if ``norm``,
        ReLU; "M": maximum over 2 x 2; "E": squeeze-and-excitation (with one path only).
    norm : bool
    grouped : bool
        All paths at once by grouped convolutions, or path by path. The same numbers either way
        (tested); which is faster depends on the machine: ``tests/benchmarks/routing.py``.

    ``forward``: (n, m, channels, height, width) to (n, m, c, smaller height, smaller width).
    ValueError for maps of other paths or smaller than the pooling, for no path, or for an item that
    is unknown or cannot stand there.
    """

    def __init__(
        self,
        paths: int,
        width: int,
        items: Sequence[str],
        norm: bool = True,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(paths=paths, width=width)
        self.paths, self.width, self.grouped, self.layers = paths, width, grouped, nn.ModuleList()
        self.least = 2 ** list(items).count("M")  # pixels of a side that the pooling needs
        for item in items:
            if item[0] == "C":
                self.layers.append(_Convolution(paths, width, int(item[1:]), norm))
                width = int(item[1:])
            elif item == "M":
                self.layers.append(nn.MaxPool2d(2))
            elif item == "E" and paths == 1:
                self.layers.append(SqueezeExcitation(width, SQUEEZED))
            else:
                raise ValueError(f"no layer for {paths} paths: {item!r}; E is for one path only")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:-2] != (self.paths, self.width) or min(x.shape[-2:]) < self.least:
            need = f"{self.paths} paths of {self.width} maps, {self.least} pixels a side or more"
            raise ValueError(f"need {need}, got {tuple(x.shape[1:])}")
        parts = [x.flatten(1, 2)] if self.grouped else list(x.unbind(1))
        for layer in self.layers:
            parts = layer(parts) if isinstance(layer, _Convolution) else [layer(p) for p in parts]
        one = len(parts) == 1
        return parts[0].unflatten(1, (self.paths, -1)) if one else torch.stack(parts, 1)


class _Convolution(nn.Module):
    """The same layer for each of a list of parts: m paths, or one part that holds them all."""

    def __init__(self, paths: int, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.paths = paths
        self.conv = nn.Conv2d(paths * inputs, paths * outputs, 3, padding=1, groups=paths)
        # Glorot's start. From He's, of twice the variance, five of thirteen networks learned
        # nothing at the thesis's rate of .1 in a short run on a GPU; no test separated the cause.
        nn.init.normal_(self.conv.weight, std=(2 / (9 * (inputs + outputs))) ** 0.5)
        nn.init.zeros_(self.conv.bias)
        self.norm = nn.BatchNorm2d(paths * outputs) if norm else None

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        count, groups, n = len(parts), self.paths // len(parts), self.norm

        def cut(t: Tensor | None) -> Sequence[Tensor | None]:  # each part's share
            return t.chunk(count) if t is not None and count > 1 else [t] * count

        shares = map(cut, (self.conv.weight, self.conv.bias))
        parts = [
            F.conv2d(x, weight, bias, padding=1, groups=groups)
            for x, weight, bias in zip(parts, *shares, strict=True)
        ]
        if n is not None:
            shares = map(cut, (n.running_mean, n.running_var, n.weight, n.bias))
            parts = [
                F.batch_norm(x, mean, variance, scale, shift, self.training, n.momentum, n.eps)
                for x, mean, variance, scale, shift in zip(parts, *shares, strict=True)
            ]
        return [x.relu_() for x in parts]  # in place: nobody else has them


class ParallelDense(nn.Module):
    """A dense layer for each of m paths, with a ReLU unless ``relu`` is False.

    ``forward``: (n, m, ...), ``inputs`` numbers a path, flattened, to (n, m, outputs). ValueError
    for other numbers, or for a size that is no integer >= 1.
    """

    def __init__(self, paths: int, inputs: int, outputs: int, relu: bool = True) -> None:
        super().__init__()
        check_sizes(paths=paths, inputs=inputs, outputs=outputs)
        scale = (2 / (inputs + outputs)) ** 0.5  # Glorot's start
        self.weight = nn.Parameter(torch.randn(paths, inputs, outputs) * scale)
        self.bias = nn.Parameter(torch.zeros(paths, 1, outputs))
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        flat, (paths, inputs) = x.flatten(2), self.weight.shape[:2]
        if flat.shape[1:] != (paths, inputs):
            raise ValueError(f"need {paths} paths of {inputs} numbers, got {tuple(x.shape[1:])}")
        x = torch.baddbmm(self.bias, flat.transpose(0, 1), self.weight).transpose(0, 1)
        return x.relu() if self.relu else x
