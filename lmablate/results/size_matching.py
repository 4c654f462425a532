"""What a budget made equal between arms, and what it left different."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.results.arms import keys

if TYPE_CHECKING:
    import pandas as pd

MATCHED = 0.01  # how far apart two sizes may lie and still count as matched
SIZES = ("n_params", "n_params_non_embedding", "flops_per_token")
_WORDS = dict(zip(SIZES, ("parameters", "non-embedding parameters", "FLOPs per token"), strict=True))
_BUDGETS = {"params": "n_params", "params_non_embedding": "n_params_non_embedding", "flops": "flops_per_token"}


def size_words(size: str) -> str:
    """What a column of sizes holds."""
    return _WORDS[size]


def matched_size(runs: pd.DataFrame) -> str | None:
    """The size that the one budget of all `runs` was to make equal (``n_params``), if it did."""
    budgets = set(keys(runs, "budget")) if "budget" in runs else set()
    size = _BUDGETS.get(str(budgets.pop())) if len(budgets) == 1 else None
    return size if size and _excess(runs[size]) <= MATCHED else None


def size_notices(runs: pd.DataFrame, arms: pd.DataFrame) -> list[str]:
    """In which sizes the arms differ, and whether another was matched."""
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
    """How much the largest exceeds the smallest, as a fraction."""
    return float(sizes.max() / max(1, sizes.min()) - 1)
