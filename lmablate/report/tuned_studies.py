"""Tuned studies in a report: evaluation runs under the names of their arms, and the effect of the learning rate.

Runs of a tuning stage chose a learning rate and are no other evidence, so they are reported separately.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.claims.report_verdicts import EVALUATED
from lmablate.results.arms import arm_columns, arm_label, is_missing, with_arms
from lmablate.stats.curves import lr_sensitivity
from lmablate.stats.pairs import against, comparisons

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
LR = "optim.lr"
FEWEST = 3  # learning rates needed for a sensitivity


def shown(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that a report compares, with a column `arm`.

    Evaluated runs of studies (report_verdicts.evidence) are under their arms' names, all others under the columns that tell them
    apart. If there are only runs that tuned or searched, all of them."""
    import pandas as pd

    if "stage" not in runs or not runs["stage"].isin(EVALUATED).any():
        plain = runs[runs["stage"].isna()] if "stage" in runs else runs
        plain.attrs.update(runs.attrs)
        return with_arms(plain if len(plain) else runs)
    own, rest = runs[runs["stage"].isin(EVALUATED)].copy(), runs[runs["stage"].isna()]
    several = runs["sweep"].nunique() > 1
    both = {sweep for sweep, rows in own.groupby("sweep") if rows["stage"].nunique() > 1}
    own["arm"] = [
        (f"{row['sweep']}: " if several else "")
        + str(row["arm"])
        + (", shared rate" if row["sweep"] in both and row["stage"] == "evaluate_shared" else "")
        for row in own.to_dict("records")
    ]
    out = pd.concat([own, with_arms(rest)], ignore_index=True) if len(rest) else own.reset_index(drop=True)
    out.attrs.update(runs.attrs)
    return out


def compared(runs: pd.DataFrame, studies: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return paired comparisons of `runs` (as from shown): a study's arms against its baseline, others along every column.

    Trials of a search are not compared, since each was chosen from the losses of the others."""
    if "stage" in runs and (runs["stage"] == "search").all():
        return []
    if "stage" not in runs or not runs["stage"].isin(EVALUATED).any():
        return comparisons(runs)
    studies = list(studies)
    baselines = {study["sweep"]: study.get("baseline") for study in studies}
    sized = {study["sweep"]: study for study in studies if study.get("ladder")}
    out = []
    for (sweep, _), rows in runs[runs["stage"].notna()].groupby(["sweep", "stage"], sort=False):
        arms = list(dict.fromkeys(rows["arm"]))
        plain = {arm: arm.removeprefix(f"{sweep}: ").removesuffix(", shared rate") for arm in arms}
        if sweep not in sized:
            base = next((arm for arm in arms if plain[arm] == baselines.get(sweep)), arms[0])
            out += against(rows, "arm", base)
            continue
        for own in arms_by_size(arms, sized[sweep]):
            out += against(rows[rows["arm"].isin(own)], "arm", own[0])
    rest = runs[runs["stage"].isna()]
    rest.attrs.update(runs.attrs)
    return out + comparisons(rest)


def arms_by_size(arms: Sequence[str], study: Mapping[str, Any]) -> list[list[str]]:
    """Return the arms of each rung and budget of a ladder study, the baseline first; sizes without a baseline are left out."""
    base = study["ladder"]["arms"][0]
    uses = {use["arm"]: use for use in study["runs"]}
    groups: dict[tuple[str, int], list[str]] = {}
    is_base = {}
    for arm in arms:
        if use := uses.get(arm.removeprefix(f"{study['sweep']}: ")):
            is_base[arm] = use["of"] == base
            groups.setdefault((use["rung"], use["tokens"]), []).append(arm)
    ordered = [sorted(own, key=lambda arm: not is_base[arm]) for own in groups.values()]
    return [own for own in ordered if is_base[own[0]]]


def sensitivities(runs: pd.DataFrame, studies: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the learning rates of every arm that was trained at three or more: of tuned studies, then of plain grids.

    Each: sweep, arm, lr (the best rate, or the one that a study chose), words (a sentence on that choice, or None), lowest and
    highest rate, rates, diverged (rates with a diverged run), loss (the lowest mean over seeds, nats per token), sensitivity
    (Wortsman et al. 2023, over the rates that all arms of the sweep have; None if every rate diverged, or fewer than
    three are common).
    """
    studies = list(studies)
    out = [row for study in studies for row in _of_study(runs, study)]
    return out + _of_grid(runs[~runs["sweep"].isin([study["sweep"] for study in studies])])


def _of_study(runs: pd.DataFrame, study: Mapping[str, Any]) -> list[Row]:
    grids: dict[str, dict[float, float | None]] = {}
    for name, arm in study["arms"].items():
        points = [point for point in arm.get("grid") or () if point["settings"] == arm["settings"]]
        if len(points) >= FEWEST:
            grids[name] = {point["lr"]: point["loss"] for point in points}
    tuned = runs[(runs["sweep"] == study["sweep"]) & (runs["stage"] == "tune")] if "stage" in runs else runs[:0]
    chosen = {name: (study["arms"][name]["lr"], study["arms"][name].get("words")) for name in grids}
    starts = {name: _start(tuned[tuned["arm"] == name]) for name in grids}
    return _rows(study["sweep"], grids, starts, chosen)


def _of_grid(runs: pd.DataFrame) -> list[Row]:
    out = []
    for sweep, rows in runs.groupby("sweep", sort=False, dropna=False):
        rows = rows.copy()
        rows.attrs.update(runs.attrs)
        columns = arm_columns(rows)
        if LR not in columns:
            continue
        held = [column for column in columns if column != LR]
        names = [arm_label(row, held) for row in rows.to_dict("records")]
        grids, starts = {}, {}
        for name, own in rows.groupby(names, sort=True):
            grid = {float(lr): _mean(at) for lr, at in own.groupby(LR)}
            if len(grid) >= FEWEST:
                grids[str(name)], starts[str(name)] = grid, _start(own)
        out += _rows(None if is_missing(sweep) else str(sweep), grids, starts, {})
    return out


def _mean(rows: pd.DataFrame) -> float | None:
    """Return the mean final loss over seeds; None if one diverged."""
    return None if (rows["status"] != "completed").any() else float(rows["val_loss"].mean())


def _start(rows: pd.DataFrame) -> float | None:
    mean = float(rows["init_val_loss"].mean()) if len(rows) else float("nan")
    return None if is_missing(mean) else mean


def _rows(
    sweep: str | None,
    grids: Mapping[str, Mapping[float, float | None]],
    starts: Mapping[str, float | None],
    chosen: Mapping[str, tuple[float | None, str | None]],
) -> list[Row]:
    common: Sequence[float] = sorted(set.intersection(*map(set, grids.values()))) if grids else ()
    out = []
    for name, grid in grids.items():
        finite = {lr: loss for lr, loss in grid.items() if loss is not None}
        best = min(finite, key=lambda lr: finite[lr]) if finite else None
        lr, sentence = chosen.get(name, (best, None))
        start, here = starts[name], {rate: grid[rate] for rate in common}
        known = start is not None and len(common) >= FEWEST and any(loss is not None for loss in here.values())
        out.append({
            "sweep": sweep, "arm": name, "lr": lr, "words": sentence, "lowest": min(grid), "highest": max(grid), "rates": len(grid),
            "diverged": len(grid) - len(finite), "loss": min(finite.values()) if finite else None,
            "sensitivity": lr_sensitivity(here, start) if known and start is not None else None,
            "common": [min(common), max(common), len(common)] if common else None,
        })  # fmt: skip
    return out


def correlation_note(rows: Sequence[Row]) -> str | None:
    """Return a sentence on the correlation from shared seeds, over all comparisons that have it; None without any."""
    known = [row["correlation"] for row in rows if row["correlation"] is not None]
    if not known:
        return None
    middle = statistics.median(known)
    return (
        f"Losses of two arms that share a seed correlate by {middle:.2f} (median of {len(known)} comparisons): their difference "
        f"has {max(0.0, 2 * (1 - middle)) ** 0.5 / 2**0.5:.2f} times the sd that independent seeds would give."
    )
