"""Axis ``attention``: which keys a query reads, and how many heads share keys and values.

An option is built as ``Option(shape, layer=i, **yaml)`` and called as ``branch(x, positions)`` with x ``[..., T, D]``. Its static
methods state in closed form the costs and window of a layer (parameters, multiply-adds, cached numbers), so that lmablate/budget needs
no module.

A new option needs no entry here: its YAML names its module. The names below serve imports, and stored configurations, which name this
package.
"""

from lmablate.model.attention.base import Attention, AttentionShape
from lmablate.model.attention.cross import CrossAttention
from lmablate.model.attention.heads import GroupedQuery, HeadAttention, MultiHead, MultiQuery
from lmablate.model.attention.latent import LatentAttention
from lmablate.model.attention.scores import EVERYTHING, AttentionSpan, attend, explicit_attention, visible, with_prefix
from lmablate.model.attention.windows import Interleaved, Patterned, SlidingWindow

__all__ = [
    "EVERYTHING",
    "Attention",
    "AttentionShape",
    "AttentionSpan",
    "CrossAttention",
    "GroupedQuery",
    "HeadAttention",
    "Interleaved",
    "LatentAttention",
    "MultiHead",
    "MultiQuery",
    "Patterned",
    "SlidingWindow",
    "attend",
    "explicit_attention",
    "visible",
    "with_prefix",
]
