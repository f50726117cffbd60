"""Image classifiers whose features can be read: the networks in front of a latent space."""

import torch
import torch.nn.functional as F
from torch import nn

NAMES = ("cnn", "resnet8", "resnet8s", "resnet18", "vit_b_16")


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

    def __init__(self, body, width, n_classes, image_size=None, channels=None):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, n_classes)
        self.image_size, self.channels = image_size, channels

    def features(self, x):
        """Features (n, width) of images (n, channels, height, width) with values in [0, 1]."""
        x = (x - 0.5) / 0.25
        if self.channels is not None and x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        if self.image_size is not None:
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return self.body(x)

    def forward(self, x):
        """Logits (n, n_classes)."""
        return self.head(self.features(x))


def classifier(name, channels, n_classes, pretrained=False):
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
    if name == "cnn":
        body, width, size = _cnn(channels), 64, None
    elif name.startswith("resnet8"):
        body, width, size = _resnet8(channels, 2 if name == "resnet8s" else 1), 64, None
    else:
        body, width, size = _torchvision(name, pretrained)
    if size is None and pretrained:
        raise ValueError(f"{name!r} has no pretrained weights")
    return Classifier(body, width, n_classes, size, None if size is None else 3)


def _cnn(channels):
    return nn.Sequential(
        *_convolution(channels, 16, 2), nn.ReLU(),
        *_convolution(16, 32, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(),
    )  # fmt: skip


def _resnet8(channels, stride):
    return nn.Sequential(
        *_convolution(channels, 16, stride), nn.ReLU(),
        _Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, outputs, stride), nn.ReLU(), *_convolution(outputs, outputs, 1)
        )
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x):
        # The parameter-free shortcut of the CIFAR ResNets: subsample, and fill up with zeros.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return torch.relu(shortcut + self.branch(x))


def _convolution(inputs, outputs, stride):
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)


def _torchvision(name, pretrained):
    from torchvision import models

    model = getattr(models, name)(weights="DEFAULT" if pretrained else None)
    if name == "resnet18":
        width, model.fc = model.fc.in_features, nn.Identity()
    else:
        width, model.heads = model.heads.head.in_features, nn.Identity()
    return model, width, 224


def random_shift(images, generator, by=2, flip=False):
    """Shift each image by up to ``by`` pixels, zeros coming in; mirror half of them if ``flip``.

    ``images`` (n, channels, height, width) on the generator's device; returns the same shape.
    """
    n, _, height, width = images.shape
    device = images.device
    down, right = torch.randint(0, 2 * by + 1, (2, n, 1), generator=generator, device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (by,) * 4)
    which = torch.arange(n, device=device)[:, None, None]
    # Advanced indices around the channel axis put it last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
