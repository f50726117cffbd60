"""Exact resume: a run that was killed continues bit for bit as if it had not been.

All randomness of an epoch is a function of (seed, epoch), see `seed_epoch`. A checkpoint
therefore needs no random state, only the epochs done, and of course weights, optimizer and
scheduler. It also names the settings of its run, so that no other run continues from it.
"""

import contextlib
import random
from collections.abc import Iterator
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latentspace.files import replacing

__all__ = [
    "callers_random_states", "draws_globally", "resume", "save", "seed_epoch", "seed_of",
    "settings",
]  # fmt: skip


def seed_of(seed: int, epoch: int, stream: str, rank: int = 0) -> int:
    """An independent 32-bit seed for one use of randomness, "order", "step" or "global"."""
    number = ("order", "step", "global").index(stream)
    return int(np.random.SeedSequence((int(seed), epoch, rank, number)).generate_state(1)[0])


def draws_globally(model: nn.Module, loader: Any) -> bool:
    """Whether training draws from the global random states of torch, numpy and Python.

    It does if a module of the model drops units or paths (a positive ``p``, ``dropout`` or
    ``drop_prob``) or has random slopes or pools, because torch gives these no generator; and if the
    loader is a DataLoader, because a dataset behind it transforms its rows at random with what it
    likes. Randomness of one's own in a model must come from a step's ``generator``.
    """
    if isinstance(loader, torch.utils.data.DataLoader):
        return True
    if any(isinstance(module, _RANDOM) for module in model.modules()):
        return True
    rates = [getattr(module, name, None) for module in model.modules() for name in _RATES]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_RATES = ("p", "dropout", "drop_prob")


def seed_epoch(
    loader: Any,
    generator: torch.Generator,
    seed: int,
    epoch: int,
    rank: int = 0,
    globally: bool = True,
) -> None:
    """Seed the order of the data, ``generator`` and, if ``globally``, the global states.

    The order is the same in all processes, the rest differs with their ``rank``.
    """
    for part in _with_samplers(loader):
        if hasattr(part, "generator"):
            part.generator = torch.Generator().manual_seed(seed_of(seed, epoch, "order"))
    generator.manual_seed(seed_of(seed, epoch, "step", rank))
    if not globally:
        return
    everywhere = seed_of(seed, epoch, "global", rank)
    random.seed(everywhere)
    np.random.seed(everywhere)
    torch.default_generator.manual_seed(everywhere)  # torch.manual_seed takes 1 ms to reach CUDA
    if generator.device.type != "cpu":
        torch.get_device_module(generator.device).manual_seed(everywhere)


def _with_samplers(loader: Any) -> Iterator[Any]:
    yield loader
    for name in ("batch_sampler", "sampler"):
        if getattr(loader, name, None) is not None:
            yield from _with_samplers(getattr(loader, name))


@contextlib.contextmanager
def callers_random_states(device: torch.device) -> Iterator[None]:
    """Put the global random states back: models built after a `fit` must not all start alike."""
    python, numpy_ = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)


def settings(parts: dict[str, Any], loader: Any, options: dict[str, Any]) -> dict[str, str]:
    """What must be equal when a run is resumed, as text by name.

    ``parts`` holds "model", "optimizer", "scaler" and, if there is one, "scheduler".
    """
    groups = parts["optimizer"].param_groups
    found = {
        "parameters": {k: (v.shape, v.dtype) for k, v in parts["model"].state_dict().items()},
        "optimizer": [{k: v for k, v in group.items() if k != "params"} for group in groups],
        "scheduler": parts["scheduler"].state_dict() if "scheduler" in parts else None,
        "classes": [type(part).__name__ for name, part in parts.items() if name != "model"],
        "scaler": parts["scaler"].is_enabled(),
        "batches": (length_hint(loader), getattr(loader, "batch_size", None)),
    }
    return {name: repr(value) for name, value in (options | found).items()}


def save(
    path: Path,
    parts: dict[str, Any],
    settings: dict[str, str],
    history: list[dict[str, Any]],
    seconds: float,
) -> None:
    """Write the checkpoint so that the file is at any moment either the old or the new one."""
    state = {"settings": settings, "history": history, "seconds": seconds}
    state |= {name: part.state_dict() for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(state, file)


def resume(
    path: Path, parts: dict[str, Any], settings: dict[str, str], epochs: int
) -> tuple[list[dict[str, Any]], float]:
    """Load the checkpoint into ``parts`` and return (history, seconds).

    Nothing pickled in the file is executed. Raises ValueError, and changes nothing, when it is
    unreadable, from other ``settings`` or of more than ``epochs`` epochs.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, history, seconds = state["settings"], state["history"], state["seconds"]
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint of fit: {error}") from error
    for name, value in settings.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path} comes from a run with another {name}: there {saved.get(name)!s:.200}, "
                f"here {value:.200}; delete it, or build everything anew as it was there"
            )
    if len(history) > epochs:
        raise ValueError(f"{path} holds {len(history)} epochs, more than the {epochs} asked for")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return history, seconds
