"""Cross entropy from the head's input, a few rows of logits at a time.

The logits are by far the largest tensors of a model with a large vocabulary. Here each chunk of rows becomes loss and gradient at once
and is freed. Only the gradients of the hidden states and of the head's weight live until the backward pass. In the products' precision
the logits equal the plain loss's to the bit; the weight's gradient is a sum over chunks, in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # rows of a product; at vocabulary 32,000 their logits take 33 MB in bf16, and larger chunks are no faster
TILE = 16  # rows of a chunk that become loss and gradient at once, so that they stay in the processor's cache
WORTH = 1 << 22  # logits of a pass; below it the plain loss is as fast, and its logits take up to 16 MiB


def worth_chunking(rows: int, vocab_size: int) -> bool:
    """Return True if the loss of `rows` tokens is computed in chunks: by size alone, so that a run is the same everywhere."""
    return rows * vocab_size > WORTH


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: Tensor | None,
    soft_cap: float | None,
    compute_dtype: torch.dtype | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Return (objective, nats) of ``logits = hidden W^T``, capped as ``c tanh(logits / c)`` if `soft_cap` is on.

    `nats` is the mean cross entropy over the targets that are not `ignore_index`, the objective ``nats + z_loss * mean(log^2 Z)``.
    `hidden` is ``[..., D]``, `weight` ``[V, D]``, `targets` ``[...]``, and the results are scalars. Or all have a leading member axis,
    and `z_loss` and the results are ``[K]``. Products run in `compute_dtype` (None: that of `hidden`), all else in fp32. Only the
    objective has a gradient, and its backward pass runs once.
    """
    if weight.ndim == 2:  # as one member, so that it sums in the order of a gang
        hidden, weight, targets = hidden[None], weight[None], targets[None]
        z_loss = None if z_loss is None else z_loss.reshape(1)
        objective, nats = _LinearCrossEntropy.apply(
            hidden, weight, targets, z_loss, soft_cap, compute_dtype, ignore_index, torch.is_grad_enabled()
        )
        return objective[0], nats[0]
    return _LinearCrossEntropy.apply(
        hidden, weight, targets, z_loss, soft_cap, compute_dtype, ignore_index, torch.is_grad_enabled()
    )


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with a member axis. With p the softmax, ``d nats / d logits = (p - onehot) / n`` and ``d log^2 Z / d
    logits = 2 log Z p``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: Tensor | None,
        cap: float | None,
        dtype: torch.dtype | None,
        ignore_index: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        targets = targets.flatten(1)
        kept = targets != ignore_index
        count = kept.sum(1, keepdim=True)
        share = kept.to(exact) / count  # weight of each row in the mean
        nats, log2_z = torch.empty_like(share), torch.empty_like(share)
        z = None if z_loss is None else z_loss.view(-1, 1, 1)
        step = TILE if hidden.device.type == "cpu" else CHUNK
        x = hidden.flatten(1, -2).to(dtype or hidden.dtype)
        w = weight.to(x.dtype)
        if with_gradient:
            ctx.dx = torch.empty_like(x, dtype=hidden.dtype)
            ctx.dw = torch.zeros_like(weight)
        for start in range(0, x.shape[1], CHUNK):
            chunk = x[:, start : start + CHUNK]
            logits = torch.bmm(chunk, w.mT)
            for first in range(0, chunk.shape[1], step):
                tile, rows = slice(first, first + step), slice(start + first, start + min(first + step, CHUNK))
                _tile_loss(
                    logits[:, tile], targets[:, rows], kept[:, rows], share[:, rows], z, cap,
                    nats[:, rows], log2_z[:, rows], with_gradient,
                )  # fmt: skip
            if with_gradient:  # `logits` now contains their gradient
                ctx.dx[:, start : start + CHUNK] = torch.bmm(logits, w)
                _add_product(ctx.dw, logits.mT, chunk)
        ctx.shape = hidden.shape
        mean = nats.masked_fill_(~kept, 0).sum(1) / count.squeeze(1)
        ctx.mark_non_differentiable(mean)
        if z_loss is None:
            return mean.clone(), mean
        return mean + z_loss * (log2_z.masked_fill_(~kept, 0).sum(1) / count.squeeze(1)), mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.dx is None:
            raise RuntimeError("this loss gives its gradients away in the backward pass, which can run once only")
        dx, dw, ctx.dx, ctx.dw = ctx.dx, ctx.dw, None, None
        if grad.device.type != "cpu" or not bool((grad == 1).all()):  # on a GPU this test would synchronise
            dx, dw = dx.mul_(grad.view(-1, 1, 1)), dw.mul_(grad.view(-1, 1, 1))
        return dx.view(ctx.shape), dw, None, None, None, None, None, None


def _tile_loss(
    logits: Tensor,
    targets: Tensor,
    kept: Tensor,
    share: Tensor,
    z: Tensor | None,
    cap: float | None,
    nats: Tensor,
    log2_z: Tensor,
    with_gradient: bool,
) -> None:
    """Fill `nats` and `log2_z` for a few rows, and overwrite their `logits` with the gradient of the objective."""
    values = logits.to(share.dtype)
    if cap is not None:
        values.div_(cap).tanh_().mul_(cap)
    target = targets.masked_fill(~kept, 0).unsqueeze(-1)
    of_target = values.gather(-1, target)
    # log Z from the largest probability, which is exp(max - log Z)
    largest = values.amax(-1, keepdim=True)
    p = torch.softmax(values, -1)
    log_z = largest - p.amax(-1, keepdim=True).log()
    nats.copy_((log_z - of_target).squeeze(-1))
    log2_z.copy_(log_z.squeeze(-1).square())
    if not with_gradient:
        return
    part = share.unsqueeze(-1)
    p.mul_(part if z is None else part * (1 + 2 * z * log_z)).scatter_add_(-1, target, -part)
    if cap is not None:
        p.mul_(values.div_(cap).square_().neg_().add_(1))  # the derivative of the cap
    logits.copy_(p)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b`` for ``[K, ...]`` matrices, summed in the precision of `total`."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b))
