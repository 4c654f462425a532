"""``python -m lmablate.plan``: what a command would train, what it would cost, and what is done already. Runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData
    from lmablate.jobs import Job
    from lmablate.sweeper.study import Study

CALIBRATION_SECONDS = 2.0


def plan(configs: Sequence[RunConfig], launcher: str) -> int:
    """Print one row a job and the totals; returns the exit code."""
    from lmablate.jobs import prepare_jobs
    from lmablate.run import foreign_vocabulary

    counted = [cfg for cfg in configs if foreign_vocabulary(cfg, getattr(cfg.tokenizer, "vocab_size", None))]
    if counted:
        show_published(counted)
    if trained := [cfg for cfg in configs if cfg not in counted]:
        show(*prepare_jobs(trained))
    return 0


def show_published(configs: Sequence[RunConfig]) -> None:
    """What presets at their own size count and cost, which need no text, and no machine that could train them."""
    from lmablate.budget import flops_per_token, kv_bytes_per_token, parameters

    for cfg in configs:
        counts = parameters(cfg)
        print(
            f"preset={cfg.choices['preset']}: {counts.total:,} parameters ({counts.non_embedding:,} non-embedding) with its vocabulary "
            f"of {cfg.published_vocab_size:,}, {flops_per_token(cfg):,} FLOPs and {kv_bytes_per_token(cfg):,} bytes of KV cache a token; "
            "shrink=tiny (small, base) makes it trainable here"
        )


def plan_study(study: Study, launcher: str) -> int:
    """The same for a study: the jobs that are known now, and those that hang on the results of these."""
    from lmablate.sweeper import optuna_search, optuna_table

    if isinstance(study, optuna_search.Search):
        return optuna_table.plan(study)
    jobs, later, data = known_and_later(study)
    waits_for = "its start" if study.settings.starts else "a look"
    show(list(jobs.values()), data, later, f"after {'tuning' if study.stage == 'tune' else waits_for}")
    for line in study.decisions():
        print(line)
    return 0


def known_and_later(study: Study) -> tuple[dict[str, Job], list[Job], dict[str, TokenData]]:
    """A study's jobs whose identity is known now, those that hang on the results of these, and the data of both by run id."""
    from lmablate.jobs import prepare_jobs
    from lmablate.sweeper.study import seed_word

    study.check()
    jobs: dict[str, Job] = {}
    data: dict[str, TokenData] = {}
    for trials in study.stages():
        batch, stores = study.prepare(trials)
        jobs |= {job.run_id: job for job in batch}
        data |= stores
        if not all(job.done for job in batch):
            break
    later, stores = prepare_jobs(study.later())
    for job in later:
        job.label = f"{job.cfg.arm} · {seed_word(job.cfg.init_seed, job.cfg.data_seed)}"
    return jobs, later, data | stores


def show(jobs: Sequence[Job], data: Mapping[str, TokenData], later: Sequence[Job] = (), when: str = "") -> None:
    """The table of `jobs`, and below them those of `later`, whose learning rate is open."""
    from rich.console import Console
    from rich.table import Table

    from lmablate.budget import DEFINITIONS, flops_per_token, kv_bytes_per_token, parameters
    from lmablate.display import duration
    from lmablate.jobs import closed, stale
    from lmablate.launcher.scheduler import slots

    todo = [*(job for job in jobs if not job.done), *later]
    speed = calibrate(todo[0], data[todo[0].run_id]) if todo else 0.0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in (
        "run",
        "what",
        "state",
        "params",
        "non-emb.",
        "FLOPs/token",
        "KV B/token",
        "tokens",
        "steps",
        "seconds",
    ):
        table.add_column(name, justify="left" if name in ("run", "what", "state") else "right", no_wrap=name != "what")
    total = 0.0
    for job, open_ in [*((job, False) for job in jobs), *((job, True) for job in later)]:
        counts, flops = parameters(job.cfg), flops_per_token(job.cfg)
        row = job.directory.read_result() if job.done and not open_ else None
        again = job.directory.is_done and not open_  # it lacks the diagnostics asked for
        state = (
            ("to train again" if again else "to train")
            if row is None
            else ("done, stale" if stale(row) else str(row["status"]))
        )
        if job.asked > 1:
            state += f" (asked {job.asked} times)"
        seconds = 0.0 if row is not None else flops * job.cfg.tokens / speed
        total += seconds
        table.add_row(
            "-" if open_ else job.run_id,
            job.label,
            when if open_ else state,
            f"{counts.total:,}",
            f"{counts.non_embedding:,}",
            f"{flops:,}",
            f"{kv_bytes_per_token(job.cfg):,}",
            f"{job.cfg.tokens:,}",
            f"{job.cfg.trainer.steps:,}",
            "-" if row is not None else f"{seconds:,.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    n = slots(todo) or 1
    price = f"about {duration(total / n)} on this machine, {n} at a time" if todo else "nothing to do"
    for job in jobs:
        if why := closed(job):
            print(f"{job.run_id} cannot be looked into, or trained here ({why})")
    every = len(jobs) + len(later)
    print(f"{every} runs, {every - len(todo)} done already, {len(todo)} to train: {price}")
    if todo:
        rate = f"{speed / 1e9:.1f} GFLOP/s a run"
        print(
            f"({rate}, from {CALIBRATION_SECONDS:.0f} s of training {todo[0].label}; start-up and evaluation come on top)"
        )
    for key in ("params", "params_non_embedding", "flops", "kv_cache"):
        print(DEFINITIONS[key])


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
    """``python -m lmablate.plan <the same words as lmablate.train>``, or ``--all`` for every stored sweep."""
    from lmablate.cli import main as front_door

    if "--all" in sys.argv[1:]:
        from lmablate.plan_all import plan_all

        sys.exit(plan_all([word for word in sys.argv[1:] if word != "--all"]))
    sys.exit(front_door("lmablate.plan", "price a command before it runs", plan, study=plan_study))


if __name__ == "__main__":
    main()
