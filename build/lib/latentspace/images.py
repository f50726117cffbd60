"""Images as tensors: from arrays, their derivatives, and random transformations of batches.

Every image of a batch gets its own draw from one torch.Generator. `random_affine` rotates, scales,
crops and shifts in one interpolation, `random_light` changes brightness and contrast: small changes
of a whole image. `random_crop` and `colour_jitter` are the stronger ones of contrastive learning.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

__all__ = [
    "GREY",
    "affine_matrices",
    "colour_jitter",
    "has_images",
    "image_tensor",
    "random_affine",
    "random_crop",
    "random_light",
    "random_shift",
    "sobel",
    "warp",
]

GREY = (0.299, 0.587, 0.114)  # brightness of red, green and blue (ITU-R BT.601)


# --- from arrays, and derivatives -----------------------------------------------------------------


def has_images(X: ArrayLike) -> bool:
    """Whether ``X`` has the axes of images, three or four, and not those of vectors."""
    # Not np.ndim, which array-likes of other libraries may refuse.
    return (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) in (3, 4)


def image_tensor(
    X: ArrayLike, name: str = "X", shape: Sequence[int] | None = None
) -> torch.Tensor:
    """Images (n, H, W), (n, H, W, 1) or (n, H, W, 3), uint8 or floats in [0, 1], as a float tensor.

    What every estimator takes for images, in any byte order and with any strides. Returns
    (n, channels, H, W) in [0, 1]; raises ValueError for anything else, NaN included, and for images
    that are not of ``shape`` (channels, H, W), where an estimator gives that of the images it was
    fitted on.
    """
    X = np.asarray(X)
    if X.ndim == 3:
        X = X[..., None]
    if X.ndim != 4 or X.shape[3] not in (1, 3) or X.size == 0:
        raise ValueError(f"{name} must be images (n, H, W), (n, H, W, 1 or 3), got {X.shape}")
    found = (X.shape[3], *X.shape[1:3])
    if shape is not None and found != tuple(shape):
        raise ValueError(
            f"{name} has images of {found} (channels, height, width), "
            f"those of fit were {tuple(shape)}"
        )
    if X.dtype.kind == "f":
        if not (X.min() >= 0 and X.max() <= 1):  # neither holds for NaN
            raise ValueError(f"{name} must hold finite values in [0, 1], or bytes")
        x = torch.from_numpy(X.astype(np.float32, order="C"))
    elif X.dtype == np.uint8:
        x = torch.from_numpy(X.astype(np.uint8, order="C")).float() / 255
    else:
        raise ValueError(f"{name} must be uint8 or floats, got {X.dtype}")
    return x.permute(0, 3, 1, 2).contiguous()


def sobel(images: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical Sobel derivatives of the grey image (thesis 4.5.2).

    Parameters
    ----------
    images : tensor (n, C, H, W), C = 1 or 3

    Returns
    -------
    tensor (n, 2, H, W): the derivative to the right, and downwards. A step from 0 to 1 is 4 high.
    Pixels beyond the border repeat those on it, so that the border itself is no edge.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError(
            f"need float images (n, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if images.shape[1] == 3:
        grey = images.new_tensor(GREY)[:, None, None]
        images = (images * grey).sum(1, keepdim=True)
    right = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([right, right.T])[:, None]
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernels)


# --- random transformations -----------------------------------------------------------------------


def random_affine(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 0.0,
    scale: Sequence[float] = (1.0, 1.0),
    shift: float = 0.0,
    border: str = "zeros",
) -> torch.Tensor:
    """Turn, scale and shift each image by a draw of its own, about its centre.

    Parameters
    ----------
    images : tensor (n, c, h, w), floating point
    generator : torch.Generator on the images' device
    degrees : float >= 0
        Angles are uniform between minus and plus this.
    scale : (float, float)
        Factors are uniform in logarithm between the two; above 1 the image is enlarged and its
        border cut off, so with a shift this is a random crop.
    shift : float >= 0
        Each direction is uniform between minus and plus this share of the image's side.
    border : {"zeros", "border", "reflection"}
        What lies outside the image.

    Returns
    -------
    tensor (n, c, h, w), by bilinear interpolation.

    Raises
    ------
    ValueError
        Images of another shape or dtype, or a number out of range.
    """
    if not (degrees >= 0 and shift >= 0 and 0 < scale[0] <= scale[1] < math.inf):
        raise ValueError(
            "degrees and shift must be >= 0 and scale two positive rising numbers, "
            f"got {degrees}, {shift} and {scale}"
        )
    _check_images(images)
    draw = torch.rand(4, len(images), generator=generator, device=images.device)
    draw = (2 * draw - 1).to(images.dtype)
    low, high = math.log(scale[0]), math.log(scale[1])
    size = torch.exp((low + high) / 2 + (high - low) / 2 * draw[1])
    matrices = affine_matrices(math.radians(degrees) * draw[0], size, shift * draw[2:].T)
    return warp(images, matrices, border)


def affine_matrices(
    angles: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor
) -> torch.Tensor:
    """The (n, 2, 3) matrices that lead from a place in the new image back to one in the old.

    Angles (n,) in radians turn the picture anticlockwise as it is seen, scales (n,) enlarge it,
    and shifts (n, 2) move it right and down by a share of its side. In the coordinates of `warp`
    both sides of an image run from -1 to 1, so the images should be square.
    """
    cos, sin = angles.cos() / scales, angles.sin() / scales
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    with _full_precision(turn):
        return torch.cat([turn, turn @ (-2 * shifts[:, :, None])], 2)


def warp(images: torch.Tensor, matrices: torch.Tensor, border: str = "zeros") -> torch.Tensor:
    """Sample images (n, c, h, w) at the places that matrices (n, 2, 3) give, bilinearly."""
    _check_images(images)
    with _full_precision(images):
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, "bilinear", border, align_corners=False)


def random_light(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
) -> torch.Tensor:
    """Change brightness and contrast of each image; the result is clipped to [0, 1].

    Parameters
    ----------
    images : tensor (n, c, h, w), floating point in [0, 1]
    generator : torch.Generator on the images' device
    brightness : float >= 0
        What is added is uniform between minus and plus this.
    contrast : float in [0, 1)
        The factor by which differences from the image's mean grow is uniform in logarithm between
        ``1 - contrast`` and its inverse.
    """
    if not (brightness >= 0 and 0 <= contrast < 1):
        raise ValueError(
            f"brightness must be >= 0 and contrast in [0, 1), got {brightness} and {contrast}"
        )
    _check_images(images)
    draw = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    draw = (2 * draw - 1).to(images.dtype)
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = torch.exp(-math.log1p(-contrast) * draw[1])
    return (mean + factor * (images - mean) + brightness * draw[0]).clamp(0, 1)


def random_crop(
    images: torch.Tensor,
    size: int,
    area: Sequence[float],
    generator: torch.Generator,
    flip: bool = True,
) -> torch.Tensor:
    """Cut a random rectangle out of each image and resize it to ``size`` pixels square.

    Parameters
    ----------
    images : Tensor (n, channels, height, width)
    size : int
    area : (float, float)
        Least and largest share of the image's area, 0 < least <= largest <= 1. The ratio of the
        sides is drawn between 3/4 and 4/3, and a side is never longer than the image's.
    generator : torch.Generator on the images' device
    flip : bool
        Mirror half of the crops.

    Returns
    -------
    Tensor (n, channels, size, size), by bilinear interpolation.
    """
    least, largest = area
    if not 0 < least <= largest <= 1:
        raise ValueError(f"area must satisfy 0 < least <= largest <= 1, got {area}")
    n = len(images)
    u = torch.rand(5, n, generator=generator, device=images.device)
    share = least + (largest - least) * u[0]
    ratio = torch.exp((2 * u[1] - 1) * math.log(4 / 3))
    # In the units of affine_grid the image is [-1, 1] x [-1, 1]: a side is its half width.
    wide, high = ((share * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    right, down = (1 - wide) * (2 * u[2] - 1), (1 - high) * (2 * u[3] - 1)
    mirrored = torch.where((u[4] < 0.5) & flip, -wide, wide)
    zero = torch.zeros_like(wide)
    theta = torch.stack([mirrored, zero, right, zero, high, down], 1).view(n, 2, 3)
    with _full_precision(images):
        grid = F.affine_grid(theta, [n, images.shape[1], size, size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def colour_jitter(
    images: torch.Tensor, generator: torch.Generator, strength: float = 0.4, grey: float = 0.2
) -> torch.Tensor:
    """Change each image's brightness, contrast and saturation at random; make some grey.

    Parameters
    ----------
    images : Tensor (n, 1 or 3, height, width) in [0, 1]
    generator : torch.Generator on the images' device
    strength : float in [0, 1]
        Factors are drawn between 1 - strength and 1 + strength.
    grey : float in [0, 1]
        Share of colour images that lose their colour.
    """
    n, device = len(images), images.device
    factors = 1 + strength * (2 * torch.rand(3, n, generator=generator, device=device) - 1)
    brightness, contrast, saturation = factors[..., None, None, None]
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    if images.shape[1] == 3:
        colourless = torch.rand(n, generator=generator, device=device) < grey
        saturation = torch.where(colourless[:, None, None, None], 0, saturation)
        luminance = images.new_tensor(GREY)[:, None, None]
        luminance = (images * luminance).sum(1, keepdim=True)
        images = luminance + (images - luminance) * saturation
    return images.clamp(0, 1)


def random_shift(
    images: torch.Tensor, generator: torch.Generator, by: int = 2, flip: bool = False
) -> torch.Tensor:
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


def _full_precision(images: torch.Tensor) -> torch.autocast:
    """Autocast would round places in an image to 8 bits."""
    return torch.autocast(images.device.type, enabled=False)


def _check_images(images: torch.Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point (n, c, h, w), got {images.dtype} {tuple(images.shape)}"
        )
