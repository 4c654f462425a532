"""Finished runs as pandas frames: ``load_runs(folder)`` and ``load_history(folder)``."""

from typing import Any

__all__ = ["load_evaluations", "load_history", "load_positions", "load_runs"]


def __getattr__(name: str) -> Any:
    """Import a reader when it is asked for: pandas takes a second, and the other modules of this room do without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmablate.results import evaluations, load

    return getattr(load if name in ("load_history", "load_runs") else evaluations, name)
