"""Parameters and buffers of plain torch, which do not come from the package's primitives.

A user-defined part may contain any torch module. They train, count and resume like all others. Only a gang needs weights with a member
axis, which the primitives have (primitives.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from lmablate.core.source_code import is_shipped
from lmablate.model.factory import build_model
from lmablate.model.primitives import Bias, Gain, Matrix

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def plain_parameters(model: nn.Module) -> list[str]:
    """Return the names of parameters outside of primitives and shipped classes."""
    found = []
    for place, module in model.named_modules():
        if not isinstance(module, Gain | Bias | Matrix) and not is_shipped(type(module)):
            found += [f"{place}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
    return found


def own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of modules that are not shipped, by name. Training may change them, so checkpoints contain them. Buffers of
    shipped modules are tables that are recomputed."""
    return {
        f"{place}.{name}".lstrip("."): buffer
        for place, module in model.named_modules()
        if not is_shipped(type(module))
        for name, buffer in module.named_buffers(recurse=False)
    }


def why_solo(cfg: RunConfig) -> str | None:
    """Return why the parts of a run cannot train in a gang; None if they can."""
    if not cfg.code:  # all parts are as shipped
        return None
    model = build_model(cfg, device="meta")
    if names := plain_parameters(model):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0]}{more} is a plain parameter, and a gang needs those of lmablate.model.primitives"
    if buffers := own_buffers(model):
        return f"{next(iter(buffers))} is a buffer, which members of a gang would share"
    return None
