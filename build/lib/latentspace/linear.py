"""A linear layer whose large products on the CPU are oneDNN's.

torch hands float32 matrix products on the CPU to MKL, which leaves AVX-512 unused on other makers'
processors. oneDNN, which torch carries for its convolutions, uses it wherever it is: on a core of
an AMD EPYC a layer 500 x 500 runs at twice the speed, in the same float32 arithmetic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Linear"]

SMALLEST = 2**20  # multiplications; below it the detour costs more than it saves
HERE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch promises nothing about this name
)


class Linear(nn.Linear):
    """As `nn.Linear`, to rounding; its gradients by oneDNN cannot be differentiated again."""

    def forward(self, x: Tensor) -> Tensor:
        suits = x.ndim == 2 and x.dtype == self.weight.dtype == torch.float32
        large = len(x) * self.weight.numel() >= SMALLEST
        if HERE and suits and large and x.device.type == "cpu":
            return _OneDNN.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class _OneDNN(torch.autograd.Function):
    """``x W' + b`` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if to_x else None,
            _product(gradient.t(), x.t()) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a b' + bias``."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
