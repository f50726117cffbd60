"""One training loop for every chapter: seeded, resumable, and the same on one or many processes.

What a run needs around the loop is in `checkpoints` (seeds of an epoch, exact resume), `progress`
(the log, early stopping, the line shown) and `processes`.
"""

import contextlib
import copy
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from latentspace.training import checkpoints
from latentspace.training.processes import Processes
from latentspace.training.progress import Line, Log, require_finite, stalled, with_validation

__all__ = ["batches", "fit", "pick_device", "predict", "seed_everything"]


def fit(
    model,
    loader,
    step,
    *,
    optimizer,
    epochs,
    scheduler=None,
    seed=0,
    device=None,
    validate=None,
    callback=None,
    clip_norm=None,
    mixed_precision=False,
    monitor="loss",
    patience=None,
    checkpoint=None,
    every_epochs=1,
    every_minutes=None,
    progress=True,
    accelerator=None,
):
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
        Stepped once after every epoch (ReduceLROnPlateau with the monitored value).
    seed : int
        Seeds the training, not the weights, which exist already (see `seed_everything`). The
        caller's global random states are put back at the end.
    device : str or torch.device, optional
        As in `pick_device`.
    validate : callable(model) -> dict of floats, optional
        Called after each epoch in eval mode without gradients; logged under its own names.
    callback : callable(epoch, model), optional
        Called after each epoch (1, 2, ...) in eval mode; not repeated for resumed epochs.
    clip_norm : float, optional
        Largest Euclidean norm of the whole gradient.
    mixed_precision : bool
        On CUDA: bfloat16, or float16 with a scaled loss on cards without it. Elsewhere ignored.
    monitor, patience : str, int, optional
        Stop when the logged value ``monitor`` (lower is better) has not improved for ``patience``
        epochs. The weights stay those of the last epoch.
    checkpoint : path, optional
        Continue from this file if it exists, and keep it up to date: after every ``every_epochs``
        epochs, or instead every ``every_minutes`` (at the end of an epoch), and at the end. It is
        written atomically and read without executing pickled code. It must come from a call with
        the same seed and settings and freshly built model, optimizer and scheduler; only
        ``epochs`` and ``patience`` may grow.
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
    _check_arguments(epochs, seed, clip_norm, patience, every_epochs, every_minutes)
    processes = Processes(accelerator)
    device = pick_device(device) if accelerator is None else accelerator.device
    loader = processes.share(copy.copy(loader) if isinstance(loader, batches) else loader)
    model.to(device)
    trained = _trained_parameters(model, optimizer)
    autocast, scaler = _precision(mixed_precision, device)
    generator = torch.Generator(device)

    history, seconds = [], 0.0
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
        parts |= {} if scheduler is None else {"scheduler": scheduler}
        options = {"seed": int(seed), "clip_norm": clip_norm, "mixed_precision": mixed_precision}
        options |= {"processes": processes.count}
        settings = checkpoints.settings(parts, loader, options)
        if checkpoint.exists():
            history, seconds = checkpoints.resume(checkpoint, parts, settings, epochs)
    processes.copy_from_main([*model.parameters(), *model.buffers()])

    epoch = len(history)
    saved = time.monotonic()
    started = saved - seconds
    with (
        checkpoints.callers_random_states(device),
        Line(loader, epoch, epochs, progress and processes.rank == 0) as line,
    ):
        while epoch < epochs and not stalled(history, monitor, patience):
            epoch += 1
            checkpoints.seed_epoch(loader, generator, seed, epoch, processes.rank)
            model.train()
            log = Log(epoch, device)
            for batch in loader:
                batch = _to_device(batch, device)
                optimizer.zero_grad(set_to_none=True)
                with autocast():
                    values = step(model, batch, generator)
                log.add(values, batch)
                scaler.scale(values["loss"]).backward()
                processes.average_gradients(trained)
                if clip_norm is not None:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(trained, clip_norm)
                scaler.step(optimizer)
                scaler.update()
                line.update()

            row = {"epoch": epoch, **log.means(processes)}
            require_finite(trained, epoch)
            processes.copy_from_main(model.buffers())
            model.eval()
            row = with_validation(row, validate, model, monitor)
            history.append(processes.from_main(row))  # one row for all, so that they stop together
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(history[-1][monitor])
            elif scheduler is not None:
                scheduler.step()
            if callback is not None:
                callback(epoch, model)

            if checkpoint is not None and processes.rank == 0:
                now = time.monotonic()
                due = epoch % every_epochs == 0
                if every_minutes is not None:
                    due = now - saved >= 60 * every_minutes
                if due or epoch == epochs or stalled(history, monitor, patience):
                    checkpoints.save(checkpoint, parts, settings, history, now - started)
                    saved = now
            line.show(history, monitor, time.monotonic() - started)
        seconds = time.monotonic() - started
        line.show(history, monitor, seconds)
    model.eval()

    table = pd.DataFrame(history, columns=None if history else ["epoch", "loss"])
    table.attrs["seconds"] = seconds
    return table


class batches:
    """Whole batches of rows from arrays in memory, without a per-row collate.

    Iterating yields tuples (also for one array) of new tensors with the chosen rows, on the device
    of the arrays; arrays already on a GPU are the fastest there. `fit` sets ``generator`` from
    (seed, epoch), so the order of every epoch is reproducible.

    Parameters
    ----------
    *arrays : array or tensor, (n, ...)
        All with the same n >= 1, on one device. NumPy arrays share their memory.
    batch_size : int
        More than n means one batch of n rows.
    shuffle : bool
    drop_last : bool
        Leave out a last batch that is not full.

    Raises
    ------
    ValueError
        No array, different lengths, no rows, ``batch_size`` below 1, or no full batch
        although ``drop_last`` asks for one.
    """

    def __init__(self, *arrays, batch_size, shuffle=True, drop_last=False):
        self.arrays = [_tensor(array) for array in arrays]
        lengths = {len(array) if array.ndim else 0 for array in self.arrays}
        if len(lengths) != 1 or 0 in lengths:
            shapes = [tuple(array.shape) for array in self.arrays]
            raise ValueError(f"batches needs arrays with equally many rows, at least one: {shapes}")
        (self.n,) = lengths
        if batch_size < 1 or (drop_last and batch_size > self.n):
            raise ValueError(f"batch_size is {batch_size}, with {self.n} rows, {drop_last=}")
        self.batch_size, self.shuffle, self.drop_last = int(batch_size), shuffle, drop_last
        self.generator = torch.Generator()
        self.part, self.parts = 0, 1

    def __len__(self):
        full, rest = divmod(self.n, self.batch_size * self.parts)
        return full + (rest >= self.parts and not self.drop_last)

    def __iter__(self):
        if self.shuffle:
            order = torch.randperm(self.n, generator=self.generator)
        else:
            order = torch.arange(self.n)
        chunks = order.to(self.arrays[0].device).split(self.batch_size * self.parts)
        for chunk in chunks[: len(self)]:
            size = len(chunk) // self.parts
            rows = chunk[self.part * size : (self.part + 1) * size]
            yield tuple(array[rows] for array in self.arrays)


def predict(model, x, batch_size=1024, device=None):
    """Outputs of ``model`` for all of ``x``: eval mode, no gradients, in batches, on the CPU.

    Parameters
    ----------
    model : nn.Module or callable
        For a method of a module (``predict(vae.encode, x)``) that module is put in eval mode;
        any other callable is taken as it is. Each submodule gets its mode back.
    x : array or tensor, (n, ...)
    batch_size : int
    device : optional
        Moves the module there. Default: where its parameters are, else where ``x`` is.

    Returns
    -------
    Tensor (n, ...), or a tuple of them if the model returns one.
    """
    x = _tensor(x)
    if x.ndim == 0 or len(x) == 0 or batch_size < 1:
        raise ValueError(f"x has shape {tuple(x.shape)} and batch_size is {batch_size}")
    module = getattr(model, "__self__", model)
    module = module if isinstance(module, torch.nn.Module) else torch.nn.Module()
    if device is None:
        device = next(module.parameters(), x).device
    device = pick_device(device)
    modes = [(part, part.training) for part in module.modules()]
    module.to(device).eval()
    try:
        with torch.no_grad():
            outputs = [model(rows.to(device)) for rows in x.split(batch_size)]
    finally:
        for part, mode in modes:
            part.training = mode
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat([o.cpu() for o in column]) for column in zip(*outputs, strict=True))
    return torch.cat([output.cpu() for output in outputs])


def seed_everything(seed):
    """Seed the global generators of Python, numpy and torch (every device).

    ``seed`` is an integer from 0 to 2**32 - 1; anything else raises ValueError.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


def pick_device(device=None):
    """The device asked for or, by default, the best one here: CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device is None:
        device = next((kind for kind, there in available.items() if there()), "cpu")
    device = torch.device(device)
    if device.type in available and not available[device.type]():
        raise ValueError(f"device {device} is not available here; use device='cpu' or None")
    return device


def _check_arguments(epochs, seed, clip_norm, patience, every_epochs, every_minutes):
    rules = {
        f"epochs must be an integer >= 0, got {epochs}": epochs == int(epochs) and epochs >= 0,
        f"seed must be an integer >= 0, got {seed}": seed == int(seed) and seed >= 0,
        f"clip_norm must be > 0, got {clip_norm}": clip_norm is None or clip_norm > 0,
        f"patience must be >= 1, got {patience}": patience is None or patience >= 1,
        f"every_epochs must be >= 1, got {every_epochs}": every_epochs >= 1,
        f"every_minutes must be >= 0, got {every_minutes}": (every_minutes or 0) >= 0,
    }
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)


def _trained_parameters(model, optimizer):
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if not {id(p) for p in trained} <= {id(p) for p in model.parameters()}:
        raise ValueError("the optimizer holds parameters that are not in model")
    return trained


def _precision(mixed_precision, device):
    """(autocast context factory, GradScaler); both do nothing unless asked for, on CUDA."""
    if not (mixed_precision and device.type == "cuda"):
        return contextlib.nullcontext, torch.amp.GradScaler(enabled=False)
    half = not torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.float16 if half else torch.bfloat16
    return lambda: torch.autocast("cuda", dtype), torch.amp.GradScaler("cuda", enabled=half)


def _to_device(batch, device):
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_to_device(value, device) for value in batch]
    return batch


def _tensor(array):
    """A tensor sharing memory where possible; read-only and reversed arrays are copied."""
    if torch.is_tensor(array):
        return array
    return torch.as_tensor(np.require(array, requirements=("C", "W")))
