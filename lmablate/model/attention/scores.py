"""Attention from queries, keys and values: the mask, the fused path and the explicit one."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmablate.model.kernels import short_attention
from lmablate.model.primitives import exact

SHORT = 1024  # keys; on a CPU the scores of shorter texts in bf16 are stored, which is faster than a fused kernel


class AttentionSpan(NamedTuple):
    """Keys visible to a query among those it may read: less than `window` tokens away (None: all), at distances divisible by `stride`
    (None: all)."""

    window: int | None = None
    stride: int | None = None


EVERYTHING = AttentionSpan()
MayRead = Tensor | Literal[True] | None  # a mask; True: every key; None: a query's own and earlier keys


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    span: AttentionSpan,
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
    may_read: MayRead = None,
) -> Tensor:
    """Return attention by the fastest path that is exact for these options.

    q is ``[..., H, T, head_dim]``, k ``[..., H, K, head_dim]`` and v ``[..., H, K, v_head_dim]``. `scale` multiplies ``q k^T``; None:
    ``1 / sqrt(head_dim)``. `may_read` as in `visible`. K equals T unless every query reads every key.
    """
    length, dtype = q.shape[-2], q.dtype
    written_out = dtype.itemsize < 4 and q.device.type == "cpu"  # torch has no fast kernel for it
    short = written_out and k.shape[-2] <= SHORT
    if soft_cap is not None or (short and bias is not None and bias.requires_grad):
        return explicit_attention(
            q, k, v, bias=bias, span=span, scale=scale, soft_cap=soft_cap, dropout=dropout, may_read=may_read
        )
    lead = q.shape[:-3]  # fused kernels need exactly one axis before the heads
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    if written_out and not short:
        q, k, v = exact(q), exact(k), exact(v)
    all_before = span.stride is None and (span.window is None or span.window >= length)
    mask = None
    if bias is not None or isinstance(may_read, Tensor) or not all_before or (short and may_read is None):
        mask = torch.zeros((), device=q.device, dtype=q.dtype) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible(length, span, q.device, may_read), mask, -torch.inf)
        if mask.ndim > 3:  # a separate bias for every member or sequence
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
    if short:
        y = short_attention(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, dropout=dropout)
    else:
        causal = mask is None and may_read is None
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal, scale=scale).to(dtype)
    return y.reshape(*lead, *y.shape[-3:])


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    span: AttentionSpan,
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
    may_read: MayRead = None,
) -> Tensor:
    """Return attention without fused kernels; arguments as in `attend`.

    It is the only path with a soft cap, ``c tanh(s / c)`` (Gemma 2, arXiv 2408.00118, section 2), and the oracle of the fused ones. The
    bias is added before the cap, so that the cap bounds the input of softmax.
    """
    scores = exact(q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if may_read is not True or span != EVERYTHING:
        scores = scores.masked_fill(~visible(q.shape[-2], span, q.device, may_read), -torch.inf)
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v


def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    read: Tensor | None,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """Return attention of a chunk's n queries to the cache, in the precision of the cache.

    q is ``[..., H, n, head_dim]``, k ``[..., G, K, head_dim]`` and v ``[..., G, K, w]`` of G heads, `bias` ``[..., H, n, K]``, `read`
    as in `CachedKV`. Query heads with shared keys are rows of one product, so that the cache is not copied.
    """
    n = q.shape[-2]
    rows = (q * scale).to(k.dtype).unflatten(-3, (k.shape[-3], -1)).flatten(-3, -2)
    scores = exact(rows @ k.mT).unflatten(-2, (-1, n)).flatten(-4, -3)
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if read is not None:
        scores = scores.masked_fill(~read, -torch.inf)
    weights = scores.softmax(-1).to(v.dtype).unflatten(-3, (k.shape[-3], -1)).flatten(-3, -2)
    return (weights @ v).to(q.dtype).unflatten(-2, (-1, n)).flatten(-4, -3)


def visible(length: int, span: AttentionSpan, device: torch.device, may_read: MayRead = None) -> Tensor:
    """Return the keys that a query may read within `span`: bool ``[T, T]``, query by key, or ``[..., 1, T, T]`` like `may_read`.
    `may_read` None is the causal mask; True allows every key. With `may_read` a window has two sides."""
    t = torch.arange(length, device=device)
    distance = t[:, None] - t[None, :]
    if may_read is True:
        read = torch.ones_like(distance, dtype=torch.bool)
    else:
        read = distance >= 0 if may_read is None else may_read
    if span.window is not None:
        near = distance if may_read is None else distance.abs()
        read = read & (near < span.window)
    if span.stride is not None:
        read = read & (distance % span.stride == 0)
    return read


def with_prefix(length: int, prefix: Tensor) -> Tensor:
    """Return the mask of texts with prefixes of lengths `prefix` ``[...]``: bool ``[..., 1, T, T]``.

    A query reads itself, earlier tokens, and the whole prefix of its text (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1). A
    prefix of length 1 or 0 is causal; one of length T reads everything.
    """
    t = torch.arange(length, device=prefix.device)
    return (t[None, :] <= t[:, None]) | (t < prefix[..., None, None, None])
