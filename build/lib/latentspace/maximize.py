"""Inputs that maximise a unit of a network: gradient ascent on the pixels.

Any scalar of a network can be asked for: `unit_score` reads an output neuron or a filter, and a
function of one's own may read anything else, such as a gate. A network's gradient is full of fine
patterns that no photograph has, and what `maximize` offers against them is small: moving the image
about (jitter), a price on differences of neighbours (total variation), blur, and steps in the
colours that photographs have (colour decorrelation).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["colour_covariance", "gaussian_blur", "maximize", "total_variation", "unit_score"]


def maximize(
    score: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    *,
    steps: int = 100,
    step_size: float = 1.0,
    radius: float = math.inf,
    limits: Sequence[float] = (0.0, 1.0),
    jitter: int = 0,
    smoothness: float = 0.0,
    blur: float = 0.0,
    colours: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Climb from ``start`` to images with a high score; each image climbs for itself.

    A step goes ``step_size`` along the gradient, whatever its length, and then back into the
    constraints. So the fixed point for a linear unit is its weight's direction (Adam's would be
    the signs of the weight).

    Parameters
    ----------
    score : callable, (n, c, h, w) -> (n,)
        Its row i may depend on image i only; see `unit_score`.
    start : tensor (n, c, h, w), floating point
        Often mid-grey with a little noise. ``start[i]`` is also the centre of ``radius``.
    steps : int
    step_size : float > 0
        Euclidean length of a step.
    radius : float > 0
        Largest Euclidean distance from ``start``.
    limits : (float, float)
        Smallest and largest value of a pixel.
    jitter : int >= 0
        Every step scores the image rolled by up to as many pixels in each direction.
    smoothness : float >= 0
        Weight of `total_variation`, which is subtracted from the score.
    blur : float >= 0
        Standard deviation in pixels of a Gaussian blur of each step's gradient.
    colours : tensor (c, c), optional
        `colour_covariance` of natural images. Steps are then steepest in decorrelated colours:
        a step's direction is the covariance times the gradient.
    generator : torch.Generator, optional
        Draws the jitter, on any device; the same state gives the same images.

    Returns
    -------
    tensor (n, c, h, w). Where the gradient vanishes, as for a dead unit, the image stays.

    Raises
    ------
    ValueError
        A shape, dtype or number out of range, NaN in ``start``, or a score that is not (n,) or not
        finite.
    """
    _check(start, steps, step_size, radius, limits, jitter, smoothness, blur, colours)
    start = start.detach()
    x = start.clone()
    where = "cpu" if generator is None else generator.device
    for _ in range(steps):
        x.requires_grad_()
        draw = torch.randint(-jitter, jitter + 1, (2,), generator=generator, device=where)
        value = score(torch.roll(x, draw.tolist(), (2, 3)))
        if value.shape != x.shape[:1] or not torch.isfinite(value).all():
            raise ValueError(f"score must be {len(x)} finite values, got {value}")
        value = value - smoothness * total_variation(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        if colours is not None:
            gradient = torch.einsum("dc,nchw->ndhw", colours, gradient)
        gradient = gaussian_blur(gradient, blur)
        x = x.detach() + step_size * gradient / _norm(gradient)
        x = start + (x - start) * (radius / _norm(x - start)).clamp(max=1)
        x = x.clamp(*limits)
    return x


def unit_score(
    model: nn.Module, units: Sequence[int] | Sequence[tuple[int, int]], layer: str = ""
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that gives image i the activation of unit ``units[i]``.

    Parameters
    ----------
    model : nn.Module
        In the mode that it is to be read in, as a rule evaluation.
    units : sequence of int, or of pairs of them
        One an image: columns of the layer's output (n, k), or channels of (n, k, h, w), read at the
        central position (h // 2, w // 2). Their mean over the positions would not do: of a linear
        layer on derivatives of an image it is a sum over the border. Of an output (n, m, k), pairs
        (input path, output path): so the scores of gates, before the softmax, which are the layer
        "....gates.scores" of a router (`gates.gate_score` reads the gates' odds instead).
    layer : str
        Name of a submodule as in ``model.named_modules()``; "" is the model itself.

    Raises
    ------
    ValueError
        No such layer; at the call, another number of images or a unit that does not exist.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"no layer {layer!r}; there are {', '.join(filter(None, modules))}")
    chosen = torch.as_tensor(units).cpu()

    def score(images: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        handle = modules[layer].register_forward_hook(lambda *call: found.append(call[-1]))
        try:
            model(images)
        finally:
            handle.remove()
        activation = found[-1]
        if activation.ndim == 4:
            activation = activation[:, :, activation.shape[2] // 2, activation.shape[3] // 2]
        n, *sizes = activation.shape
        if len(chosen) != len(images) or n != len(images):
            raise ValueError(f"{len(images)} images for {len(chosen)} units and {n} activations")
        columns = chosen.reshape(n, -1)
        if columns.shape[1] != len(sizes):
            raise ValueError(f"a unit of this layer has {len(sizes)} numbers, got {units[0]}")
        if (columns < 0).any() or (columns >= torch.tensor(sizes)).any():
            last = ", ".join(str(size - 1) for size in sizes)
            raise ValueError(f"units must lie in 0 .. {last}, got {chosen.tolist()}")
        return activation[torch.arange(n), *columns.T]

    return score


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels, down and across: (n, c, h, w) -> (n,)."""
    down = images.diff(dim=2).abs().flatten(1)
    across = images.diff(dim=3).abs().flatten(1)
    return (down.sum(1) + across.sum(1)) / max(1, down.shape[1] + across.shape[1])


def gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur (n, c, h, w) by a Gaussian of ``sigma`` pixels, cut at 4 sigma; borders are extended."""
    if sigma == 0:
        return images
    reach = math.ceil(4 * sigma)
    distance = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.softmax(-(distance**2) / (2 * sigma**2), 0)
    n, c, h, w = images.shape
    rows = F.pad(images.reshape(n * c, 1, h, w), (reach,) * 4, mode="replicate")
    rows = F.conv2d(F.conv2d(rows, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return rows.reshape(n, c, h, w)


def colour_covariance(images: torch.Tensor) -> torch.Tensor:
    """Covariance (c, c) of the channels over all pixels of (n, c, h, w), scaled to trace c.

    Raises ValueError on NaN, another shape, or images of one colour.
    """
    _check_images(images, "images")
    pixels = images.transpose(0, 1).flatten(1)
    covariance = torch.cov(pixels).reshape(len(pixels), len(pixels))
    if not covariance.trace() > 0:
        raise ValueError("images of one colour have no colour covariance")
    return covariance * (len(pixels) / covariance.trace())


def _norm(images: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each image, shaped to divide by; at least the smallest normal number."""
    norm = images.flatten(1).norm(dim=1).clamp(min=torch.finfo(images.dtype).tiny)
    return norm.view(-1, 1, 1, 1)


def _check_images(images: torch.Tensor, name: str) -> None:
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(
            f"{name} must be floating-point images (n, c, h, w), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} hold NaN or infinity")


def _check(start, steps, step_size, radius, limits, jitter, smoothness, blur, colours) -> None:
    _check_images(start, "start")
    c = start.shape[1]
    rules = {
        f"steps must be an integer >= 0, got {steps}": steps >= 0 and steps == int(steps),
        f"step_size must be positive and finite, got {step_size}": 0 < step_size < math.inf,
        f"radius must be positive, got {radius}": radius > 0,
        f"limits must be two rising numbers, got {limits}": limits[0] < limits[1],
        f"jitter must be an integer >= 0, got {jitter}": jitter >= 0 and jitter == int(jitter),
        f"smoothness must be >= 0, got {smoothness}": smoothness >= 0,
        f"blur must be >= 0, got {blur}": 0 <= blur < math.inf,
        f"colours must be a ({c}, {c}) matrix": colours is None or colours.shape == (c, c),
    }
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)
