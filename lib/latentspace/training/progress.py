"""How a run goes: what an epoch logs, when the run stops, and the one line that shows it."""

import io
import math
import sys
from operator import length_hint

import torch
from tqdm.std import tqdm

__all__ = ["Line", "Log", "require_finite", "stalled", "with_validation"]


class Log:
    """What ``step`` returns in one epoch, kept on the device: a GPU is waited for once an epoch.

    `add` and `means` raise FloatingPointError for a loss that is NaN or infinite, on a GPU only
    `means`, and ValueError for what is not a dict of scalars with "loss".
    """

    def __init__(self, epoch, device):
        self.epoch, self.device = epoch, device
        self.names, self.values, self.sizes = None, [], []

    def add(self, values, batch):
        """Log the scalars of one batch."""
        names = list(values) if isinstance(values, dict) else None
        self.names = self.names or names
        if names is None or "loss" not in names or names != self.names:
            raise ValueError(f"step must return a dict with 'loss', got {values!r:.80}")
        scalars = [torch.as_tensor(v, device=self.device).detach() for v in values.values()]
        if any(scalar.ndim for scalar in scalars):
            raise ValueError(f"step must return scalars, got {values!r:.80}")
        if self.device.type == "cpu":
            self._require_finite(len(self.sizes), scalars[names.index("loss")].item())
        self.values.append(torch.stack(scalars))
        self.sizes.append(_rows(batch))

    def means(self, processes):
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

    def _require_finite(self, batch, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss} in epoch {self.epoch}, batch {batch + 1}: look for bad values in "
                "the data, lower the learning rate or set clip_norm"
            )


def _rows(batch):
    """Rows of the first tensor in a batch, its weight in the means."""
    while isinstance(batch, dict | list | tuple):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def require_finite(parameters, epoch):
    """Raise FloatingPointError for a parameter that is NaN or infinite.

    The last gradient of an epoch can make it so although every loss was finite.
    """
    if not torch.stack([p.detach().isfinite().all() for p in parameters]).all():
        raise FloatingPointError(f"a parameter is not finite after epoch {epoch}: set clip_norm?")


def with_validation(row, validate, model, monitor):
    """Add what ``validate(model)`` returns, if given, to the row of an epoch.

    Raises ValueError for a name logged twice and if ``monitor`` is not logged at all.
    """
    if validate is not None:
        with torch.no_grad():
            extra = {name: float(value) for name, value in validate(model).items()}
        if both := row.keys() & extra.keys():
            raise ValueError(f"validate logs {sorted(both)}, which step or fit logs already")
        row = row | extra
    if monitor not in row:
        raise ValueError(f"monitor {monitor!r} is not among the logged {list(row)}")
    return row


def stalled(history, monitor, patience):
    """Whether the best value is ``patience`` epochs old: all that early stopping remembers."""
    if patience is None or not history:
        return False
    values = [math.inf if math.isnan(row[monitor]) else row[monitor] for row in history]
    return len(values) - 1 - values.index(min(values)) >= patience


class Line(tqdm):
    """A bar of steps that ends as one line; in a notebook one text output, replaced in place."""

    monitor_interval = 0

    def __init__(self, loader, epoch, epochs, shown):
        ipython = sys.modules.get("IPython")
        self.in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self.output, self.epochs = None, epochs
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
        """Name the last epoch, its loss and monitored value, and the time so far."""
        row = history[-1] if history else {"epoch": 0}
        values = [f"{k} {row[k]:.4g}" for k in dict.fromkeys(("loss", monitor)) if k in row]
        line = " · ".join([f"epoch {row['epoch']}/{self.epochs}", *values, f"{seconds:.1f} s"])
        self.set_description_str(line, refresh=False)

    def close(self):
        self.bar_format = "{desc}"
        super().close()
