"""Time a norm, a block and a whole step of each configuration, in turns, so that disturbances affect all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmablate.core.console import progress
from lmablate.inspect.accounted import COMPILED, PLAIN
from lmablate.inspect.measured import bootstrap, step_clock, train_step

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer

PARTS = ("norm", "block", "step")
WARM = 3
SPAN = 2e-3  # least seconds of one timing, so that a norm's consists of many passes


class Timed(NamedTuple):
    """A timed unit: forward and backward pass of a part, or a step with the optimizer."""

    config: str
    part: str
    mode: str
    run: Callable[[], object]


def measure_parts(
    configs: Mapping[str, RunConfig], data: Sequence[TokenData], rounds: int, *, compiled: bool
) -> pd.DataFrame:
    """Return a row for each configuration, part and mode.

    It has median milliseconds over `rounds` and their ratio to the first configuration's, with 95 % bootstrap intervals. A ratio is
    resampled over rounds, which both shared."""
    import torch

    timed: list[Timed] = []
    for (label, cfg), text in zip(configs.items(), data, strict=True):
        for mode in (PLAIN, COMPILED) if compiled else (PLAIN,):
            timed += _parts(label, cfg, text, mode)
    first = next(iter(configs.values()))
    clock = step_clock(first)
    wait = torch.cuda.synchronize if first.runtime.device != "cpu" else lambda: None
    seconds = _in_turn(timed, rounds, clock, wait)
    if compiled:
        torch.compiler.reset()
    return _table(timed, seconds, next(iter(configs)))


def _parts(label: str, cfg: RunConfig, data: TokenData, mode: str) -> list[Timed]:
    """Return the first norm and the first block, with their inputs in the model, and the step."""
    from lmablate.budget.trace import norm_modules

    trainer, step = train_step(cfg, data, mode)
    block = trainer.model.blocks[0]
    # In a model without norms, the norm is a module that returns its input.
    norm = norm_modules(block, cfg)[0]
    if mode == COMPILED:
        norm.compile()
        block.compile()
    calls = _recorded_calls(trainer, block, norm)
    passes = [Timed(label, name, mode, _both_passes(trainer, calls[name])) for name in ("norm", "block")]
    return [*passes, Timed(label, "step", mode, lambda: step(0))]


class _Call(NamedTuple):
    """A module and its arguments, detached from their graph."""

    module: nn.Module
    args: tuple[Any, ...]
    like: Tensor


def _recorded_calls(trainer: Trainer, block: nn.Module, norm: nn.Module) -> dict[str, _Call]:
    """Return the calls of the block and its norm in a training step."""
    import torch
    from torch.utils._pytree import tree_map_only

    seen: dict[str, _Call] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            free = tree_map_only(torch.Tensor, lambda x: x.detach(), args)
            seen.setdefault(name, _Call(module, (free[0].requires_grad_(), *free[1:]), torch.ones_like(out)))

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in (("block", block), ("norm", norm))]
    try:
        with torch.compiler.set_stance("force_eager"):
            trainer.model.train()
            trainer.model(trainer.rows(0)[:, :-1])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _both_passes(trainer: Trainer, call: _Call) -> Callable[[], object]:
    import torch

    wanted = [call.args[0], *(p for p in call.module.parameters() if p.requires_grad)]

    def run() -> object:
        out = call.module(*call.args)
        # A part that returns its input has no graph of its own.
        return None if out is call.args[0] else torch.autograd.grad(out, wanted, call.like, allow_unused=True)

    return run


def _in_turn(timed: Sequence[Timed], rounds: int, clock: Callable[[], float], wait: Callable[[], object]) -> np.ndarray:
    """Return seconds ``[rounds, len(timed)]``: one timing of each in turn, in an order rotated from round to round."""

    def once(run: Callable[[], object], times: int) -> float:
        wait()
        began = clock()
        for _ in range(times):
            run()
        wait()
        return (clock() - began) / times

    repeats = []
    for part in timed:
        once(part.run, WARM)
        repeats.append(max(1, int(SPAN / max(once(part.run, 1), 1e-9))) if part.part != "step" else 1)
    seconds = np.empty((rounds, len(timed)))
    for turn in progress(range(rounds), "rounds of timing"):
        for position in range(len(timed)):
            i = (position + turn) % len(timed)
            seconds[turn, i] = once(timed[i].run, repeats[i])
    return seconds


def _table(timed: Sequence[Timed], seconds: np.ndarray, first: str) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for i, part in enumerate(timed):
        base = next(
            j for j, own in enumerate(timed) if (own.config, own.part, own.mode) == (first, part.part, part.mode)
        )
        pair = 1e3 * seconds[:, [i, base]]

        def median_and_ratio(x: np.ndarray) -> np.ndarray:
            middle = np.median(x, axis=0)
            return np.array((middle[0], middle[0] / middle[1]))

        middle, (low, high) = median_and_ratio(pair), bootstrap(pair, median_and_ratio)
        rows.append(
            {
                "config": part.config, "part": part.part, "mode": part.mode, "rounds": len(seconds),
                "milliseconds": middle[0], "low": low[0], "high": high[0],
                "ratio": middle[1], "ratio_low": low[1], "ratio_high": high[1],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
