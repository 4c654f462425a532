"""The memory of a model's KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.budget.flops import spans

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

CACHE_BYTES = 2  # per number of the cache: bf16, as in published tables, whatever the precision of training


def kv_bytes_per_token(cfg: RunConfig) -> int:
    """Return the bytes of the KV cache for a text of ``context_length`` tokens, divided by its tokens, in bf16."""
    return round(kv_bytes(cfg, cfg.model.context_length) / cfg.model.context_length)


def kv_bytes(cfg: RunConfig, length: int, number: int = CACHE_BYTES) -> int:
    """Return the bytes of the KV cache of one text of `length` tokens, with `number` bytes per number.

    A layer with a window caches the last `window` tokens; a strided one must cache all, since each query reads others. An encoder does
    not generate and caches nothing. Of two stacks the decoder caches its own tokens and, for cross attention, keys and values of the
    source's, in the proportion of training.
    """
    from lmablate.objective import objective_of

    if objective_of(cfg).reads_all:
        return 0
    if cfg.model.n_encoder_layers is not None:
        return _of_two(cfg, length, number)
    from lmablate.budget import measured
    from lmablate.model import components
    from lmablate.model.dims import attention_shape

    option, settings = components.resolve(cfg.attention, "attention")
    stated = measured.states(option, measured.CACHE)
    numbers = option.cached_numbers(attention_shape(cfg), settings) if stated else measured.cached_numbers(cfg)
    cached = sum(length if window is None else min(window, length) for window, _ in spans(cfg))
    return number * numbers * cached


def _of_two(cfg: RunConfig, length: int, number: int) -> int:
    from lmablate.model.attention import CrossAttention
    from lmablate.model.dims import attention_shape
    from lmablate.model.multi_stack import decoder_of, source_length

    decoder = decoder_of(cfg)
    source = round(length * source_length(cfg) / cfg.model.context_length)
    across = CrossAttention.cached_numbers(attention_shape(decoder), {}) * source * cfg.model.n_layers
    return kv_bytes(decoder, length - source, number) + number * across
