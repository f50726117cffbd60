"""Training the manager and its experts, in the thesis's three steps (4.4.4 and 4.5.2).

The manager learns given soft labels. Then manager and experts are trained together, then each
expert alone on its own images.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from latentspace.estimators import initial_weights
from latentspace.experts import Experts, Manager, Mixture, expert_errors, mixture_loss
from latentspace.generative_autoencoders import gentle_views
from latentspace.training import batches, fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["train_experts", "train_manager", "train_mixture"]

Views = Callable[[Tensor, torch.Generator], Tensor] | None


def train_manager(
    images: Tensor,
    targets: Tensor,
    *,
    filters: int | None = None,
    views: Views = gentle_views,
    epochs: int = 20,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> tuple[Manager, "pd.DataFrame"]:
    """Train a manager to give each image its soft label, by their divergence (thesis 4.4.4).

    Parameters
    ----------
    images : tensor (n, c, h, w), in [0, 1], without those that are noise
    targets : tensor (n, K), rows of probabilities
    views : callable(images, generator) -> images, optional
        Augmentation, drawn anew for each batch. None for none; the thesis does not say.
    filters, epochs, batch_size, lr, seed, device, progress : as in `train_autoencoder`

    Returns
    -------
    manager : Manager, on the CPU, in evaluation mode
    history : DataFrame, one row an epoch: ``loss``, mean KL(target || manager)
    """
    with initial_weights(seed):
        manager = Manager(images.shape[1:], targets.shape[1], filters)

    def step(model: Manager, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        x, wanted = batch
        log_p = model(_seen(x, views, generator)).log_softmax(1)
        return {"loss": F.kl_div(log_p, wanted, reduction="batchmean")}

    history = _train(manager, (images, targets), step, [(manager, lr)], epochs, batch_size, seed,
                     device, progress)  # fmt: skip
    return manager, history


def train_mixture(
    mixture: Mixture,
    images: Tensor,
    *,
    alpha: float = 100.0,
    beta: float = 1.0,
    views: Views = gentle_views,
    epochs: int = 10,
    batch_size: int = 100,
    manager_lr: float = 1e-4,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    callback: Callable[[int, nn.Module], Any] | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """First phase: manager and experts together, by `mixture_loss`; trained in place.

    Each expert sees every image. ``manager_lr`` is the manager's learning rate, the thesis's for
    both; ``lr`` that of the experts, which start at random. ``callback(epoch, mixture)`` follows
    each epoch. The history has the terms of the loss and ``share_0``, ..., the manager's mean
    probability of each expert.
    """

    def step(model: Mixture, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        seen = _seen(batch[0], views, generator)
        log_p = model(seen)
        errors = expert_errors(model.experts, seen, _noise(len(seen), model.experts, generator))
        shares = log_p.detach().exp().mean(0).unbind()
        return mixture_loss(log_p, errors, alpha, beta) | {
            f"share_{k}": share for k, share in enumerate(shares)
        }

    rates = [(mixture.manager, manager_lr), (mixture.experts, lr)]
    return _train(mixture, (images,), step, rates, epochs, batch_size, seed, device, progress,
                  callback)  # fmt: skip


def train_experts(
    experts: Experts,
    images: Tensor,
    labels: ArrayLike,
    *,
    views: Views = gentle_views,
    epochs: int = 30,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Second phase: each expert alone on the images with its label; trained in place.

    In each step every expert draws ``batch_size / K`` of its images, with replacement, so that the
    experts of small clusters take as many steps as the others; an epoch has n / ``batch_size`` of
    them. An expert without images keeps its weights. The history has ``loss``, the mean error of
    the experts that have images. ValueError for labels outside 0 to K - 1.
    """
    y = torch.as_tensor(np.array(labels))
    if len(y) != len(images) or y.is_floating_point() or y.min() < 0 or y.max() >= experts.k:
        raise ValueError(f"need a label from 0 to {experts.k - 1} for each of {len(images)} images")
    counts = y.bincount(minlength=experts.k)
    order, begins = y.argsort(stable=True), counts.cumsum(0) - counts
    # One that has no images is shown any, which weigh nothing.
    begin, count = begins * (counts > 0), torch.where(counts > 0, counts, len(y))
    weight = (counts > 0) / (counts > 0).sum()
    each = max(2, math.ceil(batch_size / experts.k))

    def step(model: Experts, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        u = torch.rand(each, model.k, generator=generator, device=generator.device).cpu()
        rows = order[begin + (u * count).long().clamp(max=count - 1)]
        own = _seen(images[rows.flatten()].to(generator.device), views, generator)
        own = own.view(each, model.k, *model.shape)
        errors = expert_errors(model, own, _noise(each, model, generator))
        return {"loss": (errors.mean(0) * weight.to(errors.device)).sum()}

    steps = torch.arange(max(1, round(len(y) / batch_size)))
    return _train(experts, (steps,), step, [(experts, lr)], epochs, 1, seed, device, progress)


def _seen(images: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    return images if views is None else views(images, generator)


def _noise(n: int, experts: Experts, generator: torch.Generator) -> Tensor:
    return torch.randn(n, experts.k, experts.d, generator=generator, device=generator.device)


def _train(
    model: nn.Module,
    arrays: tuple[Tensor, ...],
    step: Callable[..., dict[str, Tensor]],
    rates: list[tuple[nn.Module, float]],
    epochs: int,
    batch_size: int,
    seed: int,
    device: str | torch.device | None,
    progress: bool,
    callback: Callable[[int, nn.Module], Any] | None = None,
) -> "pd.DataFrame":
    model.to(memory_format=torch.channels_last)  # grouped convolutions are a third faster on a CPU
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
    history = fit(
        model, batches(*arrays, batch_size=min(batch_size, len(arrays[0]))), step,
        optimizer=torch.optim.Adam(groups, fused=True), epochs=epochs, seed=seed, device=device,
        callback=callback, progress=progress,
    )  # fmt: skip
    model.cpu().eval()
    return history
