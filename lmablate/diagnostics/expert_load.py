"""The load of a layer's experts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lmablate.diagnostics.module_names import Measurements, branches, layers
from lmablate.model.ffn import Mixture
from lmablate.model.posemb import AttentionContext
from lmablate.model.transformer import TransformerLM


def load_entropy(load: Tensor) -> Tensor:
    """Return ``-sum p log p / log E`` of the load shares p of E experts: 1 for an even load, 0 if one expert takes all."""
    share = load.float() / load.sum()
    return (
        torch.special.entr(share).sum() / math.log(len(load)) if len(load) > 1 else torch.ones((), device=load.device)
    )


@contextmanager
def watching(model: TransformerLM, found: Measurements) -> Iterator[None]:
    """Fill `found` during forward passes of `model`, for each layer with experts.

    ``layer03/ffn/load_entropy`` (see above), ``/load_max`` (the busiest expert's load over the mean), ``/dropped`` (the fraction of
    choices beyond capacity), and ``/load00``, ``/load01``, ... (the share of each expert).
    """
    with ExitStack() as hooks:
        for layer, block in layers(model):
            for word, branch in branches(block):
                if isinstance(branch, Mixture):
                    hook = branch.register_forward_pre_hook(_note(found, f"{layer}/{word}"))
                    hooks.callback(hook.remove)
        yield


def _note(found: Measurements, key: str) -> Any:
    def hook(module: Mixture, inputs: tuple[Tensor, AttentionContext]) -> None:
        x, positions = inputs
        load, dropped = module.load(module.by_member(x), positions.tokens)
        digits = max(2, len(str(len(load) - 1)))
        found[f"{key}/load_entropy"] = load_entropy(load)
        found[f"{key}/load_max"] = load.max() * len(load) / load.sum()
        found[f"{key}/dropped"] = dropped / (load.sum() + dropped)
        for i, share in enumerate(load / load.sum()):
            found[f"{key}/load{i:0{digits}}"] = share

    return hook
