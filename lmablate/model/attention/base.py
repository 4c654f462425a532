"""What every attention option is given, and what it tells the accounting."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lmablate.model.attention.scores import EVERYTHING, Reach
from lmablate.model.posemb import Positions

Settings = Mapping[str, Any]  # the keys of an option's YAML


class AttentionShape(NamedTuple):
    """Sizes and settings every attention option shares. None is off.

    `qk_norm` makes the norm of queries and of keys from its width, over each head or, with `norm_all_heads`, over all
    heads of a token at once; `v_norm` likewise for values.
    """

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
    """Base: an option of a layer, and its accounting, for which `shape` needs its sizes alone. ``reads`` is which keys its
    queries read."""

    reads: Reach = EVERYTHING

    def __init__(self, shape: AttentionShape, *, layer: int, scale: float | None) -> None:
        super().__init__()
        self.shape, self.layer, self.scale = shape, layer, scale

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """``[..., T, D] -> [..., T, D]``."""
        raise NotImplementedError

    def kept(self) -> list[tuple[int, int]]:
        """Heads and width of each tensor that generation keeps of a token: what ``positions.past`` is given."""
        raise NotImplementedError

    @staticmethod
    def rotated_width(head_dim: int, settings: Settings) -> int:
        """How many channels of a head the position embedding is given to turn."""
        return head_dim

    @staticmethod
    def reach(layer: int, settings: Settings) -> Reach:
        """Which keys a query of this layer reads."""
        return EVERYTHING

    @classmethod
    def weights_per_token(cls, shape: AttentionShape, settings: Settings) -> int:
        """Multiply-adds of matrices with each token, in one layer: the entries of the matrices."""
        raise NotImplementedError

    @classmethod
    def products_per_key(cls, shape: AttentionShape, settings: Settings) -> int:
        """Multiply-adds for each pair of a query and a key it reads, over all heads of a layer: score and value."""
        raise NotImplementedError

    @classmethod
    def products_per_kept_key(cls, shape: AttentionShape, settings: Settings) -> int:
        """The same in generation, where a query reads what is kept."""
        return cls.products_per_key(shape, settings)

    @classmethod
    def n_vector_params(cls, shape: AttentionShape, settings: Settings) -> int:
        """Biases, and the gains an option has of itself, of one layer; the norms of `shape` are not among them."""
        raise NotImplementedError

    @classmethod
    def norm_widths(cls, shape: AttentionShape, settings: Settings) -> tuple[list[int], list[int]]:
        """The widths of the norms of one layer that `shape.qk_norm` makes, and of those that `shape.v_norm` makes."""
        return [], []

    @classmethod
    def cached_numbers(cls, shape: AttentionShape, settings: Settings) -> int:
        """Numbers that generation keeps for each earlier token, in one layer; with a window, of that many tokens."""
        raise NotImplementedError
