"""From queries, keys and values to what attention reads: the mask, the fused path and the explicit one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reach(NamedTuple):
    """Which keys a query reads: itself and what came before it, within the last `window` tokens (None: all), and only at
    distances that `stride` divides (None: all)."""

    window: int | None = None
    stride: int | None = None


EVERYTHING = Reach()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    reach: Reach,
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
) -> Tensor:
    """Causal attention of q and k ``[..., H, T, head_dim]`` and v ``[..., H, T, v_head_dim]`` by the fastest path that is
    exact for the options given. `scale` multiplies ``q k^T``; None stands for ``1 / sqrt(head_dim)``."""
    if soft_cap is not None:
        return explicit_attention(q, k, v, bias=bias, reach=reach, scale=scale, soft_cap=soft_cap, dropout=dropout)
    length = q.shape[-2]
    lead = q.shape[:-3]  # the fused kernels want exactly one axis before the heads
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    if bias is None and reach.stride is None and (reach.window is None or reach.window >= length):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    else:
        mask = torch.zeros((), device=q.device, dtype=q.dtype) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible(length, reach, q.device), mask, -torch.inf)
        if mask.ndim > 3:  # a bias of its own for every member or sequence
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return y.reshape(*lead, *y.shape[-3:])


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    reach: Reach,
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
) -> Tensor:
    """The same, written out: the only path for a soft cap, ``c tanh(s / c)`` (Gemma 2, arXiv 2408.00118, section 2), and
    the oracle of the fused ones. The bias is added before the cap, so that the cap bounds what the softmax sees."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~visible(q.shape[-2], reach, q.device), -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v


def visible(length: int, reach: Reach, device: torch.device) -> Tensor:
    """Bool ``[T, T]``, query by key."""
    t = torch.arange(length, device=device)
    distance = t[:, None] - t[None, :]
    read = distance >= 0
    if reach.window is not None:
        read = read & (distance < reach.window)
    if reach.stride is not None:
        read = read & (distance % reach.stride == 0)
    return read
