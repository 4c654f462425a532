"""Verdicts on a results directory: its runs as its studies used them, the verdicts, and differences as compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.claims.verdict import judge
from lmablate.results.arms import is_missing
from lmablate.results.studies import study_runs
from lmablate.schema.sweeps import sweep_claims
from lmablate.stats.curves import effective_compute
from lmablate.stats.noise import seed_noise

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
EVALUATED = ("evaluate", "evaluate_shared")


def verdicts(runs: pd.DataFrame, history: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the verdicts on the claims that finished `runs` touch (`runs` from evidence, rows as from judge).

    A test of the final loss also has `compute`, its effect as the baseline's tokens."""
    # A study's file says what it asks for, which a command may have changed; runs without one ask for what the stored sweep does.
    sweeps = {name for name in runs["sweep"] if isinstance(name, str)} - {study["sweep"] for study in studies}
    claims = judge(runs, studies=studies, requested={sweep: sweep_claims(sweep) for sweep in sweeps})
    for claim in claims:
        for test in claim["tests"]:
            test["compute"] = _compute(test, runs, history)
    return claims


def evidence(runs: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return `runs` once for each study and stage that used them, and runs of no study unchanged.

    Runs on which one study tuned may be evidence in another that evaluates them, since nothing was chosen by them there. Runs
    of a search never are, since its best may be an arm here; ``attrs["searched"]`` counts the runs left out for that."""
    import pandas as pd

    used = [study_runs(runs, dict(study)) for study in studies]
    known = {run_id for frame in used for run_id in frame["run_id"]}
    if not known:
        return runs
    rest = runs[~runs["run_id"].isin(known)]
    joined = pd.concat([frame for frame in (*used, rest) if len(frame)], ignore_index=True)
    joined = joined.drop_duplicates(["run_id", "stage", "sweep"], ignore_index=True)
    searched = {use["run_id"] for study in studies if study.get("search") for use in study["runs"]}
    chosen_by = joined["run_id"].isin(searched) & joined["stage"].isin(EVALUATED)
    joined = joined[~chosen_by].reset_index(drop=True)
    joined.attrs.update(runs.attrs)
    joined.attrs["searched"] = int(chosen_by.sum())
    return joined


def noise(runs: pd.DataFrame) -> list[Row]:
    """Return the spread of every arm of `runs` (with_arms) with at least two finished seeds."""
    rows = [{"arm": arm, **seed_noise(own)._asdict()} for arm, own in runs.groupby("arm", sort=True)]
    return [row for row in rows if row["n"] > 1]


def _compute(test: Row, runs: pd.DataFrame, history: pd.DataFrame) -> Row | None:
    """Return the final loss of the claimed arms on the mean curve of the arms they are measured against, or None."""
    sides = test["runs"]
    simple = test["metric"] == "val_loss" and test["effect"] is not None and sides["plus"] and sides["minus"]
    if not simple or test["diverged"]["plus"][0] or test["diverged"]["minus"][0] or len(test["minus"]) > 1:
        return None
    target = runs.loc[runs["run_id"].isin(sides["plus"]), "val_loss"].mean()
    curve = history[history["run_id"].isin(sides["minus"])].dropna(subset=["val_loss"])
    means = curve.groupby("tokens")["val_loss"].mean()
    if is_missing(float(target)) or means.empty:
        return None
    return effective_compute(list(means.index), list(means), float(target))._asdict()
