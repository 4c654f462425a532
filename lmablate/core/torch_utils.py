"""Small helpers around torch."""

from __future__ import annotations

import contextlib
from typing import Any


def eager(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which a compiled model runs as it was written."""
    if not compiled:
        return contextlib.nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")
