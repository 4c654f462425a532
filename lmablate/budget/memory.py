"""What a model keeps in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.budget.flops import reaches

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig

CACHE_BYTES = 2  # a number of the cache: bf16, as in published tables, whatever the precision of training


def kv_bytes_per_token(cfg: RunConfig) -> int:
    """Bytes of the KV cache for a text of ``context_length`` tokens, over its tokens, in bf16."""
    return round(kv_bytes(cfg, cfg.model.context_length) / cfg.model.context_length)


def kv_bytes(cfg: RunConfig, length: int, number: int = CACHE_BYTES) -> int:
    """Bytes of the KV cache of one text of `length` tokens, with `number` bytes a number.

    A layer with a window keeps the last `window` tokens alone; a strided one must keep all, since each reads others.
    """
    from lmablate.model import parts
    from lmablate.model.shapes import attention_shape

    option, settings = parts.resolve(cfg.attention, "attention")
    numbers = option.cached_numbers(attention_shape(cfg), settings)
    kept = sum(length if window is None else min(window, length) for window, _ in reaches(cfg))
    return number * numbers * kept
