"""Print a search: its space, its trials from the best down, and a conclusion."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from lmablate.core.console import Column, console, table
from lmablate.launcher.jobs import Job
from lmablate.launcher.pricing import show

if TYPE_CHECKING:
    from rich.text import Text

    from lmablate.data import TokenData
    from lmablate.sweeper.optuna_search import Search
    from lmablate.sweeper.optuna_trials import SearchTrial

SHOWN = 20  # trials of the table
UNITS = {
    "val_loss": "validation loss, nats per token",
    "val_bpb": "bits per byte of the validation text",
    "train_loss": "training loss, nats per token",
}


def report(search: Search) -> None:
    """Print the table of trials and the best of them."""
    console().print(trials_table(search))
    for line in conclusion(search):
        print(line)


def trials_table(search: Search) -> Text:
    """Return the table of trials, the lowest value first, those without one last."""
    columns = [Column("trial", keep=True), Column(search.settings.metric, keep=True)]
    columns += [Column(one.key, keep=True, left=True) for one in search.space]
    columns += [Column("sd"), Column("state", wrap=True)]
    rows: list[tuple[str, ...]] = []
    first: dict[tuple[str, ...], int] = {}
    for one in search.trials:
        first.setdefault(one.words, one.number)
    order = sorted(search.trials, key=lambda one: (_rank(one), one.value or 0.0, one.number))
    for one in order[:SHOWN]:
        known = [value for value in one.by_seed if value is not None]
        sd = f"{statistics.stdev(known):.4f}" if len(known) > 1 else "-"
        again = f"the same runs as trial {first[one.words]}" if first[one.words] != one.number else ""
        state = ", ".join(filter(None, (" ".join(filter(None, (one.state, one.note))), again)))
        values = (override.partition("=")[2] for override in one.words)
        rows.append((str(one.number), "-" if one.value is None else f"{one.value:.4f}", *values, sd, state))
    return table(columns, rows)


def _rank(one: SearchTrial) -> int:
    """Return the sort key: trials of full length, then diverged or stopped ones (later rungs first), then those without a value."""
    if one.state == "completed" and one.value is not None:
        return 0
    if one.value is None:
        return 100
    return 50 if one.state == "diverged" else 20 - one.rung


def conclusion(search: Search) -> list[str]:
    """Return the lines below the table: the best trial, and the caveats."""
    unit = UNITS[search.settings.metric]
    n, seeds = len(search.trials), search.settings.seeds
    lines = [f"and {n - SHOWN} more trials"] if n > SHOWN else []
    mean = f"mean of seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    lines.append(f"({unit}; {mean}; a run that diverged counts with its loss before training)")
    for state, why in (("refused", "were refused"), ("failed", "crashed, and say nothing of their settings")):
        some = [one for one in search.trials if one.state == state]
        if some:
            lines.append(f"{len(some)} of {n} trials {why}" + (f": {some[0].note}" if state == "refused" else ""))
    best = search.best
    if best is None:
        lines.append(
            "no trial finished, so there is no best: lower the learning rates, or look at the logs of the runs"
        )
        return lines
    lines.append(f"best of {n}: trial {best.number}, {best.value:.4f}, {best.label}")
    for one in search.space:
        if side := one.edge(best.params[one.key]):
            end = one.low if side == "low" else one.high
            what = "lower" if side == "low" else "upper"
            lines.append(f"{one.key} lies at the {what} end of its range, {end:g}: the best may lie beyond")
    lines.append(
        f"It is the best of {n} on the seed{'s' * (len(seeds) > 1)} that chose it, which flatters it, so it is evidence for no claim: "
        "evaluate it on other seeds, e.g. as an arm of a study"
    )
    return lines


def plan(search: Search) -> int:
    """Print the output of ``lmablate.plan``: the space, finished trials, the next batch, and the largest cost of the rest."""
    search.check()
    print(f"{search.name}: {search.total} trials of sampler={search.settings.sampler} over")
    width = max(len(one.key) for one in search.space)
    for one in search.space:
        print(f"  {one.key.ljust(width)}  {one}")
    jobs: dict[str, Job] = {}
    data: dict[str, TokenData] = {}
    pending: list[SearchTrial] = []
    reached = 0
    for trials, rung, some, stores in search.rounds():
        jobs |= {job.run_id: job for job in some}
        data |= stores
        if not all(job.done for job in some):
            pending, reached = trials, rung
            break
    answered = [one for one in search.trials if one.state != "asked"]
    if answered:
        console().print(trials_table(search))
    show(list(jobs.values()), data, _rest(search, pending, reached), "when earlier ones are done")
    if search.best is not None:
        print(f"best so far: trial {search.best.number}, {search.best.value:.4f}, {search.best.label}")
    return 0


def _rest(search: Search, pending: list[SearchTrial], reached: int) -> list[Job]:
    """Return placeholder jobs for runs that are not known yet: future trials and later rungs, priced as the base run."""
    out = []
    alive = len(pending)
    keep = search.settings.halving.keep if search.settings.halving is not None else 1.0
    for rung in range(reached + 1, len(search.rungs)):
        alive = max(1, math.ceil(keep * alive)) if alive else 0
        out += _unknown(search, alive, rung, "of these")
    rest = search.total - len(search.trials)
    for rung in range(len(search.rungs)):
        out += _unknown(search, rest, rung, "still to be asked for")
        rest = max(1, math.ceil(keep * rest)) if rest else 0
    return out


def _unknown(search: Search, n: int, rung: int, what: str) -> list[Job]:
    share = search.rungs[rung]
    trainer = search.base.trainer.model_copy(update={"steps": max(1, round(share * search.base.trainer.steps))})
    cfg = search.base.model_copy(update={"trainer": trainer})
    length = f", {share:.0%} of the steps" if share < 1 else ""
    return [
        Job(cfg, "", label=f"a trial {what} · seed {seed}{length}") for _ in range(n) for seed in search.settings.seeds
    ]
