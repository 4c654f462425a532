"""Axis ``posemb``: position embeddings.

A position embedding is built as ``PosEmb(shape, **yaml)``. Its hooks do nothing unless overridden. ``embed`` adds to the token
embeddings, ``rotate`` rotates queries and keys, and ``score_bias`` is added to the scaled attention scores of every layer. ``relative``
changes the queries of one layer and returns a bias for that layer that depends on them. Attention calls the hooks and never tests for
an option.

A new option needs no entry here: its YAML names its module. The names below serve imports, and stored configurations, which name this
package.
"""

from lmablate.model.posemb.absolute import Learned, Sinusoidal
from lmablate.model.posemb.base import AttentionContext, CachedKV, KVCache, PosEmb, PositionShape
from lmablate.model.posemb.rope import RoPE, Rotary, halves_to_pairs, pairs_to_halves
from lmablate.model.posemb.scaled import DynamicRoPE, LinearRoPE, Llama3RoPE, LongRoPE, YaRN
from lmablate.model.posemb.score_bias import ALiBi, T5Bias, alibi_slopes
from lmablate.model.posemb.transformer_xl import TransformerXL

__all__ = [
    "ALiBi",
    "AttentionContext",
    "CachedKV",
    "DynamicRoPE",
    "KVCache",
    "Learned",
    "LinearRoPE",
    "Llama3RoPE",
    "LongRoPE",
    "PosEmb",
    "PositionShape",
    "RoPE",
    "Rotary",
    "Sinusoidal",
    "T5Bias",
    "TransformerXL",
    "YaRN",
    "alibi_slopes",
    "halves_to_pairs",
    "pairs_to_halves",
]
