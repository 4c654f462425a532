"""Bytes and FLOPs of reading a text and writing a token, and the time a machine needs for them.

A step of generation takes one token of every text of a batch through the model. The weights are read once, whatever the batch; the
cache of each text is read whole. Arithmetic intensity, FLOPs per byte, stays near one for multi-head attention and grows with the
number of query heads that share a cached head (Shazeer 2019, arXiv 1911.02150, sections 2.4.1 and 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lmablate.budget import keys_read, kv_bytes, parameters
from lmablate.budget.flops import attention_work, position_work, spans
from lmablate.model.dims import ffn_option, ffn_shape
from lmablate.model.multi_stack import layer_order

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


class StepCost(NamedTuple):
    """Bytes to move and FLOPs to compute."""

    n_bytes: int
    flops: int

    def seconds(self, bandwidth: float, peak: float) -> float:
        """Return the time on a machine of `bandwidth` bytes and `peak` FLOPs per second that does both at once: the longer of the two
        (the roofline model, Williams et al. 2009, doi 10.1145/1498765.1498785)."""
        return max(self.n_bytes / bandwidth, self.flops / peak)


def step_cost(cfg: RunConfig, context: int, batch: int, number: int) -> StepCost:
    """Return the cost of one token of each of `batch` texts that are `context` tokens long with it, at `number` bytes per number."""
    weights, a_key = _products(cfg, of_cached=True)
    cached = sum(context if window is None else min(window, context) for window, _ in spans(cfg))
    return StepCost(
        weight_bytes(cfg, number, batch) + batch * kv_bytes(cfg, context, number),
        round(2 * batch * (weights + _head(cfg) + a_key * cached)),
    )


def prefill_cost(cfg: RunConfig, length: int, batch: int, number: int) -> StepCost:
    """Return the cost of reading `batch` texts of `length` tokens at once, with the head for the last token only, and writing their
    cache."""
    weights, a_key = _products(cfg, of_cached=False)
    pairs = sum(keys_read(length, *span) for span in spans(cfg)) * length
    return StepCost(
        weight_bytes(cfg, number, batch * length) + batch * kv_bytes(cfg, length, number),
        round(2 * batch * (weights * length + _head(cfg) + a_key * pairs)),
    )


def weight_bytes(cfg: RunConfig, number: int, tokens: int = 1) -> int:
    """Return the bytes of the weights that a step of `tokens` tokens reads whole: without tables, of which it reads a row per text, and
    without unused experts."""
    ffn, sizes = ffn_option(cfg), ffn_shape(cfg)
    idle = sum(ffn.n_idle(sizes, layer=i, tokens=tokens) for i in range(cfg.model.n_layers))
    return number * (parameters(cfg).non_embedding - idle + _head(cfg))


def _head(cfg: RunConfig) -> int:
    return cfg.model.vocab_size * cfg.model.d_model


def _products(cfg: RunConfig, *, of_cached: bool) -> tuple[float, float]:
    """Multiply-adds with the matrices of all layers per token, and in one layer per key that a query reads."""
    attention = attention_work(cfg, 0, of_cached=of_cached)
    ffn, sizes = ffn_option(cfg), ffn_shape(cfg)
    matrices = cfg.model.n_layers * attention.per_token
    matrices += sum(ffn.matmul_params(sizes, layer=i) for i in layer_order(cfg))
    return matrices, attention.per_key + position_work(cfg).per_key
