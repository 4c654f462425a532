"""Train one run, a grid, or a stored question.

  lmablate train norm=layer activation=gelu
  lmablate train -m norm=rms,layer seed=0,1,2,3

Runs that are done are not trained again. lmablate plan with the same overrides says first what it costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lmablate.cli.front_door import main as front_door
from lmablate.cli.front_door import then
from lmablate.core.errors import exit_on_config_error
from lmablate.training import distributed

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study


def train(configs: Sequence[RunConfig], launcher: str) -> int:
    """Train the runs of `configs` that are not done. Returns the exit code."""
    if distributed.is_distributed(configs):
        from lmablate.launcher.torchrun import train_together

        return train_together(configs, launcher)
    from lmablate.launcher.jobs import prepare_jobs

    run = _runner(launcher)
    return run(*prepare_jobs(configs))


def train_study(study: Study, launcher: str) -> int:
    """Train the runs of a study that are not done, stage by stage. Returns the exit code."""
    distributed.refuse_study()
    return study.run(_runner(launcher))


def _runner(launcher: str) -> Callable[[Sequence[Job], Mapping[str, TokenData]], int]:
    """Return the function that runs jobs with a launcher. Raises ConfigError for an engine that is missing."""
    from lmablate.launcher.engine import engine_of
    from lmablate.launcher.scheduler import run_jobs

    engine = engine_of(launcher)
    return lambda jobs, data: run_jobs(jobs, gang=data if launcher == "gang" else None, engine=engine)


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    from lmablate.launcher.processes import shared_warm_process

    args = list(sys.argv[1:] if argv is None else argv)
    with shared_warm_process(args):
        return front_door("train", then(train, _runs_end), args, study=then(train_study, _study_ends))


def _runs_end(configs: Sequence[RunConfig]) -> Sequence[str]:
    """Return the command that reads these results: none where nothing is printed, or several processes would."""
    quiet = distributed.under_torchrun() or configs[0].runtime.progress == "off"
    return () if quiet else ("report", configs[0].results_dir)


def _study_ends(study: Study) -> Sequence[str]:
    return "report", study.results_dir


if __name__ == "__main__":
    sys.exit(main())
