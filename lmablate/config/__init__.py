"""Configuration: ``compose(["norm=rms", ...])`` gives a checked, resolved RunConfig."""

from typing import Any

__all__ = ["compose"]


def __getattr__(name: str) -> Any:
    """Import compose when it is asked for: it brings Hydra and torch, and the other modules of this room do without them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmablate.config.composition import compose

    return compose
