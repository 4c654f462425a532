"""``python -m lmablate.train``: train one run, a grid, or a stored sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.sweeper.study import Study


def train(configs: Sequence[RunConfig], launcher: str) -> int:
    """Train what is missing of `configs`; returns the exit code."""
    from lmablate.jobs import prepare_jobs
    from lmablate.launcher.scheduler import run_jobs

    jobs, data = prepare_jobs(configs)
    return run_jobs(jobs, gang=data if launcher == "gang" else None)


def train_study(study: Study, launcher: str) -> int:
    """Train what is missing of a study, stage by stage; returns the exit code."""
    from lmablate.launcher.scheduler import run_jobs

    return study.run(lambda jobs, data: run_jobs(jobs, gang=data if launcher == "gang" else None))


def main() -> None:
    """The console script ``lmablate-train``."""
    from lmablate.cli import main as front_door
    from lmablate.launcher.processes import started_early

    with started_early(sys.argv[1:]):
        sys.exit(
            front_door("lmablate.train", "train language models that differ in one thing", train, study=train_study)
        )


if __name__ == "__main__":
    main()
