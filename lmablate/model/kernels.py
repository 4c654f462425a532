"""Norms rewritten for speed: the same numbers up to rounding, with fewer passes over memory on a CPU.

Each works row by row, so that a member of a gang (training/gang.py) gets the bits of a solo run. torch.compile and GPUs use the plain
forms: a compiler fuses them better, and a GPU has kernels for them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps)`` over the last axis; torch has a fused kernel on GPUs only."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, eps)
    return F.rms_norm(x, x.shape[-1:], None, eps)


class _RMSNorm(torch.autograd.Function):
    """With ``s = sqrt(sum(x^2) + D eps)`` and ``y = x sqrt(D) / s``, the gradient is ``sqrt(D)/s (g - x <g, x> / s^2)``. It equals that
    of a weight normalisation with row norm s and gain ``sqrt(D)``, for which torch has a CPU kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        s = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(width * eps).sqrt_()
        ctx.save_for_backward(x, s)
        return x * (math.sqrt(width) / s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, s = ctx.saved_tensors
        width = x.shape[-1]
        gain = torch.full((s.numel(), 1), math.sqrt(width), dtype=x.dtype)
        dx, _ = torch.ops.aten._weight_norm_interface_backward(
            grad.reshape(-1, width).contiguous(), x.reshape(-1, width).contiguous(), gain, s.reshape(-1, 1), 0
        )
        return dx.view(x.shape), None


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Return ``(x - mean(x)) / sqrt(var(x) + eps)`` over the last axis. On a CPU torch's kernel is vectorised only if it has a gain, so
    it gets a gain of ones."""
    width = x.shape[-1:]
    ones = x.new_ones(width) if x.device.type == "cpu" else None
    return F.layer_norm(x, width, ones, None, eps)
