"""Measure a training step of one configuration: its time by kind of work from the profiler, and its FLOPs by kind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmablate.core.console import Line
from lmablate.core.errors import ConfigError
from lmablate.inspect import operators as kinds
from lmablate.inspect.accounted import COMPILED, WRITTEN_OUT, flops_by_kind, visible_products
from lmablate.inspect.profiling import UPDATE, Split, alike, marked, profiled, split

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer

BLOCK = 10  # steps between two turns of the profiler
WARM = 3
DRAWS = 2000  # bootstrap draws
EVENT_DRAWS = 200  # bootstrap draws over thousands of events each
LONGER, SLICE = 1.5, 0.2  # times an event's shortest, plus milliseconds: a longer event was interrupted
LONG = 1.0  # milliseconds: longer events may be interrupted in every step
SMALLEST = 0.02  # smallest plausible share of a core


@dataclass
class Measured:
    """A measured step. `split`: a row per kind of work; `step`: numbers of the whole step."""

    split: pd.DataFrame
    step: dict[str, Any]


def measure(cfg: RunConfig, data: TokenData, mode: str, steps: int) -> Measured | None:
    """Return `steps` plain and as many profiled steps of `cfg` in turn; None if `mode` is the same program as eager.

    ``attention in products`` has softmax in separate kernels, as the published measurement had. Batches come from
    `data`. Evaluation and checkpoints are left out."""
    from lmablate.budget.trace import trace

    work = trace(cfg)
    if mode == WRITTEN_OUT and not work.fused:
        return None
    gpu = cfg.runtime.device != "cpu"
    clock = step_clock(cfg)
    with _mode_context(mode):
        trainer, step = train_step(cfg, data, mode)
        for number in range(WARM):
            step(number)
        plain: list[float] = []
        under: list[float] = []
        wall: list[float] = []
        whole: list[float] = []
        splits: list[Split] = []
        norms = _norms(trainer, cfg, mode)
        line = Line()
        while len(splits) < steps:
            line.update(f"{mode}: steps profiled", len(splits), steps)
            turn = min(BLOCK, steps - len(splits))
            for number in range(turn):
                began = clock()
                step(number)
                plain.append(clock() - began)
            with marked(norms):
                profile = profiled(step, turn, clock, gpu=gpu)
            own = split(profile.events, gpu=gpu)
            under += profile.seconds
            wall += profile.wall
            whole += [sum(s.nanoseconds) / 1e9 / seconds for s, seconds in zip(own, profile.wall, strict=True)]
            splits += own
        line.end()
        counted = split(profiled(step, 1, clock, gpu=gpu, flops=True).events, gpu=gpu)[0].flops
    table = _table(alike(splits), flops_by_kind(cfg, work, mode), 1e3 * np.median(plain), 1e3 * np.median(under))
    low, high = bootstrap(np.asarray(plain), np.median)
    step_numbers = {
        "device": cfg.runtime.device,
        "threads": cfg.runtime.threads,
        "precision": cfg.trainer.precision,
        "tokens": cfg.tokens_per_step,
        "milliseconds": 1e3 * float(np.median(plain)),
        "low": 1e3 * float(low),
        "high": 1e3 * float(high),
        "inflation": float(np.median(under) / np.median(plain)) - 1,
        "adds_up": float(np.median(whole)),
        "core_share": float(np.median(np.asarray(under) / np.asarray(wall))),
        "products_counted": counted,
        "products_expected": visible_products(cfg, fused=work.fused and mode != WRITTEN_OUT),
    }
    return Measured(table, step_numbers)


def differences(configs: Sequence[RunConfig]) -> list[str]:
    """Return a label for each configuration: the overrides that not all of them have."""
    overrides = [cfg.overrides for cfg in configs]
    shared = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(override for override in own if override not in shared) or "defaults" for own in overrides]


def step_clock(cfg: RunConfig) -> Callable[[], float]:
    """Return a clock in seconds: of the thread's own time for one thread on a CPU, which other load does not change, else wall time."""
    return time.thread_time if cfg.runtime.device == "cpu" and cfg.runtime.threads == 1 else time.perf_counter


@contextlib.contextmanager
def _mode_context(mode: str) -> Any:
    """Set up the context in which a mode's graphs are built and run."""
    if mode == WRITTEN_OUT:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.MATH):
            yield
    elif mode == COMPILED:
        import torch._inductor.config

        names = {"cpp.descriptive_names": "torch", "triton.descriptive_names": "torch"}
        with torch._inductor.config.patch({**names, "cpp.enable_kernel_profile": True}):
            yield
        torch.compiler.reset()
    else:
        yield


def train_step(cfg: RunConfig, data: TokenData, mode: str) -> tuple[Trainer, Callable[[int], None]]:
    """Return a trainer and its step, which returns when the device has finished."""
    from torch.profiler import record_function

    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    if mode == COMPILED:
        trainer.compile()
        if trainer.compile_note is not None:
            raise ConfigError(f"--compiled: {trainer.compile_note}; leave --compiled out")

    def step(number: int) -> None:
        nats = trainer.backward(trainer.rows(number))
        with record_function(UPDATE):
            trainer.apply(nats)
        trainer.drain_pending()

    return trainer, step


def _norms(trainer: Trainer, cfg: RunConfig, mode: str) -> list[Any]:
    """Return the norms that can be marked. None inside a compiled block can; there the kernels' names identify them."""
    from lmablate.budget.trace import norm_modules

    norms = norm_modules(trainer.model, cfg)
    if mode != COMPILED:
        return norms
    inside = {id(module) for block in trainer.model.blocks for module in block.modules()}
    return [norm for norm in norms if id(norm) not in inside]


def _table(steps: list[Split], flops: dict[str, float], plain: float, profiled: float) -> pd.DataFrame:
    """Return a row per kind: its share of the FLOPs and of the time, with the interval over steps.

    `plain` and `profiled` are a step's milliseconds by the caller's clock, without and with the profiler. The profiler makes
    every event longer by about the same. An equal part of the difference per event is subtracted from a kind's profiled time (the
    column `profiled`) to get that of the plain step, `milliseconds`.
    """
    import pandas as pd

    of = np.array([kinds.KINDS.index(kind) for kind in steps[0].kinds])
    events = np.bincount(of, minlength=len(kinds.KINDS))
    each = 1e-6 * np.array([step.nanoseconds for step in steps])
    extra = max(0.0, profiled - plain) / len(of)

    def by_kind(picked: np.ndarray) -> np.ndarray:
        return np.bincount(of, own_times(each[picked], each.min(axis=0), profiled), len(kinds.KINDS))

    def share(times: np.ndarray) -> np.ndarray:
        less = np.maximum(0.0, times - extra * events)
        return less / less.sum()

    numbers = np.arange(len(steps))
    low, high = bootstrap(numbers, lambda picked: share(by_kind(picked)), EVENT_DRAWS)
    times, whole = by_kind(numbers), sum(flops.values())
    return pd.DataFrame(
        {
            "kind": kinds.KINDS,
            "flops_share": [flops[kind] / whole if kind in flops else np.nan for kind in kinds.KINDS],
            "time_share": share(times),
            "low": low,
            "high": high,
            "milliseconds": plain * share(times),
            "profiled": times,
            "events": events,
            "steps": len(steps),
        }
    )


def own_times(each: np.ndarray, least: np.ndarray, whole: float) -> np.ndarray:
    """Return milliseconds ``[events]`` from those of the same events in several steps ``[steps, events]``.

    `least` is the shortest of each, in steps that took `whole` by their own clock. The profiler's clock also runs while another
    process has the core, for a millisecond or more. A short event is seldom interrupted, and steps in which it was are left out.
    A long one may be interrupted in every step, in proportion to its length: long events share what the short ones leave of
    `whole` in their measured proportions.
    """
    free = each <= LONGER * least + SLICE
    seen = free.sum(axis=0)
    times = np.where(seen, (each * free).sum(axis=0) / np.maximum(seen, 1), least)
    long = least > LONG
    if long.any():
        measured = each.mean(axis=0)[long]
        times[long] = measured * np.clip((whole - times[~long].sum()) / measured.sum(), SMALLEST, 1.0)
    return times


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % percentile interval of a `statistic` of ``[steps, columns]``, with resampled steps."""
    picks = np.random.default_rng(0).integers(0, len(rows), (draws, len(rows)))
    low, high = np.percentile([statistic(rows[pick]) for pick in picks], (2.5, 97.5), axis=0)
    return low, high
