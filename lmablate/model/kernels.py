"""Norms and attention rewritten for speed: the same numbers up to rounding, with fewer passes over memory on a CPU.

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


def short_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, dropout: float = 0.0
) -> Tensor:
    """Return ``softmax(scale q k^T + mask) v`` for short texts in bf16 on a CPU: ``[N, H, T, head_dim]`` and a mask ``[..., T, K]``
    without a gradient. `dropout` is the share of the softmax that is set to 0; the rest counts ``1 / (1 - dropout)`` times. A compiled
    model draws once for two calls with the same q, k and v.

    The scores are rounded to bf16 once, after the mask; softmax sums in fp32. torch's fused kernel for bf16 on a CPU has a backward
    pass of four times this one's time, and that for fp32 twice (docs/decisions.md). A compiler calls it as it is: from its parts it
    would compute every exponential twice.
    """
    share = min(max(round((1 - dropout) * _DRAWS), 1), _DRAWS - 1) if dropout else _DRAWS
    if dropout:
        v = v * (_DRAWS / share)
    if torch.compiler.is_compiling():
        return torch.ops.lmablate.attention(q, k, v, mask, scale, share)[0]
    return _ShortAttention.apply(q, k, v, mask, scale, share)


_DRAWS = 2**16  # values of a 16-bit number


def _draw(shape: tuple[int, ...], share: int, dtype: torch.dtype) -> Tensor:
    """Return ones at a share of `share` / 65,536, and zeros. Four 16-bit numbers from each drawn one are seven times as fast as torch's
    Bernoulli numbers on a CPU."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return torch.lt(draws.view(shape), share - _DRAWS // 2, out=torch.empty(shape, dtype=dtype))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the softmax P ``[N, H, T, K]``, and which of it is kept: a `share` of 65,536, all if empty."""
    lead = q.shape[:2]
    scores = q.new_empty(*lead, q.shape[2], k.shape[2])
    if mask is not None:
        scores.copy_(mask)
    flat, beta = scores.flatten(0, 1), 0.0 if mask is None else 1.0
    torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).mT, beta=beta, alpha=scale, out=flat)
    p = torch.softmax(scores, -1)
    kept = q.new_empty(0) if share == _DRAWS else _draw((*lead, q.shape[2], k.shape[2]), share, q.dtype)
    read = p * kept if len(kept) else p
    return torch.bmm(read.flatten(0, 1), v.flatten(0, 1)).unflatten(0, lead), p, kept


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; that of the scores is ``P * (dP - rowsum(P * dP))``, where dP is ``g v^T`` of what was kept."""
    lead = q.shape[:2]
    grad, q, k, v, p = (x.flatten(0, 1) for x in (grad, q, k, v, p))
    dp, read = torch.bmm(grad, v.mT), p
    if len(kept):
        kept = kept.flatten(0, 1)
        dp, read = dp.mul_(kept), p * kept
    ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
    dq, dk, dv = torch.bmm(ds, k).mul_(scale), torch.bmm(ds.mT, q).mul_(scale), torch.bmm(read.mT, grad)
    return dq.unflatten(0, lead), dk.unflatten(0, lead), dv.unflatten(0, lead)


class _ShortAttention(torch.autograd.Function):
    """`short_attention` where nothing is compiled."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, share: int) -> Tensor:
        y, p, kept = _forward(q, k, v, mask, scale, share)
        ctx.save_for_backward(q, k, v, p, kept)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p, kept = ctx.saved_tensors
        return (*_backward(grad, q, k, v, p, kept, ctx.scale), None, None, None)


# Operators that a compiler calls and does not look into. `custom_op` would add a third of a millisecond to every call.
_LIBRARY = torch.library.Library("lmablate", "DEF")
_LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, int share) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor p, Tensor kept, float scale)"
    " -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("attention", _forward, "CPU")
_LIBRARY.impl("attention_backward", _backward, "CPU")


@torch.library.register_fake("lmablate::attention", lib=_LIBRARY)
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, share: int) -> tuple[Tensor, Tensor, Tensor]:
    p = (*q.shape[:-1], k.shape[-2])
    return v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(p), q.new_empty(0 if share == _DRAWS else p)


@torch.library.register_fake("lmablate::attention_backward", lib=_LIBRARY)
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, _, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, *output[1:])


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.lmablate.attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None)


torch.library.register_autograd("lmablate::attention", _gradients, setup_context=_keep, lib=_LIBRARY)
