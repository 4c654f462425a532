"""Axis ``attention``: which positions a token reads, and how many heads share keys and values.

An option is built as ``Option(shape, layer=i, **yaml)`` and is called as ``branch(x, positions)`` with x ``[..., T, D]``.
``window_of(layer)`` says how far back a layer of that option reads (None: everything before it), so that the accounting
in budget.py needs no module. The weights of the score matrix come from torch's fused kernel wherever the option allows
it, and from :func:`explicit_attention` where it does not (a soft cap acts between the product and the softmax).
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.errors import ConfigError
from lmablate.model.posemb import Positions
from lmablate.model.primitives import Linear
from lmablate.model.types import PositiveInt


class AttentionShape(NamedTuple):
    """Sizes and settings every attention option shares."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    bias: bool
    dropout: float
    qk_norm: Callable[[int], nn.Module] | None
    soft_cap: float | None


class Attention(nn.Module):
    """Causal multi-head attention, ``softmax(q k^T / sqrt(head_dim) + bias) v`` (Vaswani et al. 2017, eq. 1).

    Query head h reads key/value head ``h // (n_heads / n_kv_heads)``. Subclasses say which layers see a window.
    """

    # A constant added to every key shifts all scores of a query alike, and softmax does not see it.
    may_be_idle: ClassVar[tuple[str, ...]] = ("k_proj.bias.weight",)

    def __init__(self, shape: AttentionShape, *, window: int | None) -> None:
        super().__init__()
        self.shape, self.window = shape, window
        inner, inner_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q_proj = Linear(shape.d_model, inner, bias=shape.bias)
        self.k_proj = Linear(shape.d_model, inner_kv, bias=shape.bias)
        self.v_proj = Linear(shape.d_model, inner_kv, bias=shape.bias)
        self.out_proj = Linear(inner, shape.d_model, bias=shape.bias)
        self.q_norm = shape.qk_norm(shape.head_dim) if shape.qk_norm else None
        self.k_norm = shape.qk_norm(shape.head_dim) if shape.qk_norm else None
        self.dropout = nn.Dropout(shape.dropout)

    def heads(self, x: Tensor) -> Tensor:
        """``[..., T, H * head_dim] -> [..., H, T, head_dim]``."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(-3, -2)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = positions.rotate(q, k)
        group = self.shape.n_heads // self.shape.n_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
        y = attend(
            q,
            k,
            v,
            bias=positions.bias,
            window=self.window,
            soft_cap=self.shape.soft_cap,
            dropout=self.shape.dropout if self.training else 0.0,
        )
        return self.dropout(self.out_proj(y.transpose(-3, -2).flatten(-2)))


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, window: int | None, soft_cap: float | None, dropout: float
) -> Tensor:
    """Causal attention of ``[..., H, T, head_dim]`` tensors by the fastest path that is exact for the options given."""
    if soft_cap is not None:
        return explicit_attention(q, k, v, bias=bias, window=window, soft_cap=soft_cap, dropout=dropout)
    length = q.shape[-2]
    lead = q.shape[:-3]  # the fused kernels want exactly one axis before the heads
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    if bias is None and (window is None or window >= length):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    else:
        mask = torch.zeros((), device=q.device, dtype=q.dtype) if bias is None else bias.to(q.dtype)
        mask = torch.where(visible(length, window, q.device), mask, -torch.inf)
        if mask.ndim > 3:  # a bias of its own for every member
            mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return y.reshape(*lead, *y.shape[-3:])


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, window: int | None, soft_cap: float | None, dropout: float
) -> Tensor:
    """The same, written out: the only path for a soft cap, ``c tanh(s / c)`` (Gemma 2, arXiv 2408.00118, section 2), and
    the oracle of the fused ones. The bias is added before the cap, so that the cap bounds what the softmax sees."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~visible(q.shape[-2], window, q.device), -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v


def visible(length: int, window: int | None, device: torch.device) -> Tensor:
    """Bool ``[T, T]``, query by key: a token reads itself and what came before it, within the last `window` tokens."""
    t = torch.arange(length, device=device)
    distance = t[:, None] - t[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


class MultiHead(Attention):
    """Every query head has keys and values of its own."""

    def __init__(self, shape: AttentionShape, *, layer: int) -> None:
        if shape.n_kv_heads != shape.n_heads:
            raise ConfigError(
                f"attention=mha has one key/value head a query head, but model.n_kv_heads={shape.n_kv_heads} and "
                f"model.n_heads={shape.n_heads}: leave model.n_kv_heads out, or use attention=gqa"
            )
        super().__init__(shape, window=None)

    @staticmethod
    def window_of(layer: int) -> int | None:
        return None


class GroupedQuery(Attention):
    """``n_heads / n_kv_heads`` query heads share one key/value head (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, shape: AttentionShape, *, layer: int) -> None:
        if not 1 < shape.n_kv_heads < shape.n_heads:
            raise ConfigError(
                f"attention=gqa needs 1 < model.n_kv_heads < model.n_heads, got {shape.n_kv_heads} and {shape.n_heads}: "
                "use attention=mqa for one key/value head, attention=mha for as many as there are query heads"
            )
        super().__init__(shape, window=None)

    @staticmethod
    def window_of(layer: int) -> int | None:
        return None


class MultiQuery(Attention):
    """All query heads of a layer share one key/value head (Shazeer 2019, arXiv 1911.02150)."""

    def __init__(self, shape: AttentionShape, *, layer: int) -> None:
        if shape.n_kv_heads != 1:
            raise ConfigError(
                f"attention=mqa has one key/value head, but model.n_kv_heads={shape.n_kv_heads}: "
                "leave model.n_kv_heads out, or use attention=gqa"
            )
        super().__init__(shape, window=None)

    @staticmethod
    def window_of(layer: int) -> int | None:
        return None


class SlidingWindow(Attention):
    """Every layer reads the last `window` tokens, itself included (Mistral 7B, arXiv 2310.06825, section 2)."""

    def __init__(self, shape: AttentionShape, *, layer: int, window: PositiveInt) -> None:
        super().__init__(shape, window=window)

    @staticmethod
    def window_of(layer: int, *, window: int) -> int | None:
        return window


class Interleaved(Attention):
    """`local_per_global` layers with a window, then one that reads everything, and so on (Gemma 2 has 1, Gemma 3 has 5)."""

    def __init__(
        self, shape: AttentionShape, *, layer: int, window: PositiveInt, local_per_global: PositiveInt
    ) -> None:
        super().__init__(shape, window=self.window_of(layer, window=window, local_per_global=local_per_global))

    @staticmethod
    def window_of(layer: int, *, window: int, local_per_global: int) -> int | None:
        return None if layer % (local_per_global + 1) == local_per_global else window
