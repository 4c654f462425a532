"""Costs of a model in closed form, and the sizes at which two models cost the same.

The parts of a model state their own costs: closed forms are methods of their classes (norm, posemb, attention, FFN) and are summed
here, so that a new option needs no edit of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmablate.budget.flops import flops_per_token, forward_products, keys_of_layers, keys_read
from lmablate.budget.memory import kv_bytes, kv_bytes_per_token
from lmablate.budget.parameters import Parameters, attention_params, ffn_params, parameters
from lmablate.budget.search import Missed, around, closest, fits, meet
from lmablate.budget.widths import ff_width, matched_width

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

# The costs that a budget may match, and their names.
COSTS: dict[str, Callable[[RunConfig], int]] = {
    "params": lambda cfg: parameters(cfg).total,
    "params_non_embedding": lambda cfg: parameters(cfg).non_embedding,
    "flops": flops_per_token,
    "kv_cache": kv_bytes_per_token,
}
WHAT = {
    "params": "parameters",
    "params_non_embedding": "non-embedding parameters",
    "flops": "training FLOPs per token",
    "kv_cache": "bytes of KV cache per token",
}
# Definitions for captions of tables and figures.
DEFINITIONS = {
    "params": "Parameters: every learned number once; a tied head is the token table.",
    "params_non_embedding": "Non-embedding parameters: all but token and position tables and an untied head.",
    "flops": "FLOPs per token: the matrix products of training, forward and backward (three times the forward), a multiply-add "
    "as two, experts that a token does not meet left out; attention over the keys a token reads, so a causal mask counts half the "
    "square, a window its width, and a prefix that is read in both directions all of its square.",
    "kv_cache": "KV bytes per token: keys and values in bf16 that a text of context_length tokens leaves, over its tokens; a "
    "layer with a window keeps the window.",
    "wall_time": "Seconds: those of optimizer steps on this machine, evaluation left out.",
}

__all__ = [
    "COSTS",
    "DEFINITIONS",
    "WHAT",
    "Missed",
    "Parameters",
    "around",
    "attention_params",
    "closest",
    "ff_width",
    "ffn_params",
    "fits",
    "flops_per_token",
    "forward_products",
    "keys_of_layers",
    "keys_read",
    "kv_bytes",
    "kv_bytes_per_token",
    "matched_width",
    "meet",
    "parameters",
]
