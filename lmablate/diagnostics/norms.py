"""Sizes of the norms' gains."""

from __future__ import annotations

import torch
from torch import nn

from lmablate.diagnostics.module_names import Measurements, branches, layers
from lmablate.model.primitives import Gain
from lmablate.model.transformer import TransformerLM


@torch.no_grad()
def gains(model: TransformerLM) -> Measurements:
    """Return ``<place>/gain_mean`` and ``/gain_max``: mean and largest magnitude of the factors of a place's norms, initially 1.
    ``layer03/norm`` has the norms of the block, ``layer03/attn`` those inside attention (of queries, keys, values)."""
    places: list[tuple[str, list[Gain]]] = [("embed_norm", _gains(model.embedding_norm))]
    for layer, block in layers(model):
        inside = [(f"{layer}/{word}", _gains(branch)) for word, branch in branches(block)]
        taken = {id(gain) for _, some in inside for gain in some}
        places += [*inside, (f"{layer}/norm", [gain for gain in _gains(block) if id(gain) not in taken])]
    places.append(("final_norm", _gains(model.final_norm)))
    found = {}
    for place, some in places:
        if some:
            factors = torch.cat([(gain.weight + 1 if gain.from_one else gain.weight).abs() for gain in some])
            found[f"{place}/gain_mean"], found[f"{place}/gain_max"] = factors.mean(), factors.max()
    return found


def _gains(module: nn.Module | None) -> list[Gain]:
    return [] if module is None else [m for m in module.modules() if isinstance(m, Gain)]
