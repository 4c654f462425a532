"""Help to compare ours with independent implementations: same weights in, same values and gradients out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmablate.model.attention import AttentionShape

D_MODEL, N_LAYERS, N_HEADS, D_FF, LENGTH, VOCAB = 32, 2, 4, 48, 24, 64
HEAD_DIM = D_MODEL // N_HEADS
WINDOW = 7  # what tiny.py gives to options with a window
ATTENTION = AttentionShape(
    d_model=D_MODEL,
    n_heads=N_HEADS,
    n_kv_heads=N_HEADS,
    head_dim=HEAD_DIM,
    n_layers=N_LAYERS,
    qkv_bias=False,
    out_bias=False,
    dropout=0.0,
    soft_cap=None,
    qk_norm=None,
    v_norm=None,
    norm_all_heads=False,
)

# Our parameter name (with {i} for the layer) to theirs, or to theirs and the piece of it that is ours.
Names = Mapping[str, "str | tuple[str, Callable[[Tensor], Tensor]]"]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, scale: float = 0.0) -> None:
    """Equal up to `tolerance` of the largest expected value (or of `scale` where that is larger)."""
    size = max(float(expected.detach().abs().max()), scale)
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance * size)


def hf(family: str, name: str) -> Any:
    """``hf("llama", "LlamaAttention")``: an object of transformers' modelling code, imported when first needed."""
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)


def hf_config(name: str, **keys: Any) -> Any:
    """A transformers configuration with explicit (eager) attention and no dropout."""
    config = getattr(importlib.import_module("transformers"), f"{name}Config")(**keys)
    config._attn_implementation = "eager"
    return config


def randomise(model: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Move every parameter away from its start, gains and biases too, so that none of them is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.eval()


def arrange(names: Names, theirs: Mapping[str, Tensor | None], n_layers: int = N_LAYERS) -> dict[str, Tensor]:
    """Their tensors (parameters or gradients alike) under our names."""
    out: dict[str, Tensor] = {}
    for ours, source in names.items():
        name, piece = source if isinstance(source, tuple) else (source, lambda tensor: tensor)
        for i in range(n_layers) if "{i}" in ours else (0,):
            tensor = theirs[name.format(i=i)]
            assert tensor is not None
            out[ours.format(i=i)] = piece(tensor)
    return out


def copy_weights(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Give ours their weights; fails unless every parameter of both has a partner."""
    values = arrange(names, dict(theirs.named_parameters()))
    targets = dict(ours.named_parameters())
    assert set(values) == set(targets)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def same_gradients(ours: nn.Module, theirs: nn.Module, names: Names, tolerance: float) -> None:
    """Compare gradients; one that is zero but for rounding is measured against the largest of all."""
    expected = arrange(names, {name: p.grad for name, p in theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, expected[name], tolerance, scale=1e-2 * largest)


def fused(part: int) -> Callable[[Tensor], Tensor]:
    """Query, key or value (0, 1, 2) of a projection stored as [head, 3, head_dim] rows (GPT-NeoX, Bloom)."""
    return lambda w: w.unflatten(0, (N_HEADS, 3, HEAD_DIM))[:, part].flatten(0, 1)
