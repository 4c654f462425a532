"""Checks that train an option for a few steps: against its siblings, in a gang, and stopped after every step."""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from lmablate.check.finding import Finding, check, fails, holds
from lmablate.check.small import SmallText, distance, trainer_of, training_record
from lmablate.check.subject import Subject
from lmablate.core.errors import ConfigError
from lmablate.model.plain_torch import why_solo
from lmablate.schema.run_config import RunConfig
from lmablate.training.gang import Gang, graph_key
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer

SCALES = (1.0, 5.0, 20.0, 60.0)  # of the weights, until an option acts
STEPS = 6  # of a gang
MANY = 100  # times the rounding between two exact paths: a larger distance is a difference


@cache
def _record(folder: Path, axis: str, option: str, overrides: tuple[str, ...], scale: float, rows: int | None) -> Any:
    keys = {} if rows is None else {"runtime.microbatch_size": rows}
    return training_record(Subject(axis, option, overrides).config(keys), scale)


def record(subject: Subject, scale: float, rows: int | None = None) -> SimpleNamespace:
    """Return the training record of a subject at one scale of its weights, with microbatches of `rows` texts."""
    return _record(Path.cwd(), subject.axis, subject.option, subject.overrides, scale, rows)


@check(
    "siblings",
    asks="the training record differs from that of every other option of the axis",
    cost="two words name one model, and a comparison of them shows noise",
    mend="see that the option's code is reached, and that its first values are no identity",
)
def siblings(subject: Subject) -> Finding:
    left = [other for name in subject.siblings() if (other := _composed(subject.with_option(name)))]
    n = len(left)
    for scale in SCALES:
        mine = record(subject, scale)
        least = max(MANY * distance(record(subject, scale, rows=1), mine), 1e-9)
        left = [other for other in left if distance(record(other, scale), mine) < least]
        if not left:
            return holds(f"{n} of them, by {MANY} times the rounding")
    return fails(f"trains like {' and '.join(f'{other.axis}={other.option}' for other in left)}")


def _composed(subject: Subject) -> Subject | None:
    """Return the subject, or None if this option does not fit the model."""
    try:
        return subject if subject.cfg else None
    except ConfigError:
        return None


def members(base: RunConfig, count: int) -> list[RunConfig]:
    """Return `count` runs (at most 4) that differ in everything a gang may differ in."""
    lr, clip = (3e-3, 1e-3, 5e-3, 2e-3), (1.0, 0.3, None, 2.0)
    decay, beta = (0.1, 0.0, 0.3, 0.2), (0.95, 0.9, 0.99, 0.98)
    optims = [{"lr": lr[k], "weight_decay": decay[k], "grad_clip": clip[k], "beta2": beta[k]} for k in range(count)]
    return [
        base.model_copy(update={"init_seed": k, "data_seed": k, "optim": base.optim.model_copy(update=optim)})
        for k, optim in enumerate(optims)
    ]


def summary(trainer: Trainer, records: list[dict[str, Any]]) -> SimpleNamespace:
    """Return the records without times, the weights, and the step of divergence."""
    timeless = [{k: v for k, v in one.items() if k not in ("seconds", "tokens_per_second")} for one in records]
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return SimpleNamespace(records=json.dumps(timeless), weights=weights, diverged=trainer.progress.diverged_at_step)


def alone(cfg: RunConfig, scale: float = 1.0) -> SimpleNamespace:
    """Return the summary of a run trained by itself."""
    trainer = trainer_of(cfg, scale)
    return summary(trainer, list(trainer.records()))


def together(
    cfgs: list[RunConfig], size: int | None = None, scale: float = 1.0, *, compiled: bool = False
) -> list[SimpleNamespace]:
    """Return the summaries of runs trained as one gang, by position."""
    trainers = {k: trainer_of(cfg, scale) for k, cfg in enumerate(cfgs)}
    records: dict[int, list[Any]] = {k: [] for k in trainers}
    ended = []
    for name, entry in Gang(trainers.items(), size=size or len(cfgs), compiled=compiled).run():
        ended.append(name) if entry is None else records[name].append(entry)
    assert sorted(ended) == sorted(trainers)
    return [summary(trainer, records[k]) for k, trainer in trainers.items()]


def unlike(a: SimpleNamespace, b: SimpleNamespace) -> str | None:
    """Return the first difference of weights or records between two summaries; None if they agree to the bit."""
    for name, weight in a.weights.items():
        if not torch.equal(weight, b.weights[name]):
            return f"{name} is {float((weight - b.weights[name]).abs().max()):.2g} apart"
    return None if a.records == b.records else "losses are apart"


@check(
    "gang",
    asks="a run in a gang has the bits of the run alone, or trains alone",
    cost="hydra/launcher=gang gives other numbers than the same runs alone, or stops",
    mend="weights from lmablate.model.primitives alone, and sums that stay within the last axes",
)
def gang(subject: Subject) -> Finding:
    if graph_key(subject.cfg, SmallText()) is None:  # type: ignore[arg-type]
        return holds(f"trains alone: {why_solo(subject.cfg) or 'so do dropout and this objective'}")
    whole = {} if subject.axis == "aspect_ratio" else {"model.head_dim": 16}  # whole vectors: see gang_run.self_test
    for precision in ("fp32", "bf16"):
        base = subject.config({"trainer.precision": precision, "trainer.steps": STEPS, "runtime.log_every": 3, **whole})
        cfgs = members(base, count=2)
        for mine, cfg in zip(together(cfgs), cfgs, strict=True):
            if gap := unlike(mine, alone(cfg)):
                return fails(f"after {STEPS} steps in {precision}, {gap}")
    return holds(f"to the bit after {STEPS} steps, in fp32 and bf16")


@check(
    "resume",
    asks="a run that is stopped after every step, each time continued in a new model, ends with the bits of one that is not",
    cost="a killed sweep goes on with other numbers, and nobody sees it",
    mend="keep what changes in training in parameters or buffers; a counter on self is lost",
)
def resume(subject: Subject) -> Finding:
    cfg = subject.cfg
    with TemporaryDirectory(prefix="lmablate-check-") as folder:
        records: list[Any] = []
        for _ in range(cfg.trainer.steps):
            stopped = trainer_of(cfg, folder=Path(folder))
            try:
                for entry in stopped.records(lambda: signal.SIGTERM):
                    records.append(entry)
            except Interrupted:
                continue
            break
        interrupted = summary(stopped, records)
    gap = unlike(interrupted, alone(cfg))
    return fails(f"after {cfg.trainer.steps} steps, {gap}") if gap else holds(f"stopped {cfg.trainer.steps} times")
