"""Report the sizes that a budget matched between arms, and those that still differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.results.arms import keys

if TYPE_CHECKING:
    import pandas as pd

MATCHED = 0.01  # relative difference up to which sizes count as matched
SIZES = ("n_params", "n_params_non_embedding", "flops_per_token")
_WORDS = dict(zip(SIZES, ("parameters", "non-embedding parameters", "FLOPs per token"), strict=True))
_BUDGETS = {"params": "n_params", "params_non_embedding": "n_params_non_embedding", "flops": "flops_per_token"}


def size_text(size: str) -> str:
    """Return the name of a column of sizes as text."""
    return _WORDS[size]


def matched_size(runs: pd.DataFrame) -> str | None:
    """Return the size that the one budget of all `runs` made equal (``n_params``), or None."""
    budgets = set(keys(runs, "budget")) if "budget" in runs else set()
    size = _BUDGETS.get(str(budgets.pop())) if len(budgets) == 1 else None
    return size if size and _excess(runs[size]) <= MATCHED else None


def size_notices(runs: pd.DataFrame, arms: pd.DataFrame) -> list[str]:
    """Return notices about the sizes in which the arms differ, and the one that was matched."""
    unequal = {size: _excess(arms[size]) for size in SIZES if _excess(arms[size]) > MATCHED}
    if unequal and (matched := matched_size(runs)):
        others = " and ".join(f"{_WORDS[size]} by {by:.1%}" for size, by in unequal.items())
        near = max(0.001, _excess(arms[matched]))
        return [
            f"{_sentence(matched)} were matched (equal within {near:.1%}), which leaves arms that differ in {others}."
        ]
    return [
        f"{_sentence(size)} differ by {by:.1%} between arms: they were not matched." for size, by in unequal.items()
    ]


def _sentence(size: str) -> str:
    return _WORDS[size][0].upper() + _WORDS[size][1:]


def _excess(sizes: pd.Series) -> float:
    """Return by which fraction the largest size exceeds the smallest."""
    return float(sizes.max() / max(1, sizes.min()) - 1)
