"""Axis ``posemb``: how a model knows where a token stands.

A position embedding is built as ``PosEmb(shape, **yaml)`` and has hooks that do nothing unless overridden: ``embed`` adds
to the token embeddings, ``rotate`` turns queries and keys, ``score_bias`` is added to the scaled attention scores of every
layer, and ``relative`` changes the queries of one layer and gives that layer a bias that depends on them. Attention calls
the hooks and never asks which option it has.

A new option needs no entry here: its YAML names its module. The names below serve imports, and stored configurations, which
name this package.
"""

from lmablate.model.posemb.absolute import Learned, Sinusoidal
from lmablate.model.posemb.base import Earlier, Past, PosEmb, Positions, PositionShape
from lmablate.model.posemb.rope import RoPE, Rotary, halves_to_pairs, pairs_to_halves
from lmablate.model.posemb.scaled import DynamicRoPE, LinearRoPE, Llama3RoPE, LongRoPE, YaRN
from lmablate.model.posemb.score_bias import ALiBi, T5Bias, alibi_slopes
from lmablate.model.posemb.transformer_xl import TransformerXL

__all__ = [
    "ALiBi",
    "DynamicRoPE",
    "Earlier",
    "Learned",
    "LinearRoPE",
    "Llama3RoPE",
    "LongRoPE",
    "Past",
    "PosEmb",
    "PositionShape",
    "Positions",
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
