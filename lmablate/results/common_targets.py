"""Compare runs of several objectives on the targets that they have in common.

``objective=prefix`` counts the targets after a prefix, ``objective=causal`` all of them, so their validation losses do
not compare. Every row also has the loss on the second half of each validation window, given the first half as its
objective reads it: the same targets for all. Objectives that hide tokens of a text have no target in common with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COMMON, OWN = "val_loss_after_50", "val_loss_own"
HIDING = ("mlm", "rtd", "span_corruption")


def on_common_targets(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of `runs` whose `val_loss` is that on common targets, with the objective's own in `val_loss_own`.
    Returns `runs` itself if they have one objective, or if a finished run was not measured on the common targets."""
    if not _mixed(runs) or _unmeasured(runs):
        return runs
    out = runs.copy()
    out.attrs.update(runs.attrs)
    out[OWN] = out["val_loss"]
    out["val_loss"] = out[COMMON].where(out["val_loss"].notna()).astype("float64")
    return out


def objective_notices(runs: pd.DataFrame) -> list[str]:
    """Return notices about the targets of `runs`, as from `on_common_targets`; empty if they have one objective."""
    if not _mixed(runs):
        return []
    start = f"Objectives differ ({', '.join(sorted(runs['objective'].dropna().unique()))})"
    if OWN in runs:
        return [
            f"{start}: tables, differences and final losses are of the targets they have in common, the second half of every "
            f"validation window ({COMMON}). Curves are of each objective's own targets."
        ]
    if hiding := sorted(set(runs["objective"].dropna()) & set(HIDING)):
        return [
            f"{start}, and {' and '.join(hiding)} hide tokens of a text, which others do not: validation losses are not of the same "
            "targets, and no difference between them says anything. Each run has what a unigram model reaches on its own targets."
        ]
    return [
        f"{start}, so validation losses are not of the same targets, and {_unmeasured(runs)} finished runs were not measured on those "
        f"they have in common ({COMMON}): train them again to compare."
    ]


def _mixed(runs: pd.DataFrame) -> bool:
    return "objective" in runs and runs["objective"].nunique() > 1


def _unmeasured(runs: pd.DataFrame) -> int:
    """Return how many runs with a validation loss lack that on the common targets."""
    have = runs["val_loss"].notna()
    return int(have.sum()) if COMMON not in runs else int((have & runs[COMMON].isna()).sum())
