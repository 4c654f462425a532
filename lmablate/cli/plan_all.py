"""``lmablate plan --all scale=laptop``: check and price every stored sweep, and count shared runs once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmablate.cli.front_door import main as front_door
from lmablate.core.console import Column, console, duration, progress, table
from lmablate.core.paths import SWEEPS_DIR
from lmablate.launcher.pricing import calibrate, seconds_of

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study


@dataclass
class SweepJobs:
    """The jobs of one sweep.

    `known` jobs are keyed by run id. `later` jobs have a learning rate that is still to be chosen. They are keyed by the id at
    the configured rate, which is enough to tell equal ones apart from others."""

    known: dict[str, Job] = field(default_factory=dict)
    later: dict[str, Job] = field(default_factory=dict)
    data: dict[str, TokenData] = field(default_factory=dict)

    def grid(self, configs: Sequence[RunConfig], launcher: str) -> int:
        """Collect the jobs of a grid. Return the exit code."""
        from lmablate.launcher.jobs import prepare_jobs

        jobs, self.data = prepare_jobs(configs)
        self.known = {job.run_id: job for job in jobs}
        return 0

    def study(self, study: Study, launcher: str) -> int:
        """Collect the jobs of a study. Return the exit code."""
        from lmablate.sweeper.outlook import known_and_later

        self.known, later, self.data = known_and_later(study)
        self.later = {job.run_id: job for job in later}
        return 0


def plan_all(overrides: Sequence[str]) -> int:
    """Print a line for each stored sweep and the total. The first that cannot run ends it with its error and exit code 2."""
    sweeps: dict[str, SweepJobs] = {}
    for sweep in progress(sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml")), "sweeps composed"):
        jobs = sweeps[sweep] = SweepJobs()
        command = [f"sweeps={sweep}", *overrides]
        if code := front_door("plan", jobs.grid, command, study=jobs.study):
            print(f"in sweeps={sweep}", file=sys.stderr)
            return code
    show(sweeps)
    return 0


def show(sweeps: Mapping[str, SweepJobs]) -> None:
    """Print the table of sweeps, and the total number of runs and time."""
    from lmablate.launcher.scheduler import slot_count

    rows: list[tuple[str, ...]] = []
    seen: set[str] = set()
    total, every = 0.0, 0
    for sweep, one in sweeps.items():
        jobs = {**one.known, **{f"later {run_id}": job for run_id, job in one.later.items()}}
        done = {key for key, job in one.known.items() if job.done}
        shared = jobs.keys() & seen
        todo = [job for key, job in jobs.items() if key not in done and key not in shared]
        speed = calibrate(todo[0], one.data[todo[0].run_id]) if todo else 1.0
        seconds = sum(seconds_of(job, speed) for job in todo) / (slot_count(todo) or 1)
        seen |= jobs.keys()
        total, every = total + seconds, every + len(todo)
        price = duration(seconds) if todo else "-"
        rows.append((sweep, str(len(jobs)), str(len(todo)), price, str(len(done)), str(len(shared - done))))
    names = ("runs", "to train", "time", "done", "asked before")
    console().print(table([Column("sweep", keep=True, wrap=True), *map(Column, names)], rows))
    print(f"{every} runs to train, about {duration(total)} on this machine; start-up and evaluation come on top")
