"""The base class of position embeddings, and the context they give to attention."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn


class PositionShape(NamedTuple):
    """The sizes of a position embedding: `head_dim` counts the channels of a head that ``rotate`` gets; with `looks_ahead` a query may
    read later keys."""

    d_model: int
    n_heads: int
    head_dim: int
    context_length: int
    n_layers: int
    looks_ahead: bool = False


def _no_relative_term(q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    return q, None


class AttentionContext(NamedTuple):
    """The arguments of one forward pass for every attention branch.

    ``rotate(q, k)`` maps ``[..., H, T, head_dim]`` to the same shape. ``bias`` is None or broadcasts to ``[..., H, T, T]``, as does the
    second result of ``relative(q, layer)``, which is scaled with the scores. ``may_read`` is the mask, bool ``[..., 1, T, T]``, query
    by key; True: every token reads every other; None: a query reads itself and the tokens before it. ``source`` is the input of cross
    attention, ``[..., S, D]``. ``tokens`` are the token ids, int64 ``[..., T]``, for branches that depend on them. ``kv_cache(layer,
    new)`` is set if a text is read in chunks (lmablate/decoding). It stores a layer's tensors for this chunk's tokens, ``[..., H, T,
    width]`` each, and returns what its queries read, or None for the first chunk, which is read like a whole text.
    """

    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bias: Tensor | None
    relative: Callable[[Tensor, int], tuple[Tensor, Tensor | None]] = _no_relative_term
    may_read: Tensor | Literal[True] | None = None
    kv_cache: "KVCache | None" = None
    source: Tensor | None = None
    tokens: Tensor | None = None


class CachedKV(NamedTuple):
    """The keys and values that the n queries of a chunk read in one layer.

    `cached` are tensors ``[..., H, K, width]`` of K tokens, including those of the chunk. ``read`` is bool ``[n, K]``, or None if each
    query reads all of them. ``bias`` and ``relative`` of ``positions`` are for these keys.
    """

    cached: tuple[Tensor, ...]
    read: Tensor | None
    positions: AttentionContext


KVCache = Callable[[int, tuple[Tensor, ...]], CachedKV | None]


class PosEmb(nn.Module):
    """Base class, and the option ``none``: no position information but the causal mask's (NoPE).

    ``is_token_table`` marks an option whose parameters are rows added to the token embedding, counted as embedding parameters;
    ``bounded`` one that is undefined beyond `context_length` tokens.
    """

    is_token_table: ClassVar[bool] = False
    bounded: ClassVar[bool] = False

    def __init__(self, shape: PositionShape) -> None:
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """Return token embeddings with positions, ``[..., T, D] -> [..., T, D]``."""
        return x

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys, ``[..., H, T, head_dim]`` each; k may have fewer heads."""
        return q, k

    def score_bias(self, length: int) -> Tensor | None:
        """Return None or ``[H, T, T]`` (or with lead axes), query by key, added to the scaled scores before the mask."""
        return None

    def relative(self, q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """Return the queries ``[..., H, T, head_dim]`` for the keys of this layer, and None or ``[..., H, T, T]``, which is added to
        ``q k^T`` before scaling."""
        return q, None

    # The same four hooks for a chunk of n tokens that starts at position `start`. `tables` is the result of
    # `chunk_tables`; `distance`, int64 [n, K], is the distance of each query from each earlier key (below 0: later, not read).

    def chunk_tables(self, length: int) -> Any:
        """Return what the chunks of a text of up to `length` tokens share."""
        return None

    def moves(self, old: int, new: int) -> bool:
        """Return True if the positions of a text's tokens change when it grows from `old` to `new` tokens."""
        return False

    def embed_chunk(self, x: Tensor, start: int, tables: Any) -> Tensor:
        return x

    def rotate_chunk(self, q: Tensor, k: Tensor, start: int, tables: Any) -> tuple[Tensor, Tensor]:
        return q, k

    def score_bias_at(self, distance: Tensor) -> Tensor | None:
        """Return None or ``[H, n, K]``."""
        return None

    def relative_at(self, q: Tensor, layer: int, distance: Tensor, tables: Any) -> tuple[Tensor, Tensor | None]:
        """Return the queries, and None or ``[..., H, n, K]``."""
        return q, None

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Return the parameter count in closed form; `settings` are the keys of the YAML."""
        return 0

    @staticmethod
    def matmul_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Return the multiply-adds of matrices per position of a text, summed over the layers."""
        return 0

    @staticmethod
    def score_macs(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Return the multiply-adds of one layer per pair of a query and a key it reads, beyond those of attention itself."""
        return 0
