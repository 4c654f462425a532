"""Attention with keys and values per query head, per group of query heads, or shared by all."""

from typing import ClassVar

from torch import Tensor, nn

from lmablate.core.errors import ConfigError
from lmablate.model.attention.base import Attention, AttentionShape, Settings
from lmablate.model.attention.scores import EVERYTHING, AttentionSpan, attend, attend_cached
from lmablate.model.posemb import AttentionContext, CachedKV
from lmablate.model.primitives import Linear, apply_all, exact
from lmablate.model.types import PositiveFloat


class HeadAttention(Attention):
    """Multi-head attention, ``softmax(scale q k^T + bias) v`` (Vaswani et al. 2017, eq. 1); `scale` defaults to ``1 / sqrt(head_dim)``.
    Query head h reads key/value head ``h // (n_heads / n_kv_heads)``. Subclasses set the span of a layer."""

    # A constant added to every key shifts all scores of a query equally, which softmax ignores.
    may_be_idle: ClassVar[tuple[str, ...]] = ("k_proj.bias.weight",)
    score_only: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj")

    def __init__(self, shape: AttentionShape, *, layer: int, scale: float | None, span: AttentionSpan) -> None:
        super().__init__(shape, layer=layer, scale=scale)
        self.span = span
        inner, inner_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q_proj = Linear(shape.d_model, inner, bias=shape.qkv_bias)
        self.k_proj = Linear(shape.d_model, inner_kv, bias=shape.qkv_bias)
        self.v_proj = Linear(shape.d_model, inner_kv, bias=shape.qkv_bias)
        self.out_proj = Linear(inner, shape.d_model, bias=shape.out_bias)
        (q_width, k_width), (v_width,) = _norm_widths(shape)
        self.q_norm = shape.qk_norm(q_width) if shape.qk_norm else None
        self.k_norm = shape.qk_norm(k_width) if shape.qk_norm else None
        self.v_norm = shape.v_norm(v_width) if shape.v_norm else None
        self.dropout = nn.Dropout(shape.dropout)

    def heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """Split into heads, ``[..., T, H * head_dim] -> [..., H, T, head_dim]``, and apply `norm` if there is one."""
        if norm is not None and self.shape.norm_all_heads:
            x, norm = norm(exact(x)).to(x.dtype), None
        x = x.unflatten(-1, (-1, self.shape.head_dim)).transpose(-3, -2)
        return x if norm is None else norm(exact(x)).to(x.dtype)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        q, k, v = apply_all(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = self.heads(q, self.q_norm), self.heads(k, self.k_norm), self.heads(v, self.v_norm)
        q, k = (x.to(v.dtype) for x in positions.rotate(q, k))
        if positions.kv_cache is not None and (kv := positions.kv_cache(self.layer, (k, v))) is not None:
            return self.output(self.read(q, kv), x)
        q, bias = biased(q, positions, self.layer, self.scale)
        group = self.shape.n_heads // self.shape.n_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
        y = attend(
            q,
            k,
            v,
            bias=bias,
            span=self.span,
            scale=self.scale,
            soft_cap=self.shape.soft_cap,
            dropout=self.shape.dropout if self.training else 0.0,
            may_read=positions.may_read,
        )
        return self.output(y, x)

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """Join the heads' results `y`, ``[..., H, T, head_dim] -> [..., T, D]``. Subclasses may gate them by `x`, the branch's input
        ``[..., T, D]``."""
        return self.dropout(self.out_proj(y.transpose(-3, -2).flatten(-2)))

    def cached(self) -> list[tuple[int, int]]:
        return [(self.shape.n_kv_heads, self.shape.head_dim)] * 2

    def read(self, q: Tensor, kv: CachedKV) -> Tensor:
        """Return the attention of a chunk's queries, ``[..., H, n, head_dim]`` like `q`."""
        q, bias = biased(q, kv.positions, self.layer, self.scale)
        k, v = kv.cached
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return attend_cached(q, k, v, bias=bias, read=kv.read, scale=scale, soft_cap=self.shape.soft_cap)

    @classmethod
    def matmul_params(cls, shape: AttentionShape, settings: Settings) -> int:
        return 2 * shape.d_model * (shape.n_heads + shape.n_kv_heads) * shape.head_dim

    @classmethod
    def score_macs(cls, shape: AttentionShape, settings: Settings) -> int:
        return 2 * shape.n_heads * shape.head_dim

    @classmethod
    def n_bias_and_gain_params(cls, shape: AttentionShape, settings: Settings) -> int:
        qkv = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
        return qkv * shape.qkv_bias + shape.d_model * shape.out_bias

    @classmethod
    def norm_widths(cls, shape: AttentionShape, settings: Settings) -> tuple[list[int], list[int]]:
        return _norm_widths(shape)

    @classmethod
    def cached_numbers(cls, shape: AttentionShape, settings: Settings) -> int:
        return 2 * shape.n_kv_heads * shape.head_dim


def _norm_widths(shape: AttentionShape) -> tuple[list[int], list[int]]:
    q = shape.head_dim * (shape.n_heads if shape.norm_all_heads else 1)
    kv = shape.head_dim * (shape.n_kv_heads if shape.norm_all_heads else 1)
    return [q, kv], [kv]


def biased(q: Tensor, positions: AttentionContext, layer: int, scale: float | None) -> tuple[Tensor, Tensor | None]:
    """Return the queries of this layer, and the sum of all biases of its scaled scores."""
    q, own = positions.relative(q, layer)
    if own is None:
        return q, positions.bias
    own = own * (q.shape[-1] ** -0.5 if scale is None else scale)
    return q, own if positions.bias is None else own + positions.bias


class MultiHead(HeadAttention):
    """Multi-head attention in which every query head has its own keys and values."""

    def __init__(self, shape: AttentionShape, *, layer: int, scale: PositiveFloat | None) -> None:
        if shape.n_kv_heads != shape.n_heads:
            raise ConfigError(
                f"attention=mha has one key/value head a query head, but model.n_kv_heads={shape.n_kv_heads} and "
                f"model.n_heads={shape.n_heads}: leave model.n_kv_heads out, or use attention=gqa"
            )
        super().__init__(shape, layer=layer, scale=scale, span=EVERYTHING)


class GroupedQuery(HeadAttention):
    """Groups of ``n_heads / n_kv_heads`` query heads share one key/value head (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, shape: AttentionShape, *, layer: int, scale: PositiveFloat | None) -> None:
        if not 1 < shape.n_kv_heads < shape.n_heads:
            raise ConfigError(
                f"attention=gqa needs 1 < model.n_kv_heads < model.n_heads, got {shape.n_kv_heads} and {shape.n_heads}: "
                "use attention=mqa for one key/value head, attention=mha for as many as there are query heads"
            )
        super().__init__(shape, layer=layer, scale=scale, span=EVERYTHING)


class MultiQuery(HeadAttention):
    """All query heads of a layer share one key/value head (Shazeer 2019, arXiv 1911.02150)."""

    def __init__(self, shape: AttentionShape, *, layer: int, scale: PositiveFloat | None) -> None:
        if shape.n_kv_heads != 1:
            raise ConfigError(
                f"attention=mqa has one key/value head, but model.n_kv_heads={shape.n_kv_heads}: "
                "leave model.n_kv_heads out, or use attention=gqa"
            )
        super().__init__(shape, layer=layer, scale=scale, span=EVERYTHING)
