"""Five autoencoders of the thesis (4.2) as one training: plain, variational, Wasserstein.

All minimise an error of reconstruction plus a penalty on the codes; `KINDS` says which. They share
the network of `latentspace.dynamic_autoencoder` and the terms of `latentspace.variational`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from latentspace.dynamic_autoencoder import DynamicAutoencoder
from latentspace.estimators import initial_weights
from latentspace.images import random_affine
from latentspace.training import batches, fit
from latentspace.variational import (
    bernoulli_error,
    draw,
    gaussian_error,
    kl_to_standard,
    mmd,
    warm_up,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "KINDS", "Kind", "gentle_views", "mirrored_views", "objective", "paint", "train_autoencoder",
]  # fmt: skip


class Kind(NamedTuple):
    """What distinguishes one autoencoder from the others."""

    stochastic: bool  # is the code drawn?
    penalty: str  # "none", "divergence" of each code, "discrepancy" of all of them
    weight: float  # of the penalty


KINDS = {
    "AE": Kind(False, "none", 0.0),
    "VAE": Kind(True, "divergence", 1.0),
    "beta-VAE": Kind(True, "divergence", 4.0),
    "deterministic WAE": Kind(False, "discrepancy", 10.0),
    "random WAE": Kind(True, "discrepancy", 10.0),
}
"""By name. beta = 4 and lambda = 10 are those of Higgins and Tolstikhin; the thesis gives none."""

_ERRORS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": bernoulli_error,
    "gaussian": gaussian_error,
}


def gentle_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """The thesis's augmentation of digits (4.2): turned by up to 10 degrees, scaled by up to a
    tenth and shifted by up to a tenth of the side; images (n, c, h, w).
    """
    return random_affine(images, generator, degrees=10, scale=(0.9, 1 / 0.9), shift=0.1)


def mirrored_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """The thesis's augmentation of objects and photographs (4.2): `gentle_views`, and each image is
    mirrored, left to right, with the probability one half; images (n, c, h, w).
    """
    seen = gentle_views(images, generator)
    mirrored = torch.rand(len(seen), 1, 1, 1, generator=generator, device=seen.device) < 0.5
    return torch.where(mirrored, seen.flip(3), seen)


def objective(
    network: DynamicAutoencoder,
    images: Tensor,
    target: Tensor,
    generator: torch.Generator | None = None,
    *,
    kind: Kind,
    likelihood: str = "bernoulli",
    warmth: float = 1.0,
    l1: float = 1e-4,
) -> dict[str, Tensor]:
    """Loss of a batch and its parts, scalars: ``loss``, ``error``, ``penalty``.

    ``images`` and ``target`` (n, c, h, w): what is encoded and what is to be painted. The error is
    the mean over images of the sum over pixels; the loss is the error, plus the penalty times the
    kind's weight times ``warmth``, plus ``l1`` times the mean over images of the sum of absolute
    means (thesis 4.4.1).
    """
    mean, log_variance = network.encode(images)
    z = mean
    if log_variance is not None:
        z = draw(mean, log_variance, _normal(mean, generator))
    error = _ERRORS[likelihood](network.decode(z), target).mean()
    penalty = error.new_zeros(())
    if kind.penalty == "divergence":
        penalty = kl_to_standard(mean, log_variance).mean()
    elif kind.penalty == "discrepancy":
        penalty = mmd(z, _normal(mean, generator))
    loss = error + warmth * kind.weight * penalty + l1 * mean.abs().sum(1).mean()
    return {"loss": loss, "error": error, "penalty": penalty}


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def train_autoencoder(
    images: Tensor,
    latent_dim: int,
    kind: str = "VAE",
    *,
    likelihood: str = "bernoulli",
    views: Callable[[Tensor, torch.Generator], Tensor] | None = gentle_views,
    restore: bool = False,
    filters: int | None = None,
    epochs: int = 30,
    warm_epochs: float | None = None,
    batch_size: int = 100,
    lr: float = 5e-4,
    l1: float = 1e-4,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> tuple[DynamicAutoencoder, "pd.DataFrame"]:
    """Train one of the five autoencoders with Adam.

    Parameters
    ----------
    images : tensor (n, c, h, w), in [0, 1]
    latent_dim : int
    kind : a name in `KINDS`
    likelihood : {"bernoulli", "gaussian"}
    views : callable(images, generator) -> images, optional
        Augmentation, drawn anew for each batch. By default that of the thesis; None for none.
    restore : bool
        Paint the image itself from the code of its view; by default (as in the thesis) the view.
    filters : int, optional
        Of the first block, see `dynamic_autoencoder.plan`.
    epochs, batch_size, lr, l1 : of the training; ``l1`` as in `objective`
    warm_epochs : float, optional
        How long the penalty's weight rises, see `variational.warm_up`; a quarter of ``epochs`` by
        default.
    seed, device, progress : as in `training.fit`; the weights come from ``seed`` too.

    Returns
    -------
    network : DynamicAutoencoder, on the CPU, in evaluation mode
    history : DataFrame, one row an epoch: ``loss``, ``error``, ``penalty``

    Raises
    ------
    ValueError
        An unknown name, images of another shape or outside [0, 1], or less than two of them.
    """
    if kind not in KINDS or likelihood not in _ERRORS:
        known = ", ".join([*KINDS, *_ERRORS])
        raise ValueError(f"unknown kind {kind!r} or likelihood {likelihood!r}; there are {known}")
    if images.ndim != 4 or not images.is_floating_point() or len(images) < 2:
        raise ValueError(f"need float images (n >= 2, c, h, w), got {tuple(images.shape)}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("images must lie in [0, 1]")
    chosen = KINDS[kind]
    warm = epochs / 4 if warm_epochs is None else warm_epochs
    with initial_weights(seed):
        network = DynamicAutoencoder(images.shape[1:], latent_dim, chosen.stochastic, filters)
    network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    done = [0]  # epochs that are complete

    def step(model: Any, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        (original,) = batch
        view = original if views is None else views(original, generator)
        return objective(
            model, view, original if restore else view, generator, kind=chosen,
            likelihood=likelihood, warmth=warm_up(done[0] + 1, warm), l1=l1,
        )  # fmt: skip

    def count(epoch: int, model: Any) -> None:
        done[0] = epoch

    size = min(batch_size, len(images))
    # A last batch of one image has no variance to normalise by, so it is left out.
    loader = batches(images, batch_size=size, drop_last=len(images) % size == 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    history = fit(
        network, loader, step, optimizer=optimizer, epochs=epochs, seed=seed, device=device,
        callback=count, progress=progress,
    )  # fmt: skip
    return network.cpu().eval(), history


@torch.no_grad()
def paint(network: DynamicAutoencoder, z: Tensor, likelihood: str = "bernoulli") -> Tensor:
    """Images (n, c, h, w) from codes (n, d): expected grey values, a Gaussian's cut to [0, 1]."""
    painted = network.decode(z)
    return painted.sigmoid() if likelihood == "bernoulli" else painted.clamp(0, 1)
