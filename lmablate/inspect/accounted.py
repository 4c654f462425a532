"""Predict a step from the accounting (lmablate.budget): FLOPs by kind of work, and the products that a profiler sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.budget import flops_per_token, forward_products, keys_read
from lmablate.budget.flops import position_work, softmax_flops, spans
from lmablate.inspect import operators as kinds

if TYPE_CHECKING:
    from lmablate.budget.trace import Step
    from lmablate.schema.run_config import RunConfig

# Modes of a step.
PLAIN, WRITTEN_OUT, COMPILED = "eager", "eager, attention in products", "compiled"


def flops_by_kind(cfg: RunConfig, work: Step, mode: str) -> dict[str, float]:
    """Return the training FLOPs of one text by kind, from the accounting.

    Products count the keys that are read. Any other operation counts one per element, copies included. The optimizer is left out.
    """
    length = cfg.model.context_length
    flops: dict[str, float] = dict.fromkeys(
        (kinds.CONTRACTIONS, kinds.NORMALISATION, kinds.POINTWISE, kinds.MOVEMENT), 0
    )
    flops[kinds.CONTRACTIONS] = flops_per_token(cfg) * length
    flops[kinds.NORMALISATION] = work.norms.flops
    for name, own in work.operators.items():
        kind = kinds.kind_of(f"aten::{name}")
        flops[kind if kind in flops else kinds.MOVEMENT] += own.flops
    if work.fused:
        softmax = softmax_flops(cfg) * length
        if mode == WRITTEN_OUT:
            flops[kinds.NORMALISATION] += softmax
        else:
            flops[kinds.ATTENTION] = _attention_products(cfg) + softmax
            flops[kinds.CONTRACTIONS] -= _attention_products(cfg)
    return flops


def _attention_products(cfg: RunConfig) -> float:
    """Return the FLOPs of one text's fused attention, without the products of positions, which no fused kernel does."""
    _, a_key = forward_products(cfg)
    of_positions = position_work(cfg)[1]
    length = cfg.model.context_length
    read = [keys_read(length, *span) for span in spans(cfg)]
    return 6 * length * sum((n - of_positions) * keys for n, keys in zip(a_key, read, strict=True))


def visible_products(cfg: RunConfig, *, fused: bool) -> int:
    """Return the accounting's FLOPs of a step's products, as the profiler must count them.

    It sees no product in a fused kernel. Outside one, each query meets all T keys, masked or not."""
    matrices, a_key = forward_products(cfg)
    once, of_positions = position_work(cfg)
    length, texts = cfg.model.context_length, cfg.trainer.batch_size
    passes = -(-texts // (cfg.runtime.microbatch_size or texts))
    pairs = of_positions * len(a_key) if fused else sum(a_key)
    # A table of positions is not a parameter: its projection has one product backward, not two.
    return round(2 * length * (3 * texts * (matrices - once) + 2 * passes * once + 3 * texts * length * pairs))
