"""``lmablate.train`` under torchrun: the first process is the command, the others follow it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lmablate.core.signals import asked_to_stop
from lmablate.schema.run_config import RunConfig
from lmablate.training.distributed import check
from lmablate.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from lmablate.training.distributed.ranks import Ranks

log = logging.getLogger(__name__)


def train_together(configs: Sequence[RunConfig], launcher: str) -> int:
    """Train the one run of `configs` with the other processes; returns the exit code of this one."""
    from lmablate.training.distributed.ranks import joined

    cfg = check(configs, launcher)
    if cfg.runtime.compile == "auto":
        runtime = cfg.runtime.model_copy(update={"compile": False})
        cfg = cfg.model_copy(update={"runtime": runtime})
    with joined(cfg.runtime.device) as ranks:
        if ranks.first:
            code = lead(cfg)
            if ranks.in_run:  # a failure in the midst of a step, in which the others still wait
                log.error("the other processes are ended")
                _leave(code or 1)
            ranks.broadcast("")
        else:
            code = follow(ranks)
        ranks.barrier()  # whoever leaves first takes the connections of the others with it
        _leave(code)


def _leave(code: int) -> NoReturn:
    """End here: threads of gloo and of DDP that still listen would have the process aborted as Python is taken apart."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def lead(cfg: RunConfig) -> int:
    """The command as it is without torchrun; where it trains, the trainer calls the others (trainer.py)."""
    from lmablate.launcher.jobs import prepare_jobs
    from lmablate.launcher.scheduler import run_jobs

    jobs, _ = prepare_jobs([cfg])
    return run_jobs(jobs)


def follow(ranks: Ranks) -> int:
    """Take part in whatever run the first process begins, until it has no more."""
    import torch

    from lmablate.model import build_model
    from lmablate.runs.prepared import prepare_run
    from lmablate.training.distributed.trainer import RankTrainer
    from lmablate.training.trainer import Interrupted

    logging.getLogger("lmablate").setLevel(logging.WARNING)
    code = 0
    while word := ranks.broadcast():
        told = json.loads(word)
        cfg = RunConfig.model_validate(told["config"])
        torch.set_num_threads(cfg.runtime.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        run = prepare_run(cfg)
        with asked_to_stop() as stop:
            trainer = RankTrainer(build_model(run.cfg), run.data, run.cfg, Path(told["folder"]))
            try:
                for _ in trainer.records(lambda: stop.signal):
                    pass
            except Interrupted as interrupted:
                code = 128 + int(interrupted.args[0])
    return code
