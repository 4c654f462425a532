"""What the figures of all studies share: which runs are whose, effects in per cent with intervals, and published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from lmablate.results.arms import with_arms
from lmablate.results.lost import LOST_COLUMNS, is_lost
from lmablate.stats import interval

EVALUATE = ("evaluate", "evaluate_shared")


class Effect(NamedTuple):
    """Per cent, with the ends of a 95 % interval (None below two pairs), from `n` pairs; `lost` says how many of the arm's runs diverged
    or learned nothing, which are no pairs, and is empty without one."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    lost: str


def load(results_dir: str, sweep: str) -> pd.DataFrame:
    """The runs of one study, with the arms and stages that it gave them; of a grid, with what tells its runs apart."""
    from lmablate.results import load_runs
    from lmablate.results.studies import load_studies, study_runs

    runs, studies = load_runs(results_dir), load_studies(results_dir)
    if sweep in studies:
        return study_runs(runs, studies[sweep])
    own = runs[runs["sweep"] == sweep]
    own.attrs.update(runs.attrs)
    known = own["stage"].fillna("evaluate") if "stage" in own else "evaluate"
    return own.assign(arm=arm_of(own), stage=known)


def stage(runs: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The runs of some stages of a study; rows of no study count as evaluation."""
    if "stage" not in runs:
        return runs if "evaluate" in names else runs.iloc[:0]
    known = runs["stage"].fillna("evaluate")
    return runs[known.isin(names)]


def arm_of(runs: pd.DataFrame) -> pd.Series:
    """The arm of each run, as its study named it; of runs of no study, what tells them apart."""
    named = runs["arm"].notna() if "arm" in runs else pd.Series(False, index=runs.index)
    if named.all():
        return runs["arm"].astype(str) if len(runs) else pd.Series("", index=runs.index, dtype=str)
    rest = runs[~named].drop(columns="arm", errors="ignore")
    rest.attrs.update(runs.attrs)
    own = with_arms(rest)["arm"]
    return own if not named.any() else runs["arm"].where(named, own).astype(str)


def arms_in_order(runs: pd.DataFrame, first: str = "") -> list[str]:
    """The arms as they came, the baseline first."""
    found = list(dict.fromkeys(arm_of(runs)))
    return sorted(found, key=lambda arm: arm != first) if first in found else found


def _by_pair(rows: pd.DataFrame, metric: str = "val_loss") -> dict[tuple[int, int, str], float]:
    """Final loss, or another metric, by seeds and numerics of the runs that completed and learned something."""
    rows = rows[~lost(rows)]
    return {
        (int(r["init_seed"]), int(r["data_seed"]), str(r["numerics"])): float(r[metric])
        for r in rows[["init_seed", "data_seed", "numerics", metric]].to_dict("records")
    }


def effects(runs: pd.DataFrame, baseline: str, metric: str = "val_loss") -> dict[str, Effect]:
    """Each arm against `baseline` over common seeds: change of the final `metric` in per cent of the baseline's mean.

    Where arms are crossed with other keys, each is held against the baseline at its own (``b, n_layers 8`` against
    ``a, n_layers 8``)."""
    arms = arm_of(runs)
    names = set(arms)
    out = {}
    for arm in arms_in_order(runs, baseline):
        rows = runs[arms == arm]
        mine = _by_pair(rows, metric)
        own = baseline if baseline in names else ", ".join([baseline, *arm.split(", ")[1:]])
        base = _by_pair(runs[arms == own], metric)
        common = sorted(mine.keys() & base.keys())
        scale = sum(base[pair] for pair in common) / len(common) if common else math.nan
        out[arm] = _effect([100 * (mine[pair] - base[pair]) / scale for pair in common], rows)
    return out


def increases(runs: pd.DataFrame, metric: str = "val_loss") -> dict[str, Effect]:
    """Each arm's final loss, or another metric, over that of the best arm, in per cent, with within-seed intervals.

    What a seed does to all arms alike is taken out first: of each loss the mean of its seed over the arms, with the factor
    sqrt(k / (k - 1)) for k arms that this costs (Morey 2008). Only seeds that every drawn arm completed are used; an arm
    with none is given without a value.
    """
    arms = arm_of(runs)
    losses = {arm: _by_pair(runs[arms == arm], metric) for arm in arms_in_order(runs)}
    losses_done = {arm: values for arm, values in losses.items() if values}
    common = sorted(set.intersection(*(set(values) for values in losses_done.values()))) if losses_done else []
    means = {arm: sum(values[p] for p in common) / len(common) for arm, values in losses_done.items()} if common else {}
    best = min(means.values(), default=math.nan)
    k = len(means)
    factor = math.sqrt(k / (k - 1)) if k > 1 else 0.0
    out = {}
    for arm in losses:
        rows = runs[arms == arm]
        if arm not in means:
            out[arm] = _effect([], rows)
            continue
        grand = sum(means.values()) / k
        centred = [losses[arm][p] - sum(values[p] for values in losses_done.values()) / k for p in common]
        middle = means[arm] - grand
        spread = [100 * (means[arm] + factor * (value - middle) - best) / best for value in centred]
        out[arm] = _effect(spread, rows)
    return out


def _effect(values: list[float], rows: pd.DataFrame) -> Effect:
    bounds = interval(values) or (None, None)
    mean = sum(values) / len(values) if values else None
    return Effect(mean, bounds[0], bounds[1], len(values), lost_note(rows))


def lost(rows: pd.DataFrame) -> pd.Series:
    """Whether each run diverged or learned nothing, as claims count it."""
    few = rows[[name for name in LOST_COLUMNS if name in rows]]  # rows of all columns took a seventh of a report's time
    return pd.Series([is_lost(row) for row in few.to_dict("records")], index=rows.index, dtype=bool)


def with_lost(arm: str, rows: pd.DataFrame) -> str:
    """The arm, and how many of its runs were lost."""
    note = lost_note(rows)
    return f"{arm} ({note})" if note else arm


def lost_note(rows: pd.DataFrame) -> str:
    """How many of the runs diverged, or were lost otherwise too; empty if none was."""
    found = rows[lost(rows)]
    word = "diverged" if (found["status"] == "diverged").all() else "lost"
    return f"{len(found)} of {len(rows)} {word}" if len(found) else ""


def positions(runs: pd.DataFrame, where: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    """Where each arm stands on the axis, from the resolved sizes of its first run."""
    arms = arm_of(runs)
    return {arm: where(runs[arms == arm].iloc[0].to_dict()) for arm in arms_in_order(runs)}


@cache
def _published() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())


def published(sweep: str) -> list[dict[str, Any]]:
    """The published series of a sweep: label, source, grade, and values by arm, points or a band."""
    return list(_published().get(sweep, {}).get("series", ()))
