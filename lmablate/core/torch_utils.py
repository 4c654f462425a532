"""Define small helpers around torch."""

from __future__ import annotations

import contextlib
from typing import Any


def eager(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a compiled model runs eagerly."""
    if not compiled:
        return contextlib.nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")
