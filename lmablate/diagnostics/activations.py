"""Sizes of activations in the stack: the residual stream, the branches, the units of the FFN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmablate.diagnostics.module_names import Measurements, branches, layers
from lmablate.model.ffn.grouped import Rows
from lmablate.model.transformer import TransformerLM

DORMANT = 0.025  # of the mean activity of a layer's units


def rms(x: Tensor) -> Tensor:
    """Return ``sqrt(mean(x^2))`` over all entries."""
    return torch.linalg.vector_norm(x.detach().float()) / x.numel() ** 0.5


def kurtosis(x: Tensor) -> Tensor:
    """Return ``mean((x - m)^4) / mean((x - m)^2)^2`` over all entries: 3 for normal numbers, more with outliers (Pearson)."""
    x = x.detach().float()
    square = (x - x.mean()).square_()
    return square.square().mean() / square.mean().square()


def idle_units(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fractions of dead and of dormant units among the last axis of ``[..., H]``.

    A dead unit is 0 for every token (Lu et al. 2019, arXiv 1903.06733, of ReLU). A dormant one has a mean ``|h|`` of at most
    ``DORMANT`` of the layer's mean (Sokar et al. 2023, arXiv 2302.12902, definition 3.1), which also suits activations that are never
    exactly 0.
    """
    activity = hidden.detach().float().abs().flatten(0, -2).mean(0)
    return _idle(activity)


def _idle(activity: Tensor) -> tuple[Tensor, Tensor]:
    return (activity == 0).float().mean(), (activity <= DORMANT * activity.mean()).float().mean()


def idle_units_of_experts(hidden: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return these fractions for sorted rows ``[M, H]``, ``sizes[e]`` of expert e. Each expert has H units of its own; in an expert
    without tokens all are dead."""
    rows = hidden.detach().float().abs()[: sum(sizes)].split(sizes)
    return _idle(torch.stack([some.mean(0) if len(some) else some.sum(0) for some in rows]))


@contextmanager
def watching(model: TransformerLM, found: Measurements, *, stream: bool, units: bool) -> Iterator[None]:
    """Fill `found` during forward passes of `model`.

    `stream`: ``embed/stream_rms`` (input of the first block), ``layer03/stream_rms`` and ``/stream_kurtosis`` (after the block),
    ``layer03/attn/out_rms`` and ``/out_kurtosis`` (a branch's output, before a norm on it), and ``stream_growth``, the last block's
    stream RMS over that of the embedding. `units`, of the input of the FFN's last matrix: ``layer03/ffn/hidden_rms``,
    ``/hidden_kurtosis``, ``/dead`` and ``/dormant``.
    """
    with ExitStack() as hooks:

        def after(module: nn.Module, key: str, name: str) -> None:
            def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
                found[f"{key}/{name}_rms"], found[f"{key}/{name}_kurtosis"] = rms(out), kurtosis(out)

            hooks.callback(module.register_forward_hook(hook).remove)

        def before(module: nn.Module, hook: Any) -> None:
            hooks.callback(module.register_forward_pre_hook(hook).remove)

        def entering(_module: nn.Module, inputs: Any) -> None:
            found["embed/stream_rms"] = rms(inputs[0])

        for i, (layer, block) in enumerate(layers(model)):
            if stream:
                after(block, layer, "stream")
                if i == 0:
                    before(block, entering)
            for word, branch in branches(block):
                if stream:
                    after(branch, f"{layer}/{word}", "out")
                if units and word == "ffn":
                    before(branch.out_proj, _units(found, f"{layer}/{word}"))  # type: ignore[arg-type]
        yield
    if stream and (ends := [found[f"{layer}/stream_rms"] for layer, _ in layers(model)]):
        found["stream_growth"] = ends[-1] / found["embed/stream_rms"]


def _units(found: Measurements, key: str) -> Any:
    def hook(_module: nn.Module, inputs: Any) -> None:
        hidden = inputs[0]
        found[f"{key}/hidden_rms"], found[f"{key}/hidden_kurtosis"] = rms(hidden), kurtosis(hidden)
        of_experts = inputs[1:] and isinstance(inputs[1], Rows)
        idle = idle_units_of_experts(hidden, inputs[1].sizes) if of_experts else idle_units(hidden)
        found[f"{key}/dead"], found[f"{key}/dormant"] = idle

    return hook
