"""What every position embedding is, and what attention sees of it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn


class PositionShape(NamedTuple):
    """The sizes a position embedding may need; `head_dim` counts the channels of a head that ``rotate`` is given, and
    `looks_ahead` says whether a query may read keys after it."""

    d_model: int
    n_heads: int
    head_dim: int
    context_length: int
    n_layers: int
    looks_ahead: bool = False


def _no_relative_term(q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    return q, None


class Positions(NamedTuple):
    """What one forward pass hands to every attention branch.

    ``rotate(q, k)`` takes and returns ``[..., H, T, head_dim]``; ``bias`` is None or broadcasts to ``[..., H, T, T]``, and
    so does the second result of ``relative(q, layer)``, which is scaled with the scores. ``may_read`` is the mask, bool
    ``[..., 1, T, T]``, query by key, True where every token reads every other, or None where a query may read itself and what came
    before it. ``source`` is what cross attention reads, ``[..., S, D]``, and ``tokens`` are those of the text, int64
    ``[..., T]``, for a branch that asks which they are. ``past(layer, new)`` is
    there where a text is read piece by piece (lmablate/decoding): it keeps what a layer makes of this piece's tokens,
    ``[..., H, T, width]`` each, and gives what its queries read, or None for the first piece, which is read as a whole text is.
    """

    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bias: Tensor | None
    relative: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] = _no_relative_term
    may_read: Tensor | Literal[True] | None = None
    past: "Past | None" = None
    source: Tensor | None = None
    tokens: Tensor | None = None


class Earlier(NamedTuple):
    """What the n queries of a piece read in one layer: `kept`, ``[..., H, K, width]`` each, of K tokens, those of the piece
    among them; ``read``, bool ``[n, K]``, or None where each query reads every one; and ``positions``, whose ``bias`` and
    ``relative`` are for these keys."""

    kept: tuple[Tensor, ...]
    read: Tensor | None
    positions: Positions


Past = Callable[[int, tuple[Tensor, ...]], Earlier | None]


class PosEmb(nn.Module):
    """Base, and the option ``none``: no position information but the causal mask's (NoPE).

    ``is_token_table`` marks an option whose parameters are rows added to the token embedding, which are counted as
    embedding parameters; ``bounded`` one that is not defined beyond `context_length` tokens.
    """

    is_token_table: ClassVar[bool] = False
    bounded: ClassVar[bool] = False

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

    # The same four for a piece of n tokens from position `start` on, where a text is read piece by piece. `made` is what
    # `for_pieces` gives; `distance`, int64 [n, K], is how far back of each query each key lies (below 0: ahead, not read).

    def for_pieces(self, length: int) -> Any:
        """What pieces of a text of up to `length` tokens need and can be made once."""
        return None

    def moves(self, old: int, new: int) -> bool:
        """Whether the tokens of a text stand elsewhere once it has grown from `old` to `new` tokens."""
        return False

    def embed_piece(self, x: Tensor, start: int, made: Any) -> Tensor:
        return x

    def rotate_piece(self, q: Tensor, k: Tensor, start: int, made: Any) -> tuple[Tensor, Tensor]:
        return q, k

    def score_bias_at(self, distance: Tensor) -> Tensor | None:
        """``[H, n, K]``."""
        return None

    def relative_at(self, q: Tensor, layer: int, distance: Tensor, made: Any) -> tuple[Tensor, Tensor | None]:
        """The queries, and None or ``[..., H, n, K]``."""
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
