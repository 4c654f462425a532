"""A ladder: arms at several sizes on paired seeds, as numbers, from a study's file and the rows of its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmablate.core.errors import ConfigError
from lmablate.results.arms import is_missing
from lmablate.results.lost import is_lost
from lmablate.scaling.forms import FORMS
from lmablate.scaling.law import RESAMPLES, Law, fit
from lmablate.scaling.points import Points

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[int, int]  # init_seed, data_seed
EVALUATE = "evaluate"  # the stage whose runs count


class Run(NamedTuple):
    """A run of a ladder. `loss`: nats per token, None if it is lost (results.lost); `seconds`: of training, None if another run was trained
    beside it; `budget`: tokens per parameter of its branch over those of the rung, 1 for the whole run."""

    arm: str
    rung: str
    pair: Pair
    budget: float
    params: float
    tokens: float
    flops: float
    loss: float | None
    seconds: float | None
    run_id: str


class Ladder(NamedTuple):
    """The runs of one ladder study. `rungs` go up; those of `held_out` were forecast. The first arm is the baseline."""

    study: str
    question: str
    arms: tuple[str, ...]
    rungs: tuple[str, ...]
    held_out: frozenset[str]
    runs: tuple[Run, ...]

    @property
    def baseline(self) -> str:
        """Return the arm that the others are measured against."""
        return self.arms[0]

    @property
    def fitted(self) -> tuple[str, ...]:
        """Return the rungs that laws and forecasts rest on."""
        return tuple(rung for rung in self.rungs if rung not in self.held_out)

    def at(self, arm: str, rung: str) -> dict[Pair, Run]:
        """Return the whole runs of an arm at a rung by pair of seeds."""
        return {run.pair: run for run in self.runs if run.arm == arm and run.rung == rung and run.budget == 1}

    def lost(self, arm: str) -> list[str]:
        """Return the rungs at which a run of the arm diverged or learned nothing."""
        return [r for r in self.rungs if any(run.loss is None for run in self.at(arm, r).values())]

    def size(self, rung: str, field: str = "flops") -> float:
        """Return the mean size of the baseline's runs at a rung; nan without runs."""
        found = [getattr(run, field) for run in self.at(self.baseline, rung).values()]
        return float(np.mean(found)) if found else math.nan

    def differences(self, arm: str, rung: str, *, minus: str | None = None) -> list[float]:
        """Return the losses of an arm less those of the baseline (or `minus`) over common pairs, nats per token."""
        ours, base = self.at(arm, rung), self.at(minus or self.baseline, rung)
        both = [(ours[pair].loss, base[pair].loss) for pair in sorted(ours.keys() & base.keys())]
        return [a - b for a, b in both if a is not None and b is not None]

    def law(
        self, form: str = "compute", *, arm: str | None = None, held_out: bool = False, resamples: int = RESAMPLES
    ) -> Law:
        """Return a law of an arm (default: the baseline) over the fitted rungs, or over all.

        Laws of tokens take the shorter budgets of each rung too; a law of compute the whole runs. Raises ConfigError for an arm
        that lost a run, and for fewer than three rungs."""
        arm = arm or self.baseline
        rungs = self.rungs if held_out else self.fitted
        if lost := [rung for rung in self.lost(arm) if rung in rungs]:
            raise ConfigError(f"{self.study}: {arm} {lost_at(lost)}, and no law goes through that")
        whole = "tokens" not in FORMS[form].columns
        own = [r for r in self.runs if r.arm == arm and r.rung in rungs and r.loss is not None]
        own = [r for r in own if r.budget == 1 or not whole]
        columns = {name: [getattr(run, name) for run in own] for name in FORMS[form].columns}
        points = Points.of(columns, [float(run.loss or 0) for run in own], [(run.rung, run.pair) for run in own])
        return fit(points, FORMS[form], resamples=resamples)


def ladders(runs: pd.DataFrame, studies: Iterable[Mapping[str, Any]]) -> list[Ladder]:
    """Return the ladders among `studies` (studies_in) with their finished runs (load_runs)."""
    by_id = {row["run_id"]: row for row in runs.to_dict("records")}
    return [ladder_of(study, by_id) for study in studies if study.get("ladder")]


def ladder_of(study: Mapping[str, Any], rows: Mapping[str, Mapping[Any, Any]]) -> Ladder:
    """Return the ladder of a study's file and of rows by run id."""
    node = study["ladder"]
    names = tuple(rung["name"] for rung in node["rungs"])
    held_out = frozenset(rung["name"] for rung in node["rungs"] if rung["held_out"])
    uses = [use for use in study["runs"] if use["stage"] == EVALUATE and use["run_id"] in rows]
    whole: dict[str, float] = {}
    for use in uses:
        whole[use["rung"]] = max(whole.get(use["rung"], 0.0), float(rows[use["run_id"]]["tokens"]))
    beside = _beside(rows)
    found = [_run(use, rows[use["run_id"]], whole[use["rung"]], use["run_id"] not in beside) for use in uses]
    kept = tuple(run for run in found if run is not None)
    return Ladder(study["sweep"], study.get("question", ""), tuple(node["arms"]), names, held_out, kept)


def _beside(rows: Mapping[str, Mapping[Any, Any]]) -> set[str]:
    """Return the runs during which another of `rows` was trained, so that their seconds measure both. Rows without times are not."""
    starts = "provenance.started", "provenance.finished"
    timed = [
        (*(str(row[key]) for key in starts), name)
        for name, row in rows.items()
        if not any(is_missing(row.get(key)) for key in starts)
    ]
    active: list[tuple[str, str]] = []
    found: set[str] = set()
    for start, finish, name in sorted(timed):  # times of one form, in UTC
        active = [(end, other) for end, other in active if end > start]
        found |= {name, *(other for _, other in active)} if active else set()
        active.append((finish, name))
    return found


def _run(use: Mapping[str, Any], row: Mapping[Any, Any], whole: float, alone: bool) -> Run | None:
    if row["status"] == "failed":
        return None
    tokens = float(row["tokens"])
    seconds = row.get("wall_seconds")
    return Run(
        arm=use["of"],
        rung=use["rung"],
        pair=(int(use["init_seed"]), int(use["data_seed"])),
        budget=round(use["tokens"] / use["whole"], 4) if use.get("whole") else round(tokens / whole, 4),
        params=float(row["n_params_non_embedding"]),
        tokens=tokens,
        flops=float(row["flops_per_token"]) * tokens,
        loss=None if is_lost(row) else float(row["val_loss"] or 0),
        seconds=float(seconds) if alone and seconds and seconds > 0 else None,
        run_id=str(row["run_id"]),
    )


def lost_at(rungs: Sequence[str]) -> str:
    """Return what became of an arm that lost runs at `rungs`, in words."""
    return f"diverged or learned nothing at {', '.join(rungs)}"


def mean_loss(runs: Sequence[Run]) -> float | None:
    """Return the mean loss of some runs, None if one is lost or there is none."""
    losses = [run.loss for run in runs]
    return None if not losses or None in losses else float(np.mean([loss for loss in losses if loss is not None]))
