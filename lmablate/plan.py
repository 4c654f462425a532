"""``python -m lmablate.plan``: what a command would train, what it would cost, and what is done already. Runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData
    from lmablate.jobs import Job

CALIBRATION_SECONDS = 2.0


def plan(configs: Sequence[RunConfig], launcher: str) -> int:
    """Print one row a job and the totals; returns the exit code."""
    from rich.console import Console
    from rich.table import Table

    from lmablate.budget import flops_per_token, parameters
    from lmablate.display import duration
    from lmablate.jobs import prepare_jobs, stale
    from lmablate.launcher.scheduler import slots

    jobs, data = prepare_jobs(configs)
    todo = [job for job in jobs if not job.done]
    speed = calibrate(todo[0], data[todo[0].run_id]) if todo else 0.0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "what", "state", "params", "non-emb.", "FLOPs/token", "tokens", "steps", "seconds"):
        table.add_column(name, justify="left" if name in ("run", "what", "state") else "right", no_wrap=name != "what")
    total = 0.0
    for job in jobs:
        counts, flops = parameters(job.cfg), flops_per_token(job.cfg)
        row = job.directory.read_result() if job.done else None
        state = "to train" if row is None else ("done, stale" if stale(row) else str(row["status"]))
        if job.asked > 1:
            state += f" (asked {job.asked} times)"
        seconds = 0.0 if row is not None else flops * job.cfg.tokens / speed
        total += seconds
        table.add_row(
            job.run_id,
            job.label,
            state,
            f"{counts.total:,}",
            f"{counts.non_embedding:,}",
            f"{flops:,}",
            f"{job.cfg.tokens:,}",
            f"{job.cfg.trainer.steps:,}",
            "-" if row is not None else f"{seconds:,.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    n = slots(todo) or 1
    price = f"about {duration(total / n)} on this machine, {n} at a time" if todo else "nothing to do"
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} done already, {len(todo)} to train: {price}")
    if todo:
        rate = f"{speed / 1e9:.1f} GFLOP/s a run"
        print(
            f"({rate}, from {CALIBRATION_SECONDS:.0f} s of training {todo[0].label}; start-up and evaluation come on top)"
        )
    print("FLOPs/token: matrix products of training, forward and backward; causal attention counts the keys it reads.")
    return 0


def calibrate(job: Job, data: TokenData) -> float:
    """FLOP/s that training the job's model reaches here, over a few steps after one that warms up."""
    import torch

    from lmablate.budget import flops_per_token
    from lmablate.model import build_model
    from lmablate.trainer import Trainer

    torch.set_num_threads(job.cfg.runtime.threads)
    cfg = job.cfg
    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    return flops_per_token(cfg) * cfg.tokens_per_step / trainer.seconds_per_step(CALIBRATION_SECONDS)


def main() -> None:
    """``python -m lmablate.plan <the same words as lmablate.train>``."""
    from lmablate.cli import main as front_door

    sys.exit(front_door("lmablate.plan", "price a command before it runs", plan))


if __name__ == "__main__":
    main()
