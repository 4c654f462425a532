"""What every position embedding is, and what attention sees of it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class PositionShape(NamedTuple):
    """The sizes a position embedding may need; `head_dim` counts the channels of a head that ``rotate`` is given."""

    d_model: int
    n_heads: int
    head_dim: int
    context_length: int
    n_layers: int


def _no_relative_term(q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    return q, None


class Positions(NamedTuple):
    """What one forward pass hands to every attention branch.

    ``rotate(q, k)`` takes and returns ``[..., H, T, head_dim]``; ``bias`` is None or broadcasts to ``[..., H, T, T]``, and
    so does the second result of ``relative(q, layer)``, which is scaled with the scores.
    """

    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bias: Tensor | None
    relative: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] = _no_relative_term


class PosEmb(nn.Module):
    """Base, and the option ``none``: no position information but the causal mask's (NoPE).

    ``is_token_table`` marks an option whose parameters are rows added to the token embedding, which are counted as
    embedding parameters.
    """

    is_token_table: ClassVar[bool] = False

    def __init__(self, shape: PositionShape) -> None:
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """``[..., T, D] -> [..., T, D]``."""
        return x

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., H, T, head_dim]`` each; the heads of k may be fewer."""
        return q, k

    def score_bias(self, length: int) -> Tensor | None:
        """``[H, T, T]`` (or with lead axes), query by key, added to the scaled scores before the mask."""
        return None

    def relative(self, q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """The queries ``[..., H, T, head_dim]`` that meet the keys of this layer, and None or ``[..., H, T, T]``: what is
        added to ``q k^T`` before both are scaled."""
        return q, None

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """The parameter count in closed form; `settings` are the keys of the YAML."""
        return 0

    @staticmethod
    def weights_per_token(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Multiply-adds of matrices with each position of a text, summed over the layers."""
        return 0

    @staticmethod
    def products_per_key(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Multiply-adds of one layer for each pair of a query and a key it reads, beside those of attention itself."""
        return 0
