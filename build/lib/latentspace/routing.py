"""Routing between parallel paths: gates, cross-connections and cross-predictions.

A layer of m parallel tensors X_1 ... X_m is one tensor of shape (n, m, c, height, width), or
(n, m, c) for vectors: image, path, channel, place. `stack` makes it from a list. A router turns m
paths into k of them. Its gate network looks at each input path and says which share of it goes to
each output, so that the shares of one input sum to 1 over the *outputs*: an output is no average
of the inputs, but all outputs together are all inputs together (`route`).

Source: Tissera's thesis, chapter 3; what it leaves open stands in errata T1, T2 and T5.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CrossConnection", "CrossPrediction", "CrossStitch", "GateNetwork", "SqueezeExcitation",
    "check_sizes", "route", "route_gradient", "spread", "stack",
]  # fmt: skip

# --- mathematics ----------------------------------------------------------------------------------


def stack(paths: Sequence[Tensor] | Tensor) -> Tensor:
    """Paths of equal shape (n, ...) as one tensor (n, m, ...); a tensor is returned as it is.

    ValueError if there is no path or if their shapes differ.
    """
    if torch.is_tensor(paths):
        return paths
    shapes = {tuple(path.shape) for path in paths}
    if len(shapes) != 1:
        raise ValueError(f"paths must be one or more tensors of one shape, got {sorted(shapes)}")
    return torch.stack(list(paths), 1)


def route(paths: Tensor, gates: Tensor) -> Tensor:
    r"""Cross-connection, eq. 3.7: :math:`Y_j = \sum_i g_{ij} X_i`.

    Parameters
    ----------
    paths : (n, m, ...)
    gates : (n, m, k), or (m, k) for gates that are the same for all images

    Returns
    -------
    (n, k, ...). If each row of gates sums to 1, the sum over the k outputs is that over the inputs.

    Raises
    ------
    ValueError
        Gates of other paths or of other images.
    """
    if gates.ndim == 2:
        gates = gates.expand(len(paths), -1, -1)
    _check_gates(paths, gates)
    mixed = gates.transpose(1, 2) @ paths.flatten(2)
    return mixed.unflatten(2, paths.shape[2:])


def spread(paths: Tensor, gates: Tensor) -> Tensor:
    r"""The inputs of all outputs side by side: :math:`g_{ij} X_i` for each output j.

    ``paths`` (n, m, c, ...) and ``gates`` (n, m, k) give (n, k, m c, ...). A cross-prediction is
    linear, so that gating what goes into it is gating what comes out:
    :math:`\sum_i g_{ij} W_{ij} X_i = W_j\, [g_{1j} X_1, \dots, g_{mj} X_m]`, one convolution an
    output instead of one a pair. ValueError for gates of other paths or of other images.
    """
    _check_gates(paths, gates)
    gates = gates.transpose(1, 2).reshape(len(paths), -1, paths.shape[1], *[1] * (paths.ndim - 2))
    return (gates * paths[:, None]).flatten(2, 3)


def route_gradient(paths: Tensor, weights: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    r"""Back through a cross-connection with one-layer gates, by hand: eq. 3.9-3.15.

    The router is :math:`A_i = W^i X_i`, :math:`G_i = \mathrm{softmax}(A_i)`,
    :math:`Y_j = \sum_i g_{ij} X_i`, for vectors.

    Parameters
    ----------
    paths : (n, m, c)
        X.
    weights : (m, k, c)
        W, a matrix an input path.
    upstream : (n, k, c)
        The derivatives of the loss with respect to Y.

    Returns
    -------
    (n, m, c) and (m, k, c): the derivatives with respect to X (eq. 3.15) and W (eq. 3.14, summed
    over the images).

    Raises
    ------
    ValueError
        Shapes that do not agree.
    """
    (n, m, c), k = paths.shape, upstream.shape[1]
    if weights.shape != (m, k, c) or upstream.shape != (n, k, c):
        raise ValueError(
            f"weights {tuple(weights.shape)} and upstream {tuple(upstream.shape)} do not fit "
            f"paths {tuple(paths.shape)}"
        )
    gates = torch.einsum("nmc,mkc->nmk", paths, weights).softmax(-1)
    to_gates = torch.einsum("nkc,nmc->nmk", upstream, paths)  # eq. 3.10
    # Eq. 3.12 and 3.13: the Jacobian of softmax is diag(g) - g g', which is symmetric.
    to_scores = gates * (to_gates - (gates * to_gates).sum(-1, keepdim=True))
    to_weights = torch.einsum("nmk,nmc->mkc", to_scores, paths)
    direct = torch.einsum("nmk,nkc->nmc", gates, upstream)
    to_paths = direct + torch.einsum("nmk,mkc->nmc", to_scores, weights)
    return to_paths, to_weights


def check_sizes(**sizes: int) -> None:
    """ValueError, with the name, for a number that is no integer >= 1."""
    for name, size in sizes.items():
        if not (size >= 1 and size % 1 == 0):
            raise ValueError(f"{name} must be an integer >= 1, got {size}")


# --- routers --------------------------------------------------------------------------------------


class GateNetwork(nn.Module):
    """Gates of m paths towards k outputs: pooling, two layers, softmax (eq. 3.3-3.5).

    Each path has a network of its own; all run in one batched product.

    Parameters
    ----------
    inputs, outputs : int >= 1
        m and k.
    width : int >= 1
        Channels c of a path.
    hidden : int >= 1
        Units between the two layers. The thesis does not give it (T5).

    ``forward``: (n, m, c, ...) to gates (n, m, k), each row positive and summing to 1. The scores
    A before the softmax are the output of the submodule ``scores``.

    Raises
    ------
    ValueError
        A number that is no integer >= 1.
    """

    def __init__(self, inputs: int, outputs: int, width: int, hidden: int = 10) -> None:
        super().__init__()
        check_sizes(inputs=inputs, outputs=outputs, width=width, hidden=hidden)
        self.inputs, self.outputs = inputs, outputs
        self.scores = _Scores(inputs, outputs, width, hidden)

    def forward(self, paths: Tensor) -> Tensor:
        return self.scores(paths).softmax(-1)


class _Scores(nn.Module):
    """Pooling and the two layers, with biases: (n, m, c, ...) to A, (n, m, k), eq. 3.3 and 3.4."""

    def __init__(self, inputs: int, outputs: int, width: int, hidden: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(inputs, width, hidden) * (1 / width) ** 0.5)
        self.bias1 = nn.Parameter(torch.zeros(inputs, 1, hidden))
        self.weight2 = nn.Parameter(torch.randn(inputs, hidden, outputs) * (1 / hidden) ** 0.5)
        self.bias2 = nn.Parameter(torch.zeros(inputs, 1, outputs))

    def forward(self, paths: Tensor) -> Tensor:
        pooled = paths.flatten(3).mean(3) if paths.ndim > 3 else paths
        hidden = torch.baddbmm(self.bias1, pooled.transpose(0, 1), self.weight1).relu()
        return torch.baddbmm(self.bias2, hidden, self.weight2).transpose(0, 1)


class CrossConnection(nn.Module):
    """A router that weighs and adds its inputs (algorithm 2): m paths to k of the same shape.

    With one input it is the one-to-many connector. Parameters as in `GateNetwork`;
    ``forward``: a list of m tensors (n, c, ...), or (n, m, c, ...), to (n, k, c, ...). ValueError
    for paths of different shapes, of another width or another number of them.
    """

    def __init__(self, inputs: int, outputs: int, width: int, hidden: int = 10) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        self.gates = GateNetwork(inputs, outputs, width, hidden)

    def forward(self, paths: Sequence[Tensor] | Tensor) -> Tensor:
        paths = _checked(paths, self.inputs, self.width)
        return route(paths, self.gates(paths))


class CrossPrediction(nn.Module):
    r"""A router whose inputs predict its outputs (algorithm 1):
    :math:`Y_j = \mathrm{ReLU}(\sum_i g_{ij} (W_{ij} X_i + b_{ij}))`, eq. 3.1 and 3.6.

    Parameters
    ----------
    inputs, outputs, width, hidden : as in `GateNetwork`
    features : int >= 1
        Channels of an output.
    kernel : int
        Side of the convolution, odd, which keeps the size of the maps; 0 for vectors.
    norm : bool
        Batch normalisation of the sum, an output's own, before the ReLU (T2); for maps only.

    ``forward``: a list of m tensors (n, width, ...), or (n, m, width, ...), to
    (n, k, features, ...). All predictions of one output are one convolution: see `spread`.

    Raises
    ------
    ValueError
        A number that is no integer >= 1, a kernel that is not odd, ``norm`` for vectors; in
        ``forward``, paths of different shapes, of another width or another number of them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        features: int,
        hidden: int = 10,
        kernel: int = 3,
        norm: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(features=features)
        if kernel and not (kernel > 0 and kernel % 2 == 1):
            raise ValueError(f"kernel must be odd, or 0 for vectors, got {kernel}")
        if norm and not kernel:
            raise ValueError("norm is batch normalisation of maps, and kernel=0 is for vectors")
        self.inputs, self.width, self.kernel = inputs, width, kernel
        self.gates = GateNetwork(inputs, outputs, width, hidden)
        sides = (kernel, kernel) if kernel else ()
        # Glorot's start for one prediction, as if it stood alone.
        scale = (2 / ((width + features) * max(1, kernel) ** 2)) ** 0.5
        self.weight = nn.Parameter(torch.randn(outputs, features, inputs * width, *sides) * scale)
        self.bias = nn.Parameter(torch.zeros(inputs, outputs, features))
        channels = outputs * features
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, paths: Sequence[Tensor] | Tensor) -> Tensor:
        paths = _checked(paths, self.inputs, self.width)
        gates = self.gates(paths)
        seen, bias = spread(paths, gates), torch.einsum("nmk,mkf->nkf", gates, self.bias)
        if self.kernel:
            # An output at a time: measured, it is no slower than one grouped convolution.
            maps = [
                F.conv2d(x, weight, padding=self.kernel // 2)
                for x, weight in zip(seen.unbind(1), self.weight.unbind(0), strict=True)
            ]
            summed = torch.stack(maps, 1) + bias[..., None, None]
            return self.norm(summed.flatten(1, 2)).relu().unflatten(1, bias.shape[1:])
        return (torch.einsum("nkc,kfc->nkf", seen, self.weight) + bias).relu()


class CrossStitch(nn.Module):
    """The control with gates that are learned but the same for all images (cross-stitch).

    The matrix ``gates`` (inputs, outputs) is free: nothing makes its rows sum to 1. It starts at
    .9 from a path to itself, the rest being shared by the others, or at 1 from a single input.

    ``inputs, outputs`` : m and k, integers >= 1. ``forward`` as in `CrossConnection`, for paths of
    any width. ValueError as there.

    Source: cross-stitch networks, the thesis's reference 57.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        check_sizes(inputs=inputs, outputs=outputs)
        self.inputs = inputs
        start = torch.full((inputs, outputs), 0.1 / max(1, outputs - 1))
        start.fill_diagonal_(0.9)
        self.gates = nn.Parameter(start if inputs > 1 else torch.ones(1, outputs))

    def forward(self, paths: Sequence[Tensor] | Tensor) -> Tensor:
        return route(_checked(paths, self.inputs), self.gates)


class SqueezeExcitation(nn.Module):
    """Each channel is multiplied by a gate in (0, 1) that all channels' means decide.

    ``width`` channels, ``hidden`` units between the two layers, both integers >= 1 (ValueError);
    ``forward``: (n, c, height, width) to the same.

    Source: squeeze-and-excitation networks, the thesis's reference 63.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, maps: Tensor) -> Tensor:
        gates = self.excite(self.squeeze(maps.mean((2, 3))).relu()).sigmoid()
        return maps * gates[:, :, None, None]


def _check_gates(paths: Tensor, gates: Tensor) -> None:
    if gates.ndim != 3 or gates.shape[:2] != paths.shape[:2]:
        raise ValueError(f"gates {tuple(gates.shape)} do not fit paths {tuple(paths.shape)}")


def _checked(paths: Sequence[Tensor] | Tensor, inputs: int, width: int | None = None) -> Tensor:
    paths = stack(paths)
    fits = paths.ndim >= 3 and paths.shape[1] == inputs and width in (None, paths.shape[2])
    if not fits:
        raise ValueError(
            f"need {inputs} paths (n, {inputs}, {width or 'c'}, ...), got {tuple(paths.shape)}"
        )
    return paths
