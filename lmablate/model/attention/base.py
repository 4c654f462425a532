"""The base class of attention options: their arguments, and their cost in closed form."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lmablate.model.attention.scores import EVERYTHING, AttentionSpan
from lmablate.model.posemb import AttentionContext

Settings = Mapping[str, Any]  # the keys of an option's YAML


class AttentionShape(NamedTuple):
    """Sizes and settings that every attention option shares. None is off. `qk_norm` builds the norm of queries and of keys from its
    width, per head or, with `norm_all_heads`, over all heads of a token; `v_norm` likewise for values."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_layers: int
    qkv_bias: bool
    out_bias: bool
    dropout: float
    soft_cap: float | None
    qk_norm: Callable[[int], nn.Module] | None
    v_norm: Callable[[int], nn.Module] | None
    norm_all_heads: bool


class Attention(nn.Module):
    """Base class of an attention branch, with its cost, which follows from `shape` alone; ``span`` is the keys its queries read."""

    span: AttentionSpan = EVERYTHING

    def __init__(self, shape: AttentionShape, *, layer: int, scale: float | None) -> None:
        super().__init__()
        self.shape, self.layer, self.scale = shape, layer, scale

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        """Return the branch's output, ``[..., T, D] -> [..., T, D]``."""
        raise NotImplementedError

    def cached(self) -> list[tuple[int, int]]:
        """Return heads and width of each tensor that generation caches per token: the arguments of ``positions.kv_cache``."""
        raise NotImplementedError

    @staticmethod
    def rotated_width(head_dim: int, settings: Settings) -> int:
        """Return the number of a head's channels that the position embedding rotates."""
        return head_dim

    @staticmethod
    def layer_span(layer: int, settings: Settings) -> AttentionSpan:
        """Return the keys that a query of this layer reads."""
        return EVERYTHING

    @classmethod
    def matmul_params(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return the matrix entries of one layer, which are its multiply-adds per token."""
        raise NotImplementedError

    @classmethod
    def score_macs(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return the multiply-adds per pair of a query and a key it reads, over all heads of a layer: score and value."""
        raise NotImplementedError

    @classmethod
    def cached_score_macs(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return `score_macs` in generation, where a query reads the cache."""
        return cls.score_macs(shape, settings)

    @classmethod
    def n_bias_and_gain_params(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return the number of biases and of the option's own gains in one layer, without the norms of `shape`."""
        raise NotImplementedError

    @classmethod
    def norm_widths(cls, shape: AttentionShape, settings: Settings) -> tuple[list[int], list[int]]:
        """Return the widths of one layer's norms from `shape.qk_norm`, and of those from `shape.v_norm`."""
        return [], []

    @classmethod
    def cached_numbers(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return how many numbers generation caches per token in one layer; a window limits the tokens."""
        raise NotImplementedError
