"""One training loop for every chapter: seeded, resumable, and the same on one or many processes.

What a run needs around the loop is in `loader` and `tensors` (batches, devices), `checkpoints`
(seeds of an epoch, exact resume), `progress` (the log, the line shown) and `processes`.
"""

import contextlib
import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from latentspace.training import checkpoints
from latentspace.training.loader import batches
from latentspace.training.processes import Processes
from latentspace.training.progress import Line, Log, require_finite, with_validation
from latentspace.training.tensors import as_tensor, module_of, pick_device, to_device

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit", "predict", "seed_everything"]


def fit(
    model: nn.Module,
    loader: Any,
    step: Callable[..., dict[str, Any]],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    scheduler: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    validate: Callable[[nn.Module], dict[str, Any]] | None = None,
    callback: Callable[[int, nn.Module], Any] | None = None,
    mixed_precision: bool = False,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    accelerator: Any = None,
) -> "pd.DataFrame":
    """Train ``model`` and return what was logged, one row an epoch.

    Parameters
    ----------
    model : nn.Module
        Holds everything that is trained and every state that must survive a restart. It is
        moved to the device, trained in train mode and left in eval mode.
    loader : `batches`, DataLoader or a sequence of batches
        A batch is a tensor or a tuple, list or dict of tensors. `fit` puts its own generator
        into the loader and its sampler. What a dataset or a custom sampler draws from a generator
        of its own, or in ``persistent_workers``, is not restored by a resume.
    step : callable(model, batch, generator) -> dict of scalar tensors
        ``"loss"`` is minimised and assumed to be a mean over the batch; the others are logged.
        ``generator`` is a torch.Generator on the device, seeded from (seed, epoch).
    optimizer : torch.optim.Optimizer
        Over parameters of ``model``.
    epochs : int
        Total number, those of a resumed checkpoint included. 0 trains nothing.
    scheduler : torch learning-rate scheduler, optional
        Stepped once after every epoch.
    seed : int
        Seeds the training, not the weights, which exist already (see
        `estimators.initial_weights`). The global random states are left alone, unless the model
        holds dropout or the loader is a DataLoader: these have no other source, see
        `checkpoints.draws_globally`. Then they are seeded for each epoch and put back at the end,
        and such runs should not share a process with others in threads.
    device : str or torch.device, optional
        As in `pick_device`.
    validate : callable(model) -> dict of floats, optional
        Called after each epoch in eval mode without gradients; logged under its own names.
    callback : callable(epoch, model), optional
        Called after each epoch (1, 2, ...) in eval mode; not repeated for resumed epochs.
    mixed_precision : bool
        On CUDA: bfloat16, or float16 with a scaled loss on cards without it. Elsewhere ignored.
    checkpoint : path, optional
        Continue from this file if it exists, and bring it up to date after every epoch. It is
        written atomically and read without executing pickled code, on any device. It must come
        from a call with the same seed and settings and freshly built model, optimizer and
        scheduler; only ``epochs`` may grow.
    progress : bool
        In a notebook one line of text that ends as ``epoch 500/500 · loss 0.123 · 12.3 s`` (no
        widget, nothing on stderr); in a terminal a tqdm bar; nothing when stderr is a file.
    accelerator : accelerate.Accelerator, optional
        Supplies the device and the processes, each of which draws its own part of every global
        batch (``batch_size`` is per process; see `processes`). The main process alone shows
        progress and writes; ``validate`` and ``callback`` run in all.

    Returns
    -------
    pandas.DataFrame
        Columns ``epoch`` (from 1), ``loss``, what else ``step`` returned (means weighted by batch
        size) and what ``validate`` returned. ``attrs["seconds"]`` is the training time, including
        that before a resume.

    Raises
    ------
    FloatingPointError
        The loss is NaN or infinite (epoch and batch are named; on the CPU before the weights
        change, on a GPU at the end of the epoch), or a parameter has become so.
    ValueError
        An argument out of range, an empty loader, a malformed result of ``step``, or a checkpoint
        that is unreadable or from another configuration.
    """
    import pandas as pd

    for name, value in {"epochs": epochs, "seed": seed}.items():
        if value != int(value) or value < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {value}")
    processes = Processes(accelerator)
    device = pick_device(device) if accelerator is None else accelerator.device
    loader = processes.share(copy.copy(loader) if isinstance(loader, batches) else loader)
    model.to(device)
    trained = _trained_parameters(model, optimizer)
    autocast, scaler = _precision(mixed_precision, device)
    generator = torch.Generator(device)
    globally = checkpoints.draws_globally(model, loader)

    history: list[dict[str, Any]] = []
    seconds = 0.0
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
        parts |= {} if scheduler is None else {"scheduler": scheduler}
        options = {"seed": int(seed), "mixed_precision": mixed_precision}
        options |= {"processes": processes.count}
        settings = checkpoints.settings(parts, loader, options)
        if checkpoint.exists():
            history, seconds = checkpoints.resume(checkpoint, parts, settings, epochs)
    processes.copy_from_main([*model.parameters(), *model.buffers()])

    started = time.monotonic() - seconds
    with (
        checkpoints.callers_random_states(device) if globally else contextlib.nullcontext(),
        Line(loader, len(history), epochs, progress and processes.rank == 0) as line,
    ):
        for epoch in range(len(history) + 1, epochs + 1):
            checkpoints.seed_epoch(loader, generator, seed, epoch, processes.rank, globally)
            model.train()
            log = Log(epoch, device)
            for batch in loader:
                batch = to_device(batch, device)
                optimizer.zero_grad(set_to_none=True)
                with autocast():
                    values = step(model, batch, generator)
                log.add(values, batch)
                scaler.scale(values["loss"]).backward()
                processes.average_gradients(trained)
                scaler.step(optimizer)
                scaler.update()
                line.update()

            row = {"epoch": epoch, **log.means(processes)}
            require_finite(trained, epoch)
            processes.copy_from_main(model.buffers())
            model.eval()
            history.append(with_validation(row, validate, model))
            if scheduler is not None:
                scheduler.step()
            if callback is not None:
                callback(epoch, model)
            if checkpoint is not None and processes.rank == 0:
                checkpoints.save(checkpoint, parts, settings, history, time.monotonic() - started)
            line.show(history, time.monotonic() - started)
        seconds = time.monotonic() - started
        line.show(history, seconds)
    model.eval()

    table = pd.DataFrame(history, columns=None if history else ["epoch", "loss"])
    table.attrs["seconds"] = seconds
    return table


def predict(
    model: Callable[..., Any],
    x: Any,
    batch_size: int = 1024,
    device: str | torch.device | None = None,
) -> Any:
    """Outputs of ``model`` for all of ``x``: eval mode, no gradients, in batches, on the CPU.

    Parameters
    ----------
    model : nn.Module or callable
        For a method of a module (``predict(vae.encode, x)``) that module is put in eval mode;
        any other callable is taken as it is. Each submodule gets its mode back.
    x : array, DataFrame or tensor, (n, ...), see `tensors.as_tensor`
        Floats are given to the model in the precision of its parameters.
    batch_size : int
    device : optional
        Moves the module there. Default: where its parameters are, else where ``x`` is.

    Returns
    -------
    Tensor (n, ...), or a tuple of them if the model returns one.
    """
    x = as_tensor(x)
    if x.ndim == 0 or len(x) == 0 or batch_size < 1:
        raise ValueError(f"x has shape {tuple(x.shape)} and batch_size is {batch_size}")
    module = module_of(model)
    like = next((p for p in module.parameters() if p.is_floating_point()), x)
    device = pick_device(like.device if device is None else device)
    dtype = like.dtype if x.is_floating_point() else x.dtype
    modes = [(part, part.training) for part in module.modules()]
    module.to(device).eval()
    try:
        with torch.no_grad():
            outputs = [model(to_device(rows.to(dtype), device)) for rows in x.split(batch_size)]
    finally:
        for part, mode in modes:
            part.training = mode
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat([o.cpu() for o in column]) for column in zip(*outputs, strict=True))
    return torch.cat([output.cpu() for output in outputs])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device).

    ``seed`` is an integer from 0 to 2**32 - 1; anything else raises ValueError.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


def _trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if not {id(p) for p in trained} <= {id(p) for p in model.parameters()}:
        raise ValueError("the optimizer holds parameters that are not in model")
    return trained


def _precision(mixed_precision: bool, device: torch.device) -> tuple[Callable, Any]:
    """(autocast context factory, GradScaler); both do nothing unless asked for, on CUDA."""
    if not (mixed_precision and device.type == "cuda"):
        return contextlib.nullcontext, torch.amp.GradScaler(enabled=False)
    half = not torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.float16 if half else torch.bfloat16
    return lambda: torch.autocast("cuda", dtype), torch.amp.GradScaler("cuda", enabled=half)
