"""Axis ``attention``: which positions a token reads, and how many heads share keys and values.

An option is built as ``Option(shape, layer=i, **yaml)`` and is called as ``branch(x, positions)`` with x ``[..., T, D]``.
Its static methods say in closed form what a layer of it costs and reads (parameters, multiply-adds, cached numbers,
windows), so that the accounting in lmablate/budget needs no module.

A new option needs no entry here: its YAML names its module. The names below serve imports, and stored configurations, which
name this package.
"""

from lmablate.model.attention.base import Attention, AttentionShape
from lmablate.model.attention.cross import CrossAttention
from lmablate.model.attention.heads import GroupedQuery, HeadAttention, MultiHead, MultiQuery
from lmablate.model.attention.latent import LatentAttention
from lmablate.model.attention.scores import EVERYTHING, Reach, attend, explicit_attention, visible, with_prefix
from lmablate.model.attention.windows import Interleaved, Patterned, SlidingWindow

__all__ = [
    "EVERYTHING",
    "Attention",
    "AttentionShape",
    "CrossAttention",
    "GroupedQuery",
    "HeadAttention",
    "Interleaved",
    "LatentAttention",
    "MultiHead",
    "MultiQuery",
    "Patterned",
    "Reach",
    "SlidingWindow",
    "attend",
    "explicit_attention",
    "visible",
    "with_prefix",
]
