"""Train a group of runs of one graph, as a gang if that is faster. Launchers call this."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lmablate.core.locks import LockHeld
from lmablate.core.signals import request_stop_on_signal
from lmablate.model import build_model
from lmablate.runs.prepared import PreparedRun
from lmablate.runs.recovery import not_finite
from lmablate.runs.run import Finished, RunSession, complete_evaluation, execute
from lmablate.training.gang import Gang, MemberStack
from lmablate.training.trainer import Trainer

log = logging.getLogger(__name__)
SIZES = (2, 4, 8, 16, 32)
TRIALS = 5  # timed steps of each candidate size
MARGIN = 1.05  # a gang must beat training alone by this much: it holds more memory


def train_group(
    runs: Sequence[PreparedRun],
    on_end: Callable[[str, str], None] = lambda run_id, status: None,
    on_trial: Callable[[str], None] = lambda what: None,
) -> None:
    """Train runs of one graph, as many at a time as the planner finds fastest. `on_end` is called with the id and
    status of each run that ends. `on_trial` is called with a message before the trials that precede the first step. A
    run that cannot start is reported as failed and leaves the others alone. Raises progress.Interrupted after SIGTERM or
    SIGINT, with checkpoints written, and LockHeld last for runs locked elsewhere."""
    torch.set_num_threads(runs[0].cfg.runtime.threads)
    torch.set_flush_denormal(True)
    runs = [run for run in runs if not _only_evaluated(run, on_end)]
    if not runs:
        return None
    compiled = runs[0].cfg.runtime.compile is True
    if len(runs) > 1:
        on_trial(trial_message(len(runs), compiled=compiled))
    size, why = plan_size(runs)
    log.info("gang: %d runs of one graph, %d at a time (%s)", len(runs), size, why)
    if size == 1:
        return _one_by_one(runs, on_end)
    difference = self_test(runs)
    if difference and runs[0].cfg.runtime.exact_gangs is not False:
        log.info("gang: together these runs would differ by %.1g from each alone: one after the other", difference)
        return _one_by_one(runs, on_end)
    # `gang` marks rows whose bits may differ from those of a run trained alone.
    note: dict[str, Any] = {"gang": difference > 0, "gang_size": size, "gang_self_test": difference}
    sessions: list[RunSession] = []
    held: list[LockHeld] = []
    again: list[PreparedRun] = []  # runs with a non-finite loss, to be repeated alone

    def queue() -> Iterator[tuple[RunSession, Trainer]]:
        for run in runs:
            try:
                session = RunSession(run)
            except LockHeld as error:  # raised after the others have trained
                held.append(error)
                continue
            except Finished as finished:
                on_end(finished.result.run_id, finished.result.status)
                continue
            session.numerics = dict(note)
            sessions.append(session)
            yield session, session.trainer

    with request_stop_on_signal() as stop:
        try:
            for session, record in Gang(queue(), size=size, compiled=compiled, stop=lambda: stop.signal).run():
                if record is not None:
                    session.store(record)
                    continue
                if _to_repeat(session):
                    again.append(session.run)
                else:
                    result = session.finish()
                    on_end(result.run_id, result.status)
                session.__exit__()
                sessions.remove(session)
        finally:
            for session in sessions:  # still open after an exception or a signal
                session.__exit__(*sys.exc_info())
    if again:
        _one_by_one(again, on_end)
    if held:
        raise held[0]
    return None


def _to_repeat(session: RunSession) -> bool:
    """Return whether a run with a non-finite loss is to go on alone from its checkpoint (runtime.nan_restarts)."""
    p = session.trainer.progress
    return bool(session.cfg.runtime.nan_restarts) and p.diverged_at_step is not None and not_finite(session.trainer)


def _only_evaluated(run: PreparedRun, on_end: Callable[[str, str], None]) -> bool:
    """Make the evaluation that a finished run lacks. Returns False for a run that is to be trained."""
    result = complete_evaluation(run)
    if result is not None:
        on_end(result.run_id, result.status)
    return result is not None


def _one_by_one(runs: Sequence[PreparedRun], on_end: Callable[[str, str], None]) -> None:
    held: list[LockHeld] = []
    for run in runs:
        try:
            result = execute(run)
        except LockHeld as error:
            held.append(error)
            continue
        on_end(result.run_id, result.status)
    if held:
        raise held[0]


def plan_size(runs: Sequence[PreparedRun]) -> tuple[int, str]:
    """Return how many members train fastest on this machine, and why; (1, ...) means one after the other.

    Each candidate size is timed for a few steps, per member; a gang is chosen only if it beats training alone. For
    compiled runs, the best eager size is compiled and has to beat one compiled run.
    """
    cfg = runs[0].cfg
    if len(runs) == 1:
        return 1, "nothing to gang with"
    alone = _seconds_per_member(runs, 1)
    best, fastest = 1, alone
    for size in SIZES:
        if size > len(runs):
            break
        seconds = _seconds_per_member(runs, size)
        if seconds * (MARGIN if best == 1 else 1.0) < fastest:
            best, fastest = size, seconds
        elif seconds > 1.1 * fastest:
            break  # past the point where stacking pays
    if best > 1 and cfg.runtime.compile is True:
        alone, fastest = (_seconds_per_member(runs, size, compiled=True) for size in (1, best))
        if fastest * MARGIN >= alone:
            best, fastest = 1, alone
    speed = cfg.tokens_per_step / fastest
    return best, f"{alone / fastest:.2f} times the speed of one alone, {speed:,.0f} tokens/s"


def trial_message(n: int, *, compiled: bool) -> str:
    """Return the message about the trials before the first step of `n` runs of one graph, and their duration."""
    long = "one to three minutes, since their graphs are compiled" if compiled else "some seconds"
    return f"trying whether {n} runs train faster as one program than one by one ({long}; Ctrl-C loses nothing)"


def _trial(run: PreparedRun) -> Trainer:
    return Trainer(build_model(run.cfg), run.data, run.cfg, folder=None)


def _seconds_per_member(runs: Sequence[PreparedRun], size: int, *, compiled: bool = False) -> float:
    """Return the fastest of a few steps of `size` members, over `size`: noise only ever adds."""
    trainers = [_trial(run) for run in runs[:size]]
    stack = MemberStack(trainers, compiled=compiled) if size > 1 else None
    if compiled and stack is None:
        trainers[0].compile()
    times = []
    for step in range(TRIALS + 1):
        began = time.perf_counter()
        rows = [trainer.rows(step) for trainer in trainers]
        nats = stack.backward(rows) if stack else [trainers[0].backward(rows[0])]
        for trainer, loss in zip(trainers, nats, strict=True):
            trainer.apply(loss)
        for trainer in trainers:
            trainer.drain_pending()
        times.append(time.perf_counter() - began)
    return min(times[1:]) / size


def self_test(runs: Sequence[PreparedRun]) -> float:
    """Return the largest relative difference between gradients of two members trained together and alone; 0.0 is
    bit-equal. On a CPU, eager, it is 0.0 but for a few sequences a step with an FFN width that fills no whole vectors.
    The last values of a tensor then take the scalar path of torch's pointwise functions, and in a gang other values
    come last."""
    together, alone = [_trial(run) for run in runs[:2]], [_trial(run) for run in runs[:2]]
    rows = [trainer.rows(0) for trainer in together]
    compiled = runs[0].cfg.runtime.compile is True
    MemberStack(together, compiled=compiled).backward(rows)
    worst = 0.0
    for mine, single, batch in zip(together, alone, rows, strict=True):
        if compiled:
            single.compile()
        single.backward(batch)
        for a, b in zip(mine.model.parameters(), single.model.parameters(), strict=True):
            if a.grad is not None and b.grad is not None and not torch.equal(a.grad, b.grad):
                gap = (a.grad - b.grad).abs().max() / b.grad.abs().max().clamp(min=1e-30)
                worst = max(worst, float(gap))
    return worst
