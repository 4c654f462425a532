"""The dtype that the branches of a model work in (primitives.py says where it applies)."""

from __future__ import annotations

import torch
from torch import nn

from lmablate.core.source_code import is_shipped
from lmablate.model.primitives import Bias, Gain, Matrix


def compute_dtype(precision: str) -> torch.dtype | None:
    """Return the compute dtype of ``trainer.precision``; None is that of the weights."""
    return torch.bfloat16 if precision == "bf16" else None


def set_compute_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Let the branches of `model` work in `dtype` (None: that of the weights). A part of the user's with weights or buffers of plain
    torch stays in that of its weights, since torch multiplies tensors of one dtype only."""
    for module in model.modules():
        if isinstance(module, Matrix):
            module.compute_dtype = dtype
    for part in model.modules():
        if _is_own(part) and any(_is_plain(module) for module in part.modules()):
            for module in part.modules():
                if isinstance(module, Matrix):
                    module.compute_dtype = None


def _is_own(module: nn.Module) -> bool:
    """Return True for a module of a class that is neither ours nor torch's."""
    return not type(module).__module__.startswith("torch.") and not is_shipped(type(module))


def _is_plain(module: nn.Module) -> bool:
    """Return True if the module itself has trained parameters outside of the primitives, or buffers and is not of this package."""
    if isinstance(module, Gain | Bias | Matrix) or is_shipped(type(module)):
        return False
    tables = [] if type(module).__module__.startswith("lmablate.") else [*module.buffers(recurse=False)]
    return any(x.requires_grad for x in module.parameters(recurse=False)) or any(x.is_floating_point() for x in tables)
