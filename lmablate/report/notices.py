"""Notices about studies that a reader must see before the numbers: missing runs, learning rates that were never found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
NAMED = 6  # most seeds named one by one
STAGES = {
    "evaluate": ("evaluation", "Their pairs are missing below"),
    "tune": ("tuning", "The learning rate was chosen without them, or with results that are gone"),
    "search": ("search", "They are not among what was found"),
}


def study_notices(
    runs: pd.DataFrame, studies: Iterable[Mapping[str, Any]], unfinished: Sequence[Row], rates: Sequence[Row]
) -> list[str]:
    """Return one sentence per problem, the most serious first.

    `runs`: every finished run; `unfinished` as from load_unfinished; `rates` as from tuned_studies.sensitivities."""
    return [*missing(runs, studies, unfinished), *untrained(rates), *edges(rates)]


def missing(
    runs: pd.DataFrame,
    studies: Iterable[Mapping[str, Any]],
    unfinished: Sequence[Row],
    stages: Sequence[str] = ("evaluate",),
) -> list[str]:
    """Return notices on planned runs without a result.

    These are evaluation runs of a study's arms, or runs of other `stages` too (prefixes of a stage's name)."""
    done, states = set(runs["run_id"]), {row["run_id"]: row for row in unfinished}
    lines = []
    for study, stage in ((study, stage) for study in studies for stage in stages):
        planned = [use for use in study["runs"] if str(use["stage"]).startswith(stage)]
        lost: dict[str, list[str]] = {}
        for use in planned:
            if use["run_id"] not in done:
                lost.setdefault(use["arm"], []).append(_lost(use, states.get(use["run_id"])))
        for arm, reasons in lost.items():
            n = len({use["run_id"] for use in planned if use["arm"] == arm})
            some = "; ".join(reasons[:NAMED]) + (f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else "")
            what, effect = STAGES[stage]
            lines.append(
                f"{study['sweep']}: {len(reasons)} of the {n} {what} runs of arm {arm} {'has' if len(reasons) == 1 else 'have'} no result "
                f"({some}). {effect}; the same training command makes what is missing."
            )
    return lines


def _lost(use: Mapping[str, Any], row: Row | None) -> str:
    seeds = [use.get("init_seed"), use.get("data_seed")]
    seed = "/".join(map(str, dict.fromkeys(seeds))) if None not in seeds else f"run {use['run_id']}"
    state = "not there" if row is None else row["state"] + (f", {row['error']}" if row["error"] else "")
    return f"{'seed ' if None not in seeds else ''}{seed}: {state}"


def untrained(rates: Sequence[Row]) -> list[str]:
    """Return notices on arms that diverged at every learning rate."""
    return [
        f"Arm {row['arm']} diverged at every learning rate tried ({row['lowest']:g} to {row['highest']:g}), so it is unknown how good "
        "it is where it trains: try lower rates (optim.lr, tune.factors)."
        for row in rates
        if row["diverged"] == row["rates"]
    ]


def edges(rates: Sequence[Row]) -> list[str]:
    """Return a notice on arms whose best learning rate is the lowest or highest tried."""
    at_end = [row for row in rates if row["diverged"] < row["rates"] and row["lr"] in (row["lowest"], row["highest"])]
    if not at_end:
        return []
    named = [
        f"{row['arm']} ({row['lr']:g}, the {'lowest' if row['lr'] == row['lowest'] else 'highest'} of {row['rates']})"
        for row in at_end
    ]
    several = len(named) > 1
    return [
        f"The best learning rate lies at the edge of those tried for {', '.join(named)}: {'their losses' if several else 'its loss'} may "
        "yet fall, and a difference between arms may be one of tuning. Widen tune.factors, or raise tune.extend."
    ]
