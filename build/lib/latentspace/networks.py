"""Networks that more than one method uses: perceptrons, convolutional plans, classifiers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from latentspace.images import sobel
from latentspace.linear import Linear

__all__ = ["NAMES", "Autoencoder", "Classifier", "Residual", "classifier", "convnet", "mlp"]

NAMES = ("cnn", "resnet8", "resnet8s", "resnet18", "vit_b_16")


# --- from vectors or images to scores -------------------------------------------------------------


def mlp(n_features: int, n_clusters: int, hidden: Sequence[int] = (32, 32)) -> nn.Sequential:
    """Fully connected network with ReLU from vectors to scores (thesis 4.5.1: 2-32-32-10)."""
    widths = [n_features, *hidden]
    layers = [
        layer
        for i in range(len(hidden))
        for layer in (Linear(widths[i], widths[i + 1]), nn.ReLU())
    ]
    return nn.Sequential(*layers, Linear(widths[-1], n_clusters))


def convnet(plan: str, size: Sequence[int], n_clusters: int) -> nn.Sequential:
    """Convolutional network from images to scores, with Sobel derivatives as its input.

    Parameters
    ----------
    plan : str
        In the notation of the thesis's Table 4.2: ``"C64 M C128 M C256 F32"``, for MNIST, is a
        convolution to 64 planes (3 x 3, same size, ReLU), maximum over 2 x 2, ..., a dense layer
        of 32 with ReLU. The dense layer of scores is added to it.
    size : (height, width) of the images, which have 1 or 3 channels
    n_clusters : int
    """
    layers: list[nn.Module] = [_Sobel()]
    planes, flat = 2, False
    for item in plan.split():
        kind, width = item[0], int(item[1:] or 0)
        if kind == "C" and width and not flat:
            layers += [nn.Conv2d(planes, width, 3, padding=1), nn.ReLU()]
            planes = width
        elif kind == "M" and not flat and min(size) >= 2:
            layers += [nn.MaxPool2d(2)]
            size = [side // 2 for side in size]
        elif kind == "F" and width:
            inputs = planes if flat else planes * size[0] * size[1]
            layers += [] if flat else [nn.Flatten()]
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            planes, flat = width, True
        else:
            raise ValueError(f"{item!r} in the plan {plan!r} cannot be built for this image size")
    inputs = planes if flat else planes * size[0] * size[1]
    layers += [] if flat else [nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(inputs, n_clusters))


class _Sobel(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return sobel(images)


# --- autoencoder ----------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Table 1 of DeepKDE: blocks Linear-BatchNorm-PReLU, a Linear layer into and out of the latent
    space; the decoder mirrors the encoder and ends in the input's width (K10, K11).

    Parameters
    ----------
    n_features, latent_dim : int
        Widths D and d.
    hidden : sequence of int
        Widths of the encoder's blocks, (8, 32, 8) for the moons.
    """

    def __init__(self, n_features: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = _stack([n_features, *hidden], latent_dim)
        self.decoder = _stack([latent_dim, *reversed(hidden)], n_features)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent points (n, d) and reconstructions (n, D) of ``x`` (n, D)."""
        latent = self.encoder(x)
        return latent, self.decoder(latent)


def _stack(widths: Sequence[int], last: int) -> nn.Sequential:
    blocks = [
        nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.PReLU())
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    return nn.Sequential(*blocks, nn.Linear(widths[-1], last))


# --- classifiers whose features can be read -------------------------------------------------------


class Classifier(nn.Module):
    """A body that turns images into features, and a linear head on them.

    Parameters
    ----------
    body : nn.Module
        Images (n, channels, size, size) to features (n, width).
    width, n_classes : int
    image_size : int, optional
        Images are resized to this size; kept as they are by default.
    channels : int, optional
        Grey images are repeated to as many channels; kept by default.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        n_classes: int,
        image_size: int | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, n_classes)
        self.image_size, self.channels = image_size, channels

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, width) of images (n, channels, height, width) with values in [0, 1]."""
        x = (x - 0.5) / 0.25
        if self.channels is not None and x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, n_classes)."""
        return self.head(self.features(x))


def classifier(
    name: str, channels: int, n_classes: int, pretrained: bool = False
) -> Classifier:
    """Build a classifier by name.

    Parameters
    ----------
    name : {"cnn", "resnet8", "resnet8s", "resnet18", "vit_b_16"}
        ``cnn``: two strided convolutions, 64 features, for digits of 28 pixels. ``resnet8``: three
        residual blocks of 16, 32 and 64 filters, 64 features, for images of 32 pixels.
        ``resnet8s``: the same behind a first convolution of stride 2, at a quarter of the cost.
        ``resnet18`` (512 features) and ``vit_b_16`` (768) are torchvision's, at 224 pixels.
    channels, n_classes : int
    pretrained : bool
        torchvision's ImageNet weights, which are downloaded.

    Raises
    ------
    ValueError
        Unknown name, or pretrained weights asked for where there are none.
    """
    if name not in NAMES:
        raise ValueError(f"unknown backbone {name!r}; there are {', '.join(NAMES)}")
    body: nn.Module
    size: int | None = None
    if name == "cnn":
        body, width = _cnn(channels), 64
    elif name.startswith("resnet8"):
        body, width = _resnet8(channels, 2 if name == "resnet8s" else 1), 64
    else:
        body, width, size = _torchvision(name, pretrained)
    if size is None and pretrained:
        raise ValueError(f"{name!r} has no pretrained weights")
    return Classifier(body, width, n_classes, size, None if size is None else 3)


def _cnn(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels, 16, 2), nn.ReLU(),
        *_convolution(16, 32, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(),
    )  # fmt: skip


def _resnet8(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(channels, 16, stride), nn.ReLU(),
        Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Residual(nn.Module):
    """The block of the CIFAR ResNets: two 3 x 3 convolutions beside a shortcut without parameters.

    ``inputs`` <= ``outputs`` channels, the first convolution with ``stride``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, outputs, stride), nn.ReLU(), *_convolution(outputs, outputs, 1)
        )
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The parameter-free shortcut of the CIFAR ResNets: subsample, and fill up with zeros.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return torch.relu(shortcut + self.branch(x))


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)


def _torchvision(name: str, pretrained: bool) -> tuple[nn.Module, int, int]:
    from torchvision import models

    model = getattr(models, name)(weights="DEFAULT" if pretrained else None)
    if name == "resnet18":
        width, model.fc = model.fc.in_features, nn.Identity()
    else:
        width, model.heads = model.heads.head.in_features, nn.Identity()
    return model, width, 224
