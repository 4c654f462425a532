"""Match runs against the columns and shapes that a claim names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmablate.claims.claim import Arms
from lmablate.results.arms import is_missing, show

Row = dict[str, Any]
NEAR = 0.06  # relative tolerance of a shape: budgets meet a ratio within 5 %
SAME = 1e-3  # relative tolerance of any other number


def _gated(row: Row) -> bool:
    return bool(row.get("activation.gated"))


# Shapes of a run, from its resolved sizes.
SHAPES: dict[str, Callable[[Row], float]] = {
    "shape.ff_ratio": lambda r: r["model.d_ff"] / r["model.d_model"],
    "shape.ffn_size": lambda r: (3 if _gated(r) else 2) * r["model.d_ff"] / r["model.d_model"],  # matrices x width
    "shape.aspect_ratio": lambda r: r["model.d_model"] / r["model.n_layers"],
    "shape.head_dim": lambda r: r["model.head_dim"],
    "shape.heads_per_kv": lambda r: r["model.n_heads"] / r["model.n_kv_heads"],
    "shape.heads_width": lambda r: r["model.n_heads"] * r["model.head_dim"] / r["model.d_model"],
    "shape.warmup_share": lambda r: r["schedule.warmup_steps"] / r["trainer.steps"],
    "shape.fine_tuned": lambda r: float(not is_missing(r.get("trainer.init_from"))),
    "shape.epochs": lambda r: (
        r["trainer.steps"] * r["trainer.batch_size"] * r["model.context_length"] / r["data.train_tokens"]
    ),
}


def describe(arms: Mapping[str, Any] | None) -> str:
    """Return columns and values as a user would type them: ``activation=gelu,silu``."""
    parts = []
    for column, value in (arms or {}).items():
        values = value if isinstance(value, list) else [value]
        parts.append(f"{column.removeprefix('shape.')}={','.join('null' if v is None else show(v) for v in values)}")
    return " ".join(parts)


def value_of(row: Row, column: str) -> Any:
    """Return a column or shape of a row, or None if it has none."""
    if column in SHAPES:
        try:
            return float(SHAPES[column](row))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
    value = row.get(column)
    return None if is_missing(value) else value


def matches(row: Row, arms: Arms) -> bool:
    """Return True if a row has all the columns and shapes of `arms`."""
    return all(
        is_wanted(value_of(row, column), wanted, NEAR if column in SHAPES else SAME) for column, wanted in arms.items()
    )


def is_wanted(value: Any, wanted: Any, near: float = 0.0) -> bool:
    """Return True if a value is the wanted one.

    A number matches within `near` of it (relative) or in its range ``low..high``. A list matches if any of its items does.
    """
    if isinstance(wanted, list):
        return any(is_wanted(value, one, near) for one in wanted)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(wanted, str) and ".." in wanted:
        low, high = (float(end) for end in wanted.split(".."))
        return number and low <= value <= high
    if number and isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return abs(value - wanted) <= near * abs(wanted)
    return bool(value == wanted)


def clipped(row: Row) -> float:
    """Return the final loss, at most the loss before training, which is also that of a diverged run.

    Infinite if neither is known."""
    known = [row[key] for key in ("val_loss", "init_val_loss") if not is_missing(row[key])]
    return float(min(known, default=math.inf))
