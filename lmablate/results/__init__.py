"""Load finished runs as pandas frames: ``load_runs(folder)``, ``load_history(folder)``, and helpers for their arms."""

from importlib import import_module
from typing import Any

_HOME = {
    "load": ("HISTORY_COLUMNS", "load_history", "load_runs", "load_unfinished"),
    "folders": ("SkippedFile",),
    "evaluations": ("load_evaluations", "load_positions"),
    "arms": ("arm_columns", "arm_label", "axes_that_vary", "with_arms"),
}
__all__ = [name for names in _HOME.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a reader on first use: pandas takes a second to import, and the other modules of this room do without it."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"lmablate.results.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
