"""Find the keys that vary between runs, and the runs that are repeats (seeds) of one arm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.axes import AXES

if TYPE_CHECKING:
    import pandas as pd

# The research axes in reading order; other groups follow in the order of the frame.
AXIS_ORDER = (
    *AXES,
    *("preset", "shrink", "model", "data", "tokenizer", "objective", "optim", "schedule", "trainer", "budget"),
)
_NOT_AXES = ("run_id", "status", "sweep", "numerics", "runtime", "arm", "stage", "trunk", "code")
# Columns about paths and execution, not about the science.
_NOT_SCIENCE = (
    *("numerics.", "provenance.", "runtime.", "diagnostics.", "data.paths", "data.skip_bad_lines", "tokenizer.path"),
    *("config.schema_version", "config.init_seed", "config.data_seed", "config.lr_from", "val_accuracy_by_length."),
)
# Options whose names say little without their axis.
_BARE = ("none", "all", "tiny", "small", "base", "short")


def axis_columns(runs: pd.DataFrame) -> list[str]:
    """Return the columns that hold option names, in reading order. `load_runs` stores them in ``runs.attrs``; without
    that (a frame read from CSV), undotted columns of text count."""
    noted = runs.attrs.get("axes")
    if noted is None:
        noted = [c for c in runs.columns if "." not in c and all(isinstance(value, str) for value in runs[c])]
    found = [column for column in noted if column in runs.columns and column not in _NOT_AXES]
    known = [axis for axis in AXIS_ORDER if axis in found]
    return known + [column for column in found if column not in known]


def config_columns(runs: pd.DataFrame) -> list[str]:
    """Return the dotted columns that belong to the science of a run: ``optim.lr``, ``model.d_ff``, ``data.fingerprint``."""
    dotted = [column for column in runs.columns if "." in column and not column.endswith("_target_")]
    return [column for column in dotted if not column.startswith(_NOT_SCIENCE)]


def axes_that_vary(runs: pd.DataFrame, *, config: bool = False) -> list[str]:
    """Return the axes (`norm`, `activation`, ...) with more than one option among `runs`, in reading order.

    With `config`, also the dotted configuration keys (`optim.lr`, `model.d_ff`) with more than one value. A run that
    lacks an axis counts as different from one that has it.
    """
    columns = axis_columns(runs) + (config_columns(runs) if config else [])
    return [column for column in columns if len(set(keys(runs, column))) > 1]


def arm_columns(runs: pd.DataFrame) -> list[str]:
    """Return the fewest columns that distinguish the arms of `runs`: runs with equal values differ in seeds at most.
    These are all axes that vary, then the configuration keys that the axes do not already decide (`optim.lr` of a
    learning-rate grid, but not the `model.d_ff` that follows from the activation), then `science_version` and `code` if
    they are mixed."""
    chosen = axes_that_vary(runs)
    if "preset" in chosen:  # a published system replaces the axes it decides
        systems = keys(runs, "preset")
        pairs = {column: set(zip(systems, keys(runs, column), strict=True)) for column in chosen}
        chosen = [column for column in chosen if column == "preset" or len(pairs[column]) > len(set(systems))]
    groups = _join([keys(runs, column) for column in chosen], len(runs))
    lists = [overrides for overrides in runs.get("provenance.overrides", ()) if not is_missing(overrides)]
    given = {override.partition("=")[0].lstrip("+") for overrides in lists for override in overrides}
    rest = [column for column in axes_that_vary(runs, config=True) if column not in chosen]
    rest = sorted(rest, key=lambda column: column not in given)  # overrides name the arm, not what follows from them
    for column in [*rest, "science_version", *(["code"] if "code" in runs.columns else [])]:
        values = keys(runs, column)
        if len(set(zip(groups, values, strict=True))) > len(set(groups)):
            chosen.append(column)
            groups = _join([groups, values], len(runs))
    return chosen


def arm_label(row: Mapping[Any, Any], columns: Sequence[str]) -> str:
    """Return a short name of an arm, such as ``rms · swiglu`` or ``layer · lr 0.003``. `columns` are those of arm_columns."""
    parts = []
    for column in columns:
        value, name = show(row[column]), column.rpartition(".")[2]
        if column == "data.fingerprint":
            name, value = "text", value[:8]
        if column == "code":
            value = "as shipped" if is_missing(row[column]) else value
        if sum(other.rpartition(".")[2] == name for other in columns) > 1:
            name = column
        speaking = "." not in column and column not in ("science_version", "code") and value not in _BARE
        parts.append(value if speaking else f"{name} {value}")
    return " · ".join(parts) or "all runs"


def with_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of `runs` with a column `arm`, the label of each run's arm."""
    import pandas as pd

    columns = arm_columns(runs)
    rows = runs[columns].to_dict("records") if columns else [{}] * len(runs)
    out = runs.copy()
    out["arm"] = pd.Series([arm_label(row, columns) for row in rows], index=runs.index, dtype=str)
    return out


def show(value: Any) -> str:
    """Return a configuration value as text: ``0.003``, ``512``, ``true``, ``-`` for none."""
    if is_missing(value):
        return "-"
    if isinstance(value, tuple | list):
        return ", ".join(map(show, value))
    value = value.item() if hasattr(value, "item") else value  # unwraps numpy's scalars
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN or pandas' NA: null in the configuration, or a key that the row lacks."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def keys(runs: pd.DataFrame, column: str) -> list[Hashable]:
    """Return the values of a column as comparable ones; every kind of missing value is None."""
    return [None if is_missing(v) else tuple(v) if isinstance(v, list) else v for v in runs[column]]


def in_order(option: Hashable) -> tuple[bool, float, str]:
    """Return a sorting key: numbers by size, then text by letter."""
    if isinstance(option, int | float):
        return False, float(option), ""
    return True, 0.0, show(option)


def _join(columns: Sequence[Sequence[Hashable]], length: int) -> list[Hashable]:
    return list(zip(*columns, strict=True)) if columns else [()] * length
