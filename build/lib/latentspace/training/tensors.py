"""Arrays to tensors, and tensors to the device on which a model runs."""

from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["as_tensor", "pick_device", "to_device"]


def as_tensor(array: Any) -> torch.Tensor:
    """A tensor of an array's numbers; it shares the array's memory where torch can.

    Parameters
    ----------
    array : tensor, array, DataFrame or nested sequence
        Of booleans, integers or floats in any byte order, with any strides, read-only or not.
        Unsigned integers of more than 8 bits become signed ones, extended floats float64, because
        torch computes with neither.

    Raises
    ------
    ValueError
        Anything that is not a number, or an integer beyond 2**63 - 1.
    """
    if torch.is_tensor(array):
        return array
    array = np.asarray(array)
    if array.dtype.kind == "O":  # as a DataFrame of several types of number is read
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"an array must hold numbers: {error}") from error
    if array.dtype.kind not in "biufc":
        raise ValueError(f"an array must hold numbers, got {array.dtype}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError("an array holds integers beyond 2**63 - 1")
    wider = {("u", 2): "i4", ("u", 4): "i8", ("u", 8): "i8", ("f", 16): "f8", ("c", 32): "c16"}
    native = array.dtype.newbyteorder("=")
    dtype = np.dtype(wider.get((native.kind, native.itemsize), native))
    return torch.from_numpy(np.require(array.astype(dtype, copy=False), requirements=("C", "W")))


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch``, a tensor or a list, tuple or dict of them, on the device; lists for tuples.

    On MPS, which has no float64, doubles arrive in single precision. Only copies to CUDA may still
    be under way on return: elsewhere they are not safe.
    """
    if torch.is_tensor(batch):
        if device.type == "mps" and batch.dtype == torch.float64:
            batch = batch.float()
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(value, device) for value in batch]
    return batch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for or, by default, the best one here: CUDA, then MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device is None:
        device = next((kind for kind, there in available.items() if there()), "cpu")
    picked = torch.device(device)
    if picked.type in available and not available[picked.type]():
        raise ValueError(f"device {picked} is not available here; use device='cpu' or None")
    return picked


def module_of(model: Any) -> nn.Module:
    """The module that a callable belongs to: itself, its method's, or an empty one."""
    module = getattr(model, "__self__", model)
    return module if isinstance(module, nn.Module) else nn.Module()
