"""Run ``lmablate.train`` under torchrun: the first process is the command, and the others follow it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lmablate.core.signals import request_stop_on_signal
from lmablate.schema.run_config import RunConfig
from lmablate.training.distributed import check
from lmablate.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from lmablate.training.distributed.ranks import Ranks

log = logging.getLogger(__name__)


def train_together(configs: Sequence[RunConfig], launcher: str) -> int:
    """Train the one run of `configs` with all processes. Returns the exit code of this one."""
    from lmablate.training.distributed.ranks import joined

    cfg = check(configs, launcher)
    with joined(cfg.runtime.device) as ranks:
        if ranks.first:
            code = lead(cfg)
            if ranks.in_run:  # a failure in the midst of a step, in which the others still wait
                log.error("the other processes are ended")
                _leave(code or 1)
            ranks.broadcast("")
        else:
            code = follow(ranks)
        ranks.barrier()  # the first to exit closes the connections of the others
        _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit without Python's teardown, during which threads of gloo and DDP would abort the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def lead(cfg: RunConfig) -> int:
    """Run the command as without torchrun; the trainer calls the others (training/distributed). Returns its exit code."""
    from lmablate.launcher.jobs import prepare_jobs
    from lmablate.launcher.scheduler import run_jobs

    jobs, _ = prepare_jobs([cfg])
    return run_jobs(jobs)


def follow(ranks: Ranks) -> int:
    """Take part in each run that the first process begins, until it has no more. Returns the exit code."""
    import torch

    from lmablate.model import build_model
    from lmablate.runs.prepared import prepare_run
    from lmablate.training.distributed.trainer import RankTrainer
    from lmablate.training.progress import Interrupted

    logging.getLogger("lmablate").setLevel(logging.WARNING)
    code = 0
    while text := ranks.broadcast():
        message = json.loads(text)
        cfg = RunConfig.model_validate(message["config"])
        torch.set_num_threads(cfg.runtime.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        run = prepare_run(cfg)
        with request_stop_on_signal() as stop:
            trainer = RankTrainer(build_model(run.cfg), run.data, run.cfg, Path(message["folder"]))
            try:
                for _ in trainer.records(lambda: stop.signal):
                    pass
            except Interrupted as interrupted:
                code = 128 + int(interrupted.args[0])
    return code
