"""``python -m lmablate.train``: train one run, a grid, or a stored sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lmablate.cli.front_door import main as front_door
from lmablate.core.errors import in_words
from lmablate.training import distributed

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study


def train(configs: Sequence[RunConfig], launcher: str) -> int:
    """Train what is missing of `configs`; returns the exit code."""
    if distributed.is_distributed(configs):
        from lmablate.launcher.torchrun import train_together

        return train_together(configs, launcher)
    from lmablate.launcher.jobs import prepare_jobs

    run = _runner(launcher)
    return run(*prepare_jobs(configs))


def train_study(study: Study, launcher: str) -> int:
    """Train what is missing of a study, stage by stage; returns the exit code."""
    distributed.refuse_study()
    return study.run(_runner(launcher))


def _runner(launcher: str) -> Callable[[Sequence[Job], Mapping[str, TokenData]], int]:
    """What runs jobs as the launcher of that name does. Raises ConfigError for an engine that is not there."""
    from lmablate.launcher.engine import engine_of
    from lmablate.launcher.scheduler import run_jobs

    engine = engine_of(launcher)
    return lambda jobs, data: run_jobs(jobs, gang=data if launcher == "gang" else None, engine=engine)


@in_words
def main(argv: Sequence[str] | None = None) -> int:
    """The console script ``lmablate-train``; returns the exit code."""
    from lmablate.launcher.processes import started_early

    words = list(sys.argv[1:] if argv is None else argv)
    purpose = "train language models that differ in one thing"
    with started_early(words):
        return front_door("lmablate.train", purpose, train, words, study=train_study)


if __name__ == "__main__":
    sys.exit(main())
