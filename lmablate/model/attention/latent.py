"""Multi-head latent attention: keys and values of all heads come from one narrow vector per token."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lmablate.core.errors import ConfigError
from lmablate.model.attention.base import Attention, AttentionShape, Settings
from lmablate.model.attention.heads import biased
from lmablate.model.attention.scores import EVERYTHING, attend, attend_cached
from lmablate.model.norm import RMSNorm
from lmablate.model.posemb import AttentionContext, CachedKV
from lmablate.model.primitives import Linear, apply_all, exact
from lmablate.model.types import PositiveFloat, PositiveInt


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C).

    A token caches ``c = norm(W_DKV x)`` of `kv_rank` channels and one key ``k_R = W_KR x`` of `rope_head_dim` channels, which all heads
    share and the position embedding rotates. Head h has the key ``[W_UK c ; k_R]``, the value ``W_UV c`` of `v_head_dim` channels
    (None: head_dim) and the query ``W_UQ norm(W_DQ x)`` with `q_rank` channels between (None: one matrix from x). Of the query,
    head_dim channels meet ``W_UK c`` and the last `rope_head_dim` meet k_R. Scores are scaled by ``1 / sqrt(head_dim + rope_head_dim)``
    unless `scale` is given. `qkv_bias` applies to the two matrices from x to narrow vectors, as in the released code; a full-rank query
    has no bias.
    """

    score_only: ClassVar[tuple[str, ...]] = ("q_down", "q_proj")

    def __init__(
        self,
        shape: AttentionShape,
        *,
        layer: int,
        q_rank: PositiveInt | None,
        kv_rank: PositiveInt,
        rope_head_dim: PositiveInt,
        v_head_dim: PositiveInt | None,
        norm_eps: PositiveFloat,
        scale: PositiveFloat | None,
    ) -> None:
        super().__init__(shape, layer=layer, scale=scale)
        _check(shape)
        self.kv_rank, self.rope_head_dim = kv_rank, rope_head_dim
        self.v_head_dim = v_head_dim or shape.head_dim
        d, bias = shape.d_model, shape.qkv_bias
        q_width = shape.n_heads * (shape.head_dim + rope_head_dim)
        self.q_down = Linear(d, q_rank, bias=bias) if q_rank else None
        self.q_norm = RMSNorm(q_rank, eps=norm_eps, gain=None, unit_offset=None) if q_rank else None
        self.q_proj = Linear(q_rank or d, q_width, bias=False)
        self.kv_down = Linear(d, kv_rank + rope_head_dim, bias=bias)
        self.kv_norm = RMSNorm(kv_rank, eps=norm_eps, gain=None, unit_offset=None)
        self.kv_proj = Linear(kv_rank, shape.n_heads * (shape.head_dim + self.v_head_dim), bias=False)
        self.out_proj = Linear(shape.n_heads * self.v_head_dim, d, bias=shape.out_bias)
        self.dropout = nn.Dropout(shape.dropout)

    def heads(self, x: Tensor) -> Tensor:
        """Split into heads, ``[..., T, H * n] -> [..., H, T, n]``."""
        return x.unflatten(-1, (self.shape.n_heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        head_dim = self.shape.head_dim
        q, c = apply_all(x, self.q_down or self.q_proj, self.kv_down)
        if self.q_norm is not None:
            q = self.q_proj(self.q_norm(exact(q)))
        q, q_turned = self.heads(q).split((head_dim, self.rope_head_dim), -1)
        c, k_turned = c.split((self.kv_rank, self.rope_head_dim), -1)
        c = self.kv_norm(exact(c)).to(q.dtype)
        q_turned, k_turned = (x.to(q.dtype) for x in positions.rotate(q_turned, k_turned.unsqueeze(-3)))
        scale = self.scale or (head_dim + self.rope_head_dim) ** -0.5
        if positions.kv_cache is not None:
            token = torch.cat((c.unsqueeze(-3), k_turned), -1)
            if (kv := positions.kv_cache(self.layer, (token,))) is not None:
                return self.output(self.read(q, q_turned, kv, scale), x)

        k, v = self.heads(self.kv_proj(c)).split((head_dim, self.v_head_dim), -1)
        q_turned, bias = biased(q_turned, positions, self.layer, scale)
        q = torch.cat((q, q_turned), -1)
        k = torch.cat((k, k_turned.expand(*k.shape[:-1], -1)), -1)
        y = attend(
            q,
            k,
            v,
            bias=bias,
            span=EVERYTHING,
            scale=scale,
            soft_cap=self.shape.soft_cap,
            dropout=self.shape.dropout if self.training else 0.0,
            may_read=positions.may_read,
        )
        return self.output(y, x)

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """Join the heads' results `y`, ``[..., H, T, v_head_dim] -> [..., T, D]``. Subclasses may gate them by `x`, the branch's input
        ``[..., T, D]``."""
        return self.dropout(self.out_proj(y.transpose(-3, -2).flatten(-2)))

    def cached(self) -> list[tuple[int, int]]:
        return [(1, self.kv_rank + self.rope_head_dim)]

    def read(self, q: Tensor, q_turned: Tensor, kv: CachedKV, scale: float) -> Tensor:
        """Return the attention of a chunk's queries, ``[..., H, n, v_head_dim]``. W_UK is applied to the queries and W_UV to the output
        (section 2.1.2 of the paper): ``q^T W_UK c`` is ``(W_UK^T q)^T c``, so that c itself is key and value of all heads."""
        up_key, up_value = self.kv_proj.weight.unflatten(0, (self.shape.n_heads, -1)).split(
            (self.shape.head_dim, self.v_head_dim), 1
        )
        q_turned, bias = biased(q_turned, kv.positions, self.layer, scale)
        (token,) = kv.cached
        y = attend_cached(
            torch.cat((_by_head(q, up_key), q_turned), -1),
            token,
            token[..., : self.kv_rank],
            bias=bias,
            read=kv.read,
            scale=scale,
            soft_cap=self.shape.soft_cap,
        )
        return _by_head(y, up_value.mT)

    @staticmethod
    def rotated_width(head_dim: int, settings: Settings) -> int:
        return settings["rope_head_dim"]

    @classmethod
    def matmul_params(cls, shape: AttentionShape, settings: Settings) -> int:
        d, h, n, r = shape.d_model, shape.n_heads, shape.head_dim, settings["rope_head_dim"]
        q, c, v = settings.get("q_rank"), settings["kv_rank"], settings.get("v_head_dim") or shape.head_dim
        query = (d * q if q else 0) + (q or d) * h * (n + r)
        return query + d * (c + r) + c * h * (n + v) + h * v * d

    @classmethod
    def score_macs(cls, shape: AttentionShape, settings: Settings) -> int:
        v = settings.get("v_head_dim") or shape.head_dim
        return shape.n_heads * (shape.head_dim + settings["rope_head_dim"] + v)

    @classmethod
    def cached_score_macs(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return the multiply-adds with the latent vector as key and value, which is wider than those of a head."""
        return shape.n_heads * (2 * settings["kv_rank"] + settings["rope_head_dim"])

    @classmethod
    def n_bias_and_gain_params(cls, shape: AttentionShape, settings: Settings) -> int:
        q, c, r = settings.get("q_rank") or 0, settings["kv_rank"], settings["rope_head_dim"]
        return q + c + (q + c + r) * shape.qkv_bias + shape.d_model * shape.out_bias

    @classmethod
    def cached_numbers(cls, shape: AttentionShape, settings: Settings) -> int:
        return settings["kv_rank"] + settings["rope_head_dim"]


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """``[B, H, n, i] -> [B, H, n, j]`` by one matrix per head, ``[H, i, j]``, without copying the matrices for each text."""
    rows = x.transpose(0, 1)
    y = torch.bmm(rows.flatten(1, 2), weight.to(x.dtype))
    return y.view(*rows.shape[:-1], -1).transpose(0, 1)


def _check(shape: AttentionShape) -> None:
    if shape.n_kv_heads != shape.n_heads:
        raise ConfigError(
            f"attention=mla has keys and values of every head from one latent vector, and no model.n_kv_heads (got {shape.n_kv_heads} "
            f"for model.n_heads={shape.n_heads}): leave it out; attention.kv_rank sets the size of the cache"
        )
    if shape.qk_norm is not None or shape.v_norm is not None:
        raise ConfigError(
            "attention=mla norms its latent vectors, and a norm on the heads would need the keys that it does not keep: "
            "use a stability option without qk_norm or v_norm"
        )
