"""From queries, keys and values to what attention reads: the mask, the fused path and the explicit one."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reach(NamedTuple):
    """Which of the keys that it may read a query does read: those less than `window` tokens away (None: all), and only at
    distances that `stride` divides (None: all)."""

    window: int | None = None
    stride: int | None = None


EVERYTHING = Reach()
MayRead = Tensor | Literal[True] | None  # a mask; True: every key; None: a query's own and those before it


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
    may_read: MayRead = None,
) -> Tensor:
    """Attention of q ``[..., H, T, head_dim]``, k ``[..., H, K, head_dim]`` and v ``[..., H, K, v_head_dim]`` by the fastest path
    that is exact for the options given. `scale` multiplies ``q k^T``; None stands for ``1 / sqrt(head_dim)``. `may_read` as in
    `visible`; K is T but where every query reads every key."""
    if soft_cap is not None:
        return explicit_attention(
            q, k, v, bias=bias, reach=reach, scale=scale, soft_cap=soft_cap, dropout=dropout, may_read=may_read
        )
    length = q.shape[-2]
    lead = q.shape[:-3]  # the fused kernels want exactly one axis before the heads
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    all_before = reach.stride is None and (reach.window is None or reach.window >= length)
    if bias is None and (may_read is None or may_read is True) and all_before:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=may_read is None, dropout_p=dropout, scale=scale)
    else:
        mask = torch.zeros((), device=q.device, dtype=q.dtype) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible(length, reach, q.device, may_read), mask, -torch.inf)
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
    may_read: MayRead = None,
) -> Tensor:
    """The same, written out: the only path for a soft cap, ``c tanh(s / c)`` (Gemma 2, arXiv 2408.00118, section 2), and
    the oracle of the fused ones. The bias is added before the cap, so that the cap bounds what the softmax sees."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if may_read is not True or reach != EVERYTHING:
        scores = scores.masked_fill(~visible(q.shape[-2], reach, q.device, may_read), -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v


def attend_kept(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    read: Tensor | None,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """The same of the n queries of a piece, q ``[..., H, n, head_dim]``, and of the keys and values kept of G heads, k
    ``[..., G, K, head_dim]`` and v ``[..., G, K, w]``; `bias` is ``[..., H, n, K]``, `read` as in `Earlier`. Query heads that
    share keys are rows of one product, so that nothing kept is copied. In the precision of what is kept."""
    n = q.shape[-2]
    rows = (q * scale).to(k.dtype).unflatten(-3, (k.shape[-3], -1)).flatten(-3, -2)
    scores = (rows @ k.mT).unflatten(-2, (-1, n)).flatten(-4, -3)
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if read is not None:
        scores = scores.masked_fill(~read, -torch.inf)
    weights = scores.softmax(-1).to(v.dtype).unflatten(-3, (k.shape[-3], -1)).flatten(-3, -2)
    return (weights @ v).to(q.dtype).unflatten(-2, (-1, n)).flatten(-4, -3)


def visible(length: int, reach: Reach, device: torch.device, may_read: MayRead = None) -> Tensor:
    """Bool ``[T, T]``, query by key, or ``[..., 1, T, T]`` like `may_read`: what a query may read within the reach of its
    layer. Without `may_read` that is itself and what came before it, and where it is True everything; a window then has two
    sides."""
    t = torch.arange(length, device=device)
    distance = t[:, None] - t[None, :]
    if may_read is True:
        read = torch.ones_like(distance, dtype=torch.bool)
    else:
        read = distance >= 0 if may_read is None else may_read
    if reach.window is not None:
        near = distance if may_read is None else distance.abs()
        read = read & (near < reach.window)
    if reach.stride is not None:
        read = read & (distance % reach.stride == 0)
    return read


def with_prefix(length: int, prefix: Tensor) -> Tensor:
    """Bool ``[..., 1, T, T]`` for lengths `prefix` ``[...]``: a query may read itself, what came before it, and every token
    of the prefix of its text (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1). Of length 1 or 0 it is causal, of length
    T it reads everything."""
    t = torch.arange(length, device=prefix.device)
    return (t[None, :] <= t[:, None]) | (t < prefix[..., None, None, None])
