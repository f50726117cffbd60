"""The thesis's multi-path networks by name, and the language of plans that they are written in.

`network` builds any network of its Tables 3.2-3.4 that has a plan or paths of its own;
`MultiPathClassifier` trains one on images or vectors.

Parameters in millions beside the printed counts. The thesis's Table 3.1 is lost, so layers, batch
normalisation and the gates' hidden units (10; 40 in the ResNets) are what fits best (T2, T5):

=============  =====  =======   =============  =====  =======   =============  =====  =======
network        ours   printed   network        ours   printed   network        ours   printed
=============  =====  =======   =============  =====  =======   =============  =====  =======
BaseCNN        .552   .55       BaseCNN-2-CC   1.111  1.11      ResNet20       .270   .27
WideCNN        1.673  1.67      BaseCNN-3-CC   1.667  1.67      ResNet20-2-CP  .591   .59
SEBaseCNN      .581   .58       BaseCNN-4-CC   2.222  2.22      ResNet20-3-CP  .921   .92
BaseCNN-2-CP   1.296  1.3       ResNet20-2-CC  .549   .55       ResNet32-2-CC  .938   .94
BaseCNN-3-CP   2.226  2.23      ResNet20-3-CC  .824   .82       ResNet32-3-CC  1.407  1.41
BaseCNN-4-CP   3.344  3.34      ResNet20-4-CC  1.099  1.1       ResNet32-4-CC  1.876  1.88
ResNet18-2-CC  23.39  23.4      ResNet50-2-CC  47.49  47.5
=============  =====  =======   =============  =====  =======   =============  =====  =======

The others cannot be right, or not together with these rows: DeepCNN 2.045 (2.0; the printed All
Ensemble, 4.27, asks for 2.05), SEDeepCNN 2.133 (2.06), Cr-Stitch2 1.104 (1.11), BaseCNN-3 1.656
(1.5, less than three times .55), ResNet20-4-CP 1.274 (1.29).
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentspace.networks import Residual
from latentspace.parallel import ParallelConvolutions, ParallelDense
from latentspace.routing import CrossConnection, CrossPrediction, CrossStitch, check_sizes

__all__ = ["MultiPath", "multipath", "network"]

BASE = "C32 C32 M C64 C64 M C128 C128 M F128 F12"
WIDE = "C64 C64 M C128 C128 M C256 C256 M F128 F12"
DEEP = "C32 C32 M C64 C64 M C128 C128 C128 M C256 C256 C256 M F128 F12"
BASE_CC = "R C32 C32 M R C64 C64 M R C128 C128 M R F128 R F12"
BASE_CP = "P32 C32 M P64 C64 M P128 C128 M F128 P12"
VGG13_CC = "R C32 C32 M R C64 C64 M R C128 C128 M R C256 C256 M R C256 C256 M R F256 R F256"

# --- networks -------------------------------------------------------------------------------------


class _Branches(nn.ModuleList):
    """A module for each path: (n, m, ...) to (n, m, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x[:, i]) for i, branch in enumerate(self)], 1)


class _Pool(nn.Module):
    """The mean of each channel: (n, m, c, height, width) to (n, m, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(3).mean(3)


class MultiPath(nn.Module):
    """Stages of parallel paths; their last outputs are averaged.

    Parameters
    ----------
    stages : sequence of nn.Module
        Each (n, m, ...) to (n, k, ...).
    copies : int >= 1
        Paths that get the input as it is; 1 where the first router widens it.

    ValueError for no path, or from a stage that the input does not fit.
    """

    def __init__(self, stages: Sequence[nn.Module], copies: int = 1) -> None:
        super().__init__()
        check_sizes(copies=copies)
        self.stages, self.copies = nn.ModuleList(stages), copies

    def _start(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, self.copies, *[-1] * (x.ndim - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, n_classes) of images (n, c, height, width) or vectors (n, c)."""
        x = self._start(x)
        for stage in self.stages:
            x = stage(x)
        return x.mean(1)

    def gates(self, x: Tensor) -> list[Tensor]:
        """What each adaptive router decides for ``x``: a list of (n, inputs, outputs)."""
        x, found = self._start(x), []
        for stage in self.stages:
            if isinstance(stage, CrossConnection | CrossPrediction):
                found.append(stage.gates(x))
            x = stage(x)
        return found


def multipath(
    plan: str,
    shape: Sequence[int],
    n_classes: int,
    *,
    paths: int = 1,
    hidden: int = 10,
    norm: bool = True,
    grouped: bool = False,
) -> MultiPath:
    """Build a network from a plan.

    Parameters
    ----------
    plan : str
        Layers, each in every path: "C32" a 3 x 3 convolution to 32 channels (with batch
        normalisation if ``norm``) and ReLU, "M" maximum over 2 x 2, "E" squeeze-and-excitation,
        "F128" dense with ReLU. Routers: "R" cross-connection, "S" cross-stitch, "P64"
        cross-prediction to 64 channels or units. The dense layer of logits is added to it.
    shape : (channels, height, width) of images, or (features,) of vectors
    n_classes : int
    paths : int >= 1
        A first item R, S or P is the one-to-many connector; any other gets copies of the input.
    hidden : int
        Units of the gate networks.
    grouped : as in `ParallelConvolutions`

    Raises
    ------
    ValueError
        An item that is unknown or cannot stand there; images smaller than the pooling; a number
        that is no integer >= 1.
    """
    check_sizes(paths=paths, n_classes=n_classes, hidden=hidden)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width) or (n,), got {tuple(shape)}")
    if not re.fullmatch(r"(([CFP][1-9]\d*|[MERS])(\s+|$))*", plan.strip()):
        raise ValueError(f"no plan: {plan!r}")
    items = plan.split()
    copies = 1 if items and items[0][0] in "RSP" else paths
    (width, *size), count, stages = shape, copies, []
    between: list[str] = []

    def flush() -> None:
        nonlocal width
        if between:
            stages.append(ParallelConvolutions(count, width, between, norm, grouped))
            width = next((int(i[1:]) for i in reversed(between) if i[0] == "C"), width)
            between.clear()

    for item in items:
        kind, units = item[0], int(item[1:] or 0)
        if kind in "CME":
            if len(size) != 2:
                raise ValueError(f"{item} in {plan!r} needs maps, not vectors")
            if kind == "M":
                if min(size) < 2:
                    raise ValueError(f"images of {tuple(shape[1:])} are too small for {plan!r}")
                size = [side // 2 for side in size]
            between.append(item)
            continue
        flush()
        if kind == "F":
            for side in size:
                width *= side
            stages.append(ParallelDense(count, width, units))
            width, size = units, []
        elif kind == "P":
            kernel = 3 if size else 0
            stages.append(
                CrossPrediction(count, paths, width, units, hidden, kernel, norm and kernel > 0)
            )
            width, count = units, paths
        else:
            router = CrossStitch(count, paths)
            if kind == "R":
                router = CrossConnection(count, paths, width, hidden)
            stages.append(router)
            count = paths
    flush()
    for side in size:
        width *= side
    stages.append(ParallelDense(count, width, n_classes, relu=False))
    return MultiPath(stages, copies)


def network(
    name: str, n_classes: int = 10, shape: Sequence[int] = (3, 32, 32), norm: bool = True
) -> MultiPath:
    """Build a network of the thesis's chapter 3 by its name there.

    Parameters
    ----------
    name : str
        BaseCNN, WideCNN, DeepCNN, SEBaseCNN, SEDeepCNN, Cr-Stitch2, BaseCNN-X (no routing),
        BaseCNN-X-CP, BaseCNN-X-CC and Cr-StitchX for any number X of paths, VGG13-X-CC;
        ResNetD, ResNetD-X-CP and ResNetD-X-CC of depth D = 6 k + 2 for images of 32 pixels;
        ResNet18-X-CC and ResNet50-X-CC for those of 224.
    n_classes : int
    shape : (channels, height, width)
    norm : bool
        Batch normalisation of each convolution (T2); the ResNets always have it.

    Raises
    ------
    ValueError
        An unknown name, no path, or images too small for the network's poolings.
    """
    single = {
        "BaseCNN": BASE,
        "WideCNN": WIDE,
        "DeepCNN": DEEP,
        "SEBaseCNN": re.sub(r"(C\d+)", r"\1 E", BASE),
        "SEDeepCNN": re.sub(r"(C\d+)", r"\1 E", DEEP),
    }
    if name in single:
        return multipath(single[name], shape, n_classes, norm=norm)
    several = {
        r"BaseCNN-(\d+)": BASE,
        r"BaseCNN-(\d+)-CP": BASE_CP,
        r"BaseCNN-(\d+)-CC": BASE_CC,
        r"Cr-Stitch(\d+)": BASE_CC.replace("R", "S"),
        r"VGG13-(\d+)-CC": VGG13_CC,
    }
    for pattern, plan in several.items():
        if match := re.fullmatch(pattern, name):
            return multipath(plan, shape, n_classes, paths=int(match[1]), norm=norm)
    if match := re.fullmatch(r"ResNet(18|50)-(\d+)-CC", name):
        if shape[0] != 3:
            raise ValueError(f"{name} takes images of 3 channels, got {shape[0]}")
        return _imagenet_resnet(f"resnet{match[1]}", int(match[2]), n_classes)
    if match := re.fullmatch(r"ResNet(\d+)(?:-(\d+)-(CP|CC))?", name):
        depth, paths = int(match[1]), int(match[2] or 1)
        if depth % 6 == 2 and depth >= 8:
            return _cifar_resnet(depth // 6, paths, match[3], n_classes, shape[0])
    raise ValueError(f"unknown network {name!r}")


def _cifar_resnet(
    blocks: int, paths: int, routing: str | None, n_classes: int, channels: int
) -> MultiPath:
    def branch(inputs: int, outputs: int) -> nn.Sequential:
        rest = (Residual(outputs, outputs, 1) for _ in range(blocks - 1))
        return nn.Sequential(Residual(inputs, outputs, outputs // inputs), *rest)

    widths, hidden = (16, 32, 64), 40
    if routing == "CP":
        stages = [CrossPrediction(1, paths, channels, 16, hidden, norm=True)]
    else:
        stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        stages = [_Branches([nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU())])]
        if routing == "CC":
            stages.append(CrossConnection(1, paths, 16, hidden))
    before = 16
    for width in widths:
        if routing == "CP" and width > 16:
            stages.append(CrossPrediction(paths, paths, before, before, hidden, norm=True))
        stages.append(_Branches(branch(before, width) for _ in range(paths)))
        if routing == "CC":
            stages.append(CrossConnection(paths, paths, width, hidden))
        before = width
    return MultiPath([*stages, _Pool(), ParallelDense(paths, before, n_classes, relu=False)])


def _imagenet_resnet(name: str, paths: int, n_classes: int) -> MultiPath:
    check_sizes(paths=paths)
    from torchvision import models

    parts = [getattr(models, name)(num_classes=n_classes) for _ in range(paths)]
    first = parts[0]
    stages = [_Branches([nn.Sequential(first.conv1, first.bn1, first.relu, first.maxpool)])]
    stages.append(CrossConnection(1, paths, 64))
    width = first.fc.in_features // 8
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        stages.append(_Branches(getattr(part, layer) for part in parts))
        stages.append(CrossConnection(paths, paths, width))
        width *= 2
    dense = ParallelDense(paths, first.fc.in_features, n_classes, relu=False)
    return MultiPath([*stages, _Pool(), dense])
