"""How a run goes: what an epoch logs, and the one line that shows it."""

import io
import math
import sys
from collections.abc import Callable
from operator import length_hint
from typing import Any

import torch
from torch import nn
from tqdm.std import tqdm

from latentspace.training.processes import Processes
from latentspace.training.tensors import to_device

__all__ = ["Line", "Log", "require_finite", "with_validation"]


class Log:
    """What ``step`` returns in one epoch, kept on the device: a GPU is waited for once an epoch.

    `add` and `means` raise FloatingPointError for a loss that is NaN or infinite, on a GPU only
    `means`, and ValueError for what is not a dict of scalars with "loss".
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.device = epoch, device
        self.names: list[str] = []
        self.values: list[torch.Tensor] = []
        self.sizes: list[int] = []

    def add(self, values: dict[str, Any], batch: Any) -> None:
        """Log the scalars of one batch."""
        names = list(values) if isinstance(values, dict) else []
        self.names = self.names or names
        if "loss" not in names or names != self.names:
            raise ValueError(f"step must return a dict with 'loss', got {values!r:.80}")
        tensors = [torch.as_tensor(value).detach() for value in values.values()]
        scalars = to_device(tensors, self.device)
        if any(scalar.ndim for scalar in scalars):
            raise ValueError(f"step must return scalars, got {values!r:.80}")
        if self.device.type == "cpu":
            self._require_finite(len(self.sizes), scalars[names.index("loss")].item())
        self.values.append(torch.stack(scalars))
        self.sizes.append(_rows(batch))

    def means(self, processes: Processes) -> dict[str, float]:
        """Means over the epoch and all processes, weighted by batch size, as a dict of floats."""
        if not self.sizes:
            raise ValueError(
                f"the loader yields no batch in epoch {self.epoch}; "
                "is batch_size larger than the data?"
            )
        table = torch.stack(self.values).cpu().double()
        for batch, loss in enumerate(table[:, self.names.index("loss")].tolist()):
            self._require_finite(batch, loss)
        sizes = torch.tensor(self.sizes, dtype=torch.double)
        *sums, rows = processes.sum(torch.cat([sizes @ table, sizes.sum()[None]])).tolist()
        return {name: total / rows for name, total in zip(self.names, sums, strict=True)}

    def _require_finite(self, batch: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} in epoch {self.epoch}, batch {batch + 1}: look for bad values in "
                "the data, lower the learning rate or set clip_norm"
            )


def _rows(batch: Any) -> int:
    """Rows of the first tensor in a batch, its weight in the means."""
    while isinstance(batch, dict | list | tuple):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def require_finite(parameters: list[nn.Parameter], epoch: int) -> None:
    """Raise FloatingPointError for a parameter that is NaN or infinite.

    The last gradient of an epoch can make it so although every loss was finite.
    """
    if not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise FloatingPointError(f"a parameter is not finite after epoch {epoch}: set clip_norm?")


def with_validation(
    row: dict[str, Any], validate: Callable[[nn.Module], dict[str, Any]] | None, model: nn.Module
) -> dict[str, Any]:
    """The row of an epoch with what ``validate(model)`` returns, if it is given.

    Raises ValueError for a name logged twice.
    """
    if validate is not None:
        with torch.no_grad():
            extra = {name: float(value) for name, value in validate(model).items()}
        if both := row.keys() & extra.keys():
            raise ValueError(f"validate logs {sorted(both)}, which step or fit logs already")
        row = row | extra
    return row


class Line(tqdm):
    """A bar of steps that ends as one line; in a notebook one text output, replaced in place."""

    monitor_interval = 0

    def __init__(self, loader: Any, epoch: int, epochs: int, shown: bool) -> None:
        ipython = sys.modules.get("IPython")
        self.in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self.output: Any = None
        self.epochs = epochs
        steps = length_hint(loader)
        hidden_in_files = False if self.in_notebook else None
        super().__init__(
            desc=f"epoch {epoch}/{epochs}",
            total=steps * epochs,
            initial=steps * epoch,
            bar_format="{desc} {bar:20} {remaining} left",
            mininterval=0.2,
            ncols=100 if self.in_notebook else None,
            file=io.StringIO() if self.in_notebook else None,
            disable=hidden_in_files if shown else True,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self.in_notebook:
            return super().display(msg, pos)
        text = {"text/plain": str(self) if msg is None else msg}
        if self.output is None:
            from IPython.display import display

            self.output = display(text, raw=True, display_id=True)
        else:
            self.output.update(text, raw=True)

    def show(self, history: list[dict[str, Any]], seconds: float) -> None:
        """Name the last epoch, its loss, and the time so far."""
        loss = [f"loss {history[-1]['loss']:.4g}"] if history else []
        line = " · ".join([f"epoch {len(history)}/{self.epochs}", *loss, f"{seconds:.1f} s"])
        self.set_description_str(line, refresh=False)

    def close(self) -> None:
        self.bar_format = "{desc}"
        super().close()
