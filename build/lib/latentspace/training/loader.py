"""Batches of rows from arrays in memory."""

from collections.abc import Iterator
from typing import Any

import torch

from latentspace.training.tensors import as_tensor

__all__ = ["batches"]


class batches:
    """Whole batches of rows from arrays in memory, without a per-row collate.

    Iterating yields tuples (also for one array) of new tensors with the chosen rows, on the device
    of the arrays; arrays already on a GPU are the fastest there. `fit` sets ``generator`` from
    (seed, epoch), so the order of every epoch is reproducible.

    Parameters
    ----------
    *arrays : array, DataFrame or tensor, (n, ...), see `tensors.as_tensor`
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

    def __init__(
        self, *arrays: Any, batch_size: int, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        self.arrays = [as_tensor(array) for array in arrays]
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

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.batch_size * self.parts)
        return full + (rest >= self.parts and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        if self.shuffle:
            order = torch.randperm(self.n, generator=self.generator)
        else:
            order = torch.arange(self.n)
        chunks = order.to(self.arrays[0].device).split(self.batch_size * self.parts)
        for chunk in chunks[: len(self)]:
            size = len(chunk) // self.parts
            rows = chunk[self.part * size : (self.part + 1) * size]
            yield tuple(array[rows] for array in self.arrays)
