"""One training loop for every chapter: seeded, resumable, and the same on one or many processes.

All randomness of an epoch is a function of (seed, epoch): before each epoch `fit` seeds the
order of the data, the generator that it hands to ``step``, and the global states of Python,
numpy and torch (dropout uses them). A checkpoint therefore needs no random state, only the
epoch, and a run that was killed continues bit for bit as if it had not been.
"""

import contextlib
import copy
import io
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

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
        One line of text: in a notebook an updated output that ends as
        ``epoch 500/500 · loss 0.123 · 12.3 s`` (nothing goes to stderr and there is no widget to
        store); in a terminal a tqdm bar; nothing when stderr is a file.
    accelerator : accelerate.Accelerator, optional
        Supplies the processes and the device. The gradient is averaged over the processes, each
        of which draws its own part of every global batch (``batch_size`` is per process).
        `batches` leaves out at most processes - 1 rows an epoch, so that parts are equal;
        accelerate fills up the last batch of a DataLoader with rows from its beginning. Batch
        normalisation sees the rows of its own process. The main process alone shows progress and
        writes; ``validate`` and ``callback`` run in all.

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
    _check_arguments(epochs, seed, clip_norm, patience, every_epochs, every_minutes, accelerator)
    device = pick_device(device) if accelerator is None else accelerator.device
    if accelerator is not None and accelerator.num_processes == 1:
        accelerator = None
    rank = 0 if accelerator is None else accelerator.process_index
    loader = _own_part(loader, accelerator)
    model.to(device)
    trained = _trained_parameters(model, optimizer)
    autocast, scaler = _precision(mixed_precision, device)
    generator = torch.Generator(device)

    history, seconds = [], 0.0
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "scheduler": scheduler}
    parts = {name: part for name, part in parts.items() if part is not None}
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        settings = _settings(parts, loader, accelerator, seed, clip_norm, mixed_precision)
        if checkpoint.exists():
            history, seconds = _resume(checkpoint, parts, settings, epochs)
    _copy_from_main([*model.parameters(), *model.buffers()], accelerator)

    epoch = len(history)
    saved = time.monotonic()
    started = saved - seconds
    with (
        _callers_random_states(device),
        _Progress(loader, epoch, epochs, progress and rank == 0) as bar,
    ):
        while epoch < epochs and not _stalled(history, monitor, patience):
            epoch += 1
            _seed_epoch(loader, generator, seed, epoch, rank)
            model.train()
            log = _Log(epoch, device)
            for batch in loader:
                batch = _to_device(batch, device)
                optimizer.zero_grad(set_to_none=True)
                with autocast():
                    values = step(model, batch, generator)
                log.add(values, _rows(batch))
                scaler.scale(values["loss"]).backward()
                if accelerator is not None:
                    _average_gradients(trained, accelerator)
                if clip_norm is not None:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(trained, clip_norm)
                scaler.step(optimizer)
                scaler.update()
                bar.update()

            row = {"epoch": epoch, **log.means(accelerator)}
            _require_finite_parameters(trained, epoch)
            _copy_from_main(model.buffers(), accelerator)
            model.eval()
            history.append(_with_validation(row, validate, model, monitor, accelerator))
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(history[-1][monitor])
            elif scheduler is not None:
                scheduler.step()
            if callback is not None:
                callback(epoch, model)

            if checkpoint is not None and rank == 0:
                now = time.monotonic()
                due = not epoch % every_epochs
                if every_minutes is not None:
                    due = now - saved >= 60 * every_minutes
                if due or epoch == epochs or _stalled(history, monitor, patience):
                    _save(checkpoint, parts, settings, history, now - started)
                    saved = now
            bar.show(history, monitor, time.monotonic() - started)
        seconds = time.monotonic() - started
        bar.show(history, monitor, seconds)
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


# Arguments and set-up


def _check_arguments(epochs, seed, clip_norm, patience, every_epochs, every_minutes, accelerator):
    rules = {
        f"epochs must be an integer >= 0, got {epochs}": epochs == int(epochs) and epochs >= 0,
        f"seed must be an integer >= 0, got {seed}": seed == int(seed) and seed >= 0,
        f"clip_norm must be > 0, got {clip_norm}": clip_norm is None or clip_norm > 0,
        f"patience must be >= 1, got {patience}": patience is None or patience >= 1,
        f"every_epochs must be >= 1, got {every_epochs}": every_epochs >= 1,
        f"every_minutes must be >= 0, got {every_minutes}": (every_minutes or 0) >= 0,
    }
    if accelerator is not None:
        plain = accelerator.mixed_precision == "no" and accelerator.gradient_accumulation_steps == 1
        rules["accelerator: use fit's mixed_precision; steps are not accumulated"] = plain
    for message, holds in rules.items():
        if not holds:
            raise ValueError(message)


def _own_part(loader, accelerator):
    """The loader of this process's share of every global batch."""
    if isinstance(loader, batches):
        loader = copy.copy(loader)
        if accelerator is not None:
            loader.part, loader.parts = accelerator.process_index, accelerator.num_processes
    elif accelerator is not None:
        if not isinstance(loader, torch.utils.data.DataLoader):
            raise ValueError("several processes share batches(...) or a DataLoader, nothing else")
        loader = accelerator.prepare_data_loader(loader, device_placement=False)
    if _length(loader) == 0:
        raise ValueError("the loader yields no batch; is batch_size larger than the data?")
    return loader


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


# Randomness


def _seed_of(seed, epoch, stream, rank=0):
    """An independent 32-bit seed for one use of randomness in one epoch."""
    stream = ("order", "step", "global").index(stream)
    return int(np.random.SeedSequence((int(seed), epoch, rank, stream)).generate_state(1)[0])


def _seed_epoch(loader, generator, seed, epoch, rank):
    for part in _loader_parts(loader):
        if hasattr(part, "generator"):
            part.generator = torch.Generator().manual_seed(_seed_of(seed, epoch, "order"))
    generator.manual_seed(_seed_of(seed, epoch, "step", rank))
    everywhere = _seed_of(seed, epoch, "global", rank)
    random.seed(everywhere)
    np.random.seed(everywhere)
    torch.default_generator.manual_seed(everywhere)  # torch.manual_seed takes 1 ms to reach CUDA
    if generator.device.type != "cpu":
        torch.get_device_module(generator.device).manual_seed(everywhere)


def _loader_parts(loader):
    yield loader
    for name in ("batch_sampler", "sampler"):
        if getattr(loader, name, None) is not None:
            yield from _loader_parts(getattr(loader, name))


@contextlib.contextmanager
def _callers_random_states(device):
    """Put the global random states back: models built after a `fit` must not all start alike."""
    python, numpy_ = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)


# One epoch


class _Log:
    """What `step` returns, kept on the device: the loop waits for a GPU once an epoch."""

    def __init__(self, epoch, device):
        self.epoch, self.device = epoch, device
        self.names, self.values, self.sizes = None, [], []

    def add(self, values, size):
        names = list(values) if isinstance(values, dict) else None
        self.names = self.names or names
        if names is None or "loss" not in names or names != self.names:
            raise ValueError(f"step must return a dict with 'loss', got {values!r:.80}")
        scalars = [torch.as_tensor(v, device=self.device).detach() for v in values.values()]
        if any(scalar.ndim for scalar in scalars):
            raise ValueError(f"step must return scalars, got {values!r:.80}")
        if self.device.type == "cpu":
            self._require_finite(len(self.sizes), values["loss"].item())
        self.values.append(torch.stack(scalars))
        self.sizes.append(size)

    def means(self, accelerator):
        """Means over the epoch (and all processes) weighted by batch size."""
        if not self.sizes:
            raise ValueError(f"the loader yields no batch in epoch {self.epoch}")
        table = torch.stack(self.values).cpu().double().numpy()
        for batch, loss in enumerate(table[:, self.names.index("loss")]):
            self._require_finite(batch, loss)
        sums = np.append(self.sizes @ table, sum(self.sizes))
        if accelerator is not None:
            sums = accelerator.reduce(torch.tensor(sums, device=self.device), "sum").tolist()
        return {name: float(s / sums[-1]) for name, s in zip(self.names, sums, strict=False)}

    def _require_finite(self, batch, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} in epoch {self.epoch}, batch {batch + 1}: look for bad values in "
                "the data, lower the learning rate or set clip_norm"
            )


def _require_finite_parameters(parameters, epoch):
    # The last gradient of an epoch can be NaN although every loss was finite.
    if not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise FloatingPointError(f"a parameter is not finite after epoch {epoch}: set clip_norm?")


def _to_device(batch, device):
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_to_device(value, device) for value in batch]
    return batch


def _rows(batch):
    """Rows of the first tensor in a batch, its weight in the means."""
    while isinstance(batch, dict | list | tuple):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def _with_validation(row, validate, model, monitor, accelerator):
    """The row of the history, equal in all processes, so that they stop together."""
    if validate is not None:
        with torch.no_grad():
            extra = {name: float(value) for name, value in validate(model).items()}
        if both := row.keys() & extra.keys():
            raise ValueError(f"validate logs {sorted(both)}, which step or fit logs already")
        row = row | extra
    if monitor not in row:
        raise ValueError(f"monitor {monitor!r} is not among the logged {list(row)}")
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        row = broadcast_object_list([row])[0]
    return row


def _stalled(history, monitor, patience):
    """Whether the best value is ``patience`` epochs old: all that early stopping remembers."""
    if patience is None or not history:
        return False
    values = [math.inf if math.isnan(row[monitor]) else row[monitor] for row in history]
    return len(values) - 1 - values.index(min(values)) >= patience


# Several processes


def _average_gradients(parameters, accelerator):
    """Mean gradient over the processes; one that no process used stays None.

    By hand and not by DistributedDataParallel, so that ``step`` may call any method of the model
    and leave parts of it out.
    """
    parameters = [p for p in parameters if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    used = grads[0].new_tensor([p.grad is not None for p in parameters])
    mean = accelerator.reduce(torch.cat([g.flatten() for g in grads] + [used]), "mean")
    *means, used = mean.split([p.numel() for p in parameters] + [len(parameters)])
    for p, grad, any_used in zip(parameters, means, used.tolist(), strict=True):
        p.grad = grad.view_as(p).to(p.dtype) if any_used else None


def _copy_from_main(tensors, accelerator):
    if accelerator is not None:
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.detach().clone()))


# Checkpoints


def _settings(parts, loader, accelerator, seed, clip_norm, mixed_precision):
    """What must be equal when a run is resumed, as text."""
    groups = parts["optimizer"].param_groups
    settings = {
        "seed": int(seed),
        "parameters": {k: (v.shape, v.dtype) for k, v in parts["model"].state_dict().items()},
        "optimizer": [{k: v for k, v in group.items() if k != "params"} for group in groups],
        "scheduler": parts["scheduler"].state_dict() if "scheduler" in parts else None,
        "classes": [type(part).__name__ for part in parts.values()][1:],
        "batches": (_length(loader), getattr(loader, "batch_size", None)),
        "clip_norm": clip_norm,
        "mixed_precision": (mixed_precision, parts["scaler"].is_enabled()),
        "processes": 1 if accelerator is None else accelerator.num_processes,
    }
    return {name: repr(value) for name, value in settings.items()}


def _save(path, parts, settings, history, seconds):
    """Write the checkpoint so that the file is at any moment either the old or the new one."""
    state = {"settings": settings, "history": history, "seconds": seconds}
    state |= {name: part.state_dict() for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    try:
        with open(scratch, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _resume(path, parts, settings, epochs):
    """Load the checkpoint into ``parts`` and return (history, seconds), or change nothing."""
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


# Progress


class _Progress(tqdm):
    """A bar of steps that ends as one line; in a notebook one text output, replaced in place."""

    monitor_interval = 0

    def __init__(self, loader, epoch, epochs, shown):
        ipython = sys.modules.get("IPython")
        self.in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self.output = None
        steps = _length(loader)
        super().__init__(
            desc=f"epoch {epoch}/{epochs}",
            total=steps and steps * epochs,
            initial=(steps or 0) * epoch,
            bar_format="{desc} {bar:20} {remaining} left",
            mininterval=0.2,
            ncols=100 if self.in_notebook else None,
            file=io.StringIO() if self.in_notebook else None,
            disable=not shown or (None if not self.in_notebook else False),
        )
        self.epochs = epochs

    def display(self, msg=None, pos=None):
        if not self.in_notebook:
            return super().display(msg, pos)
        text = {"text/plain": str(self) if msg is None else msg}
        if self.output is None:
            from IPython.display import display

            self.output = display(text, raw=True, display_id=True)
        else:
            self.output.update(text, raw=True)

    def show(self, history, monitor, seconds):
        row = history[-1] if history else {"epoch": 0}
        values = [f"{k} {row[k]:.4g}" for k in dict.fromkeys(("loss", monitor)) if k in row]
        line = " · ".join([f"epoch {row['epoch']}/{self.epochs}", *values, f"{seconds:.1f} s"])
        self.set_description_str(line, refresh=False)

    def close(self):
        self.bar_format = "{desc}"
        super().close()


def _length(loader):
    try:
        return len(loader)
    except TypeError:
        return None


def _tensor(array):
    """A tensor sharing memory where possible; read-only and reversed arrays are copied."""
    if torch.is_tensor(array):
        return array
    return torch.as_tensor(np.require(array, requirements=("C", "W")))
