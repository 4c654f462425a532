"""Configuration: ``compose(["norm=rms", ...])`` returns a checked, resolved RunConfig."""

from typing import Any

__all__ = ["compose"]


def __getattr__(name: str) -> Any:
    """Import `compose` on first use. It brings Hydra and torch, which the other modules of this package do not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmablate.config.composition import compose

    return compose
