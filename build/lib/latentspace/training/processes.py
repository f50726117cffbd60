"""One run in several processes: each has its rows, all have the same weights and the same log.

The gradient is averaged over the processes. `batches` leaves out at most processes - 1 rows an
epoch, so that parts are equal; accelerate fills up the last batch of a DataLoader with rows from
its beginning. Batch normalisation sees the rows of its own process.
"""

from collections.abc import Iterable
from typing import Any

import torch

from latentspace.training.tensors import to_device

__all__ = ["Processes"]


class Processes:
    """The processes of one run; alone, without an accelerator, nothing is exchanged.

    Parameters
    ----------
    accelerator : accelerate.Accelerator or None

    Attributes
    ----------
    rank, count : int
        The number of this process, 0 for the main one, and how many there are.

    Raises
    ------
    ValueError
        The accelerator brings a precision of its own or accumulates gradients.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator, self.rank, self.count = accelerator, 0, 1
        if accelerator is not None:
            self.rank, self.count = accelerator.process_index, accelerator.num_processes
            if accelerator.mixed_precision != "no" or accelerator.gradient_accumulation_steps != 1:
                raise ValueError(
                    "accelerator: use fit's mixed_precision; steps are not accumulated"
                )

    def share(self, loader: Any) -> Any:
        """The loader of this process's part of every global batch; `batches` change in place."""
        if self.count == 1:
            return loader
        if hasattr(loader, "parts"):
            loader.part, loader.parts = self.rank, self.count
            return loader
        if isinstance(loader, torch.utils.data.DataLoader):
            return self.accelerator.prepare_data_loader(loader, device_placement=False)
        raise ValueError("several processes share batches(...) or a DataLoader, nothing else")

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Set each gradient to its mean over the processes; one that none used stays None.

        By hand and not by DistributedDataParallel, so that ``step`` may call any method of the
        model and leave parts of it out.
        """
        if self.count == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = grads[0].new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([g.flatten() for g in grads] + [used])
        mean = self.accelerator.reduce(flat, "mean")
        *means, used = mean.split([p.numel() for p in parameters] + [len(parameters)])
        for p, grad, any_used in zip(parameters, means, used.tolist(), strict=True):
            p.grad = grad.view_as(p).to(p.dtype) if any_used else None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a vector of numbers over the processes."""
        if self.count == 1:
            return values
        return self.accelerator.reduce(to_device(values, self.accelerator.device), "sum").cpu()

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors, in place, with those of the main process."""
        if self.count > 1:
            from accelerate.utils import broadcast

            with torch.no_grad():
                for tensor in tensors:
                    tensor.copy_(broadcast(tensor.detach().clone()))
