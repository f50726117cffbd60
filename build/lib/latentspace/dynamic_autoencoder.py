"""A convolutional autoencoder whose depth and width follow the size of the image (thesis 3.4).

Each block halves the side, from the image down to 2 x 2. The first half of the blocks are
*general*, two convolutions of 3 x 3, which together see 5 x 5 pixels; the rest are *specific*, one
convolution. BatchNorm and Mish (eq. 3.11) follow each. The decoder mirrors the encoder. The thesis
says no more. That the last convolution of a block has the stride 2, that the decoder doubles the
side by a transposed convolution of 4 x 4, and that each block has twice the filters of the one
before is our reading.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "DynamicAutoencoder", "Plan", "decoder_blocks", "encoder_blocks", "padded_size", "padding_of",
    "plan",
]  # fmt: skip


class Plan(NamedTuple):
    """The blocks of an encoder: how many are general, how many specific, and their filters."""

    general: int
    specific: int
    filters: tuple[int, ...]


def padded_size(height: int, width: int) -> int:
    """The side of the square that the images are padded to: a power of two, at least 4."""
    return max(4, 2 ** (max(height, width) - 1).bit_length())


def plan(size: int, filters: int | None = None) -> Plan:
    """The blocks for square images of ``size`` pixels, a power of two from 4 on (eq. 3.7 to 3.9).

    There are log2(size) - 1 of them, so that the last one ends with 2 x 2 pixels. The first has
    ``filters`` filters, as many as the image has rows by default, and each has twice as many as the
    one before. ValueError for another size or no filters.
    """
    if size < 4 or size & (size - 1):
        raise ValueError(f"the side must be a power of two from 4 on, got {size}")
    first = size if filters is None else filters
    if first < 1:
        raise ValueError(f"filters must be 1 or more, got {filters}")
    blocks = size.bit_length() - 2
    general = -(-blocks // 2)
    return Plan(general, blocks - general, tuple(first * 2**b for b in range(blocks)))


def padding_of(height: int, width: int) -> tuple[int, int, int, int]:
    """Zeros to the left, right, top and bottom that make the square of `padded_size`."""
    side = padded_size(height, width)
    up, left = (side - height) // 2, (side - width) // 2
    return left, side - width - left, up, side - height - up


def encoder_blocks(
    channels: int, side: int, filters: int | None = None, copies: int = 1
) -> nn.Sequential:
    """The blocks from square images to 2 x 2 pixels, see `plan`.

    With ``copies``, so many encoders work side by side and never meet: copy k has its own weights,
    sees channels ``k channels`` to ``(k + 1) channels - 1`` and gives its own planes, in order.
    """
    general, _, planes = plan(side, filters)
    steps = zip((channels, *planes), planes, strict=False)
    return nn.Sequential(
        *(_down(before, after, 1 + (block < general), copies)
          for block, (before, after) in enumerate(steps))
    )  # fmt: skip


def decoder_blocks(side: int, filters: int | None = None, copies: int = 1) -> nn.Sequential:
    """The blocks from 2 x 2 pixels to the side, with as many planes as the encoder's first block.

    A convolution that paints has to follow. ``copies`` as in `encoder_blocks`.
    """
    general, _, planes = plan(side, filters)
    steps = list(zip((planes[0], *planes), planes, strict=False))
    back = [
        _up(before, after, 1 + (block < general), copies)
        for block, (after, before) in reversed(list(enumerate(steps)))
    ]
    return nn.Sequential(*back)


class DynamicAutoencoder(nn.Module):
    """Images to codes and back; with ``stochastic``, to normal distributions of codes.

    Images whose sides are no powers of two are padded with zeros around them, and what it paints is
    cut back to their shape.

    Parameters
    ----------
    shape : (channels, height, width) of the images
    latent_dim : int
        Length d of a code.
    stochastic : bool
        Whether an image's code is a normal distribution with variances of its own.
    filters : int, optional
        Of the first block, see `plan`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        stochastic: bool = True,
        filters: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if latent_dim < 1 or min(shape) < 1:
            raise ValueError(f"need positive sizes, got {tuple(shape)} and {latent_dim}")
        side = padded_size(height, width)
        self.shape, self.latent_dim = tuple(shape), latent_dim
        self.padding = padding_of(height, width)
        planes = plan(side, filters).filters
        down, back = encoder_blocks(channels, side, filters), decoder_blocks(side, filters)
        flat = 4 * planes[-1]
        self.body = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(flat, latent_dim)
        self.log_variance = nn.Linear(flat, latent_dim) if stochastic else None
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, flat), nn.Unflatten(1, (planes[-1], 2, 2)), *back,
            nn.Conv2d(planes[0], channels, 3, padding=1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means (n, d) and log variances (n, d) of the codes of images (n, channels, h, w).

        A network that is not stochastic has no variances: None.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"need images (n, {self.shape}), got {tuple(images.shape)}")
        hidden = self.body(F.pad(images, self.padding))
        return self.mean(hidden), None if self.log_variance is None else self.log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """What is painted from codes (n, d), as (n, channels, h, w): unbounded.

        They are grey values to a Gaussian likelihood, log odds to a Bernoulli one.
        """
        left, _, up, _ = self.padding
        return self.decoder(z)[:, :, up : up + self.shape[1], left : left + self.shape[2]]

    def forward(self, images: Tensor) -> Tensor:
        """The codes' means (n, d)."""
        return self.encode(images)[0]


def _down(inputs: int, outputs: int, convolutions: int, copies: int) -> nn.Sequential:
    layers = []
    for last in [False] * (convolutions - 1) + [True]:
        layers += _convolution(inputs, outputs, 2 if last else 1, copies)
        inputs = outputs
    return nn.Sequential(*layers)


def _up(inputs: int, outputs: int, convolutions: int, copies: int) -> nn.Sequential:
    layers = []
    for _ in range(convolutions - 1):
        layers += _convolution(inputs, inputs, 1, copies)
    doubling = nn.ConvTranspose2d(
        copies * inputs, copies * outputs, 4, 2, 1, bias=False, groups=copies
    )
    return nn.Sequential(*layers, doubling, nn.BatchNorm2d(copies * outputs), nn.Mish())


def _convolution(inputs: int, outputs: int, stride: int, copies: int) -> list[nn.Module]:
    convolution = nn.Conv2d(
        copies * inputs, copies * outputs, 3, stride, 1, bias=False, groups=copies
    )
    return [convolution, nn.BatchNorm2d(copies * outputs), nn.Mish()]
