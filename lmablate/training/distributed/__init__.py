"""One run on several processes: ``torchrun --nproc-per-node N -m lmablate.train ... runtime.parallel=ddp`` (or ``fsdp2``).

Every process takes its share of the rows of each batch, so a step reads the same tokens on any number of them. Loss, gradients and
clipping are those of the whole batch. Only the first process writes files. This module is the interface for other rooms and imports
nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer

START = "torchrun --nproc-per-node N -m lmablate.train"


def under_torchrun() -> bool:
    """Return True if torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if under_torchrun() else 1


def trainer_of(cfg: RunConfig) -> type[Trainer]:
    """Return the trainer class for `cfg`: for one process, or for one of several."""
    if cfg.runtime.parallel is None:
        from lmablate.training.trainer import Trainer

        return Trainer
    from lmablate.training.distributed.trainer import RankTrainer

    return RankTrainer


def numerics(cfg: RunConfig) -> dict[str, Any]:
    """Return the `numerics` fields of a row: sums over several processes round differently."""
    return {} if cfg.runtime.parallel is None else {"parallel": cfg.runtime.parallel, "ranks": world_size()}


def is_distributed(configs: Sequence[RunConfig]) -> bool:
    """Return True if this command is one process of several. Raises ConfigError if the command and torchrun do not fit."""
    ways = {cfg.runtime.parallel for cfg in configs}
    if not under_torchrun():
        if way := next((way for way in ways if way is not None), None):
            raise ConfigError(
                f"runtime.parallel={way} is for a run on several processes, which torchrun starts: {START} ... runtime.parallel={way}"
            )
        return False
    if ways == {None}:
        if world_size() == 1:
            return False
        raise ConfigError(
            f"torchrun has started {world_size()} processes, and nothing says how they share the run: add runtime.parallel=ddp (each "
            "holds the whole model) or runtime.parallel=fsdp2 (each holds a part of it)"
        )
    return True


def _check_experts(ffn: dict[str, Any], way: str, ranks: int) -> None:
    """Raise ConfigError for mixtures of experts that need the whole step in one process."""
    if ranks > 1 and ffn.get("balance_over") == "batch":
        raise ConfigError(
            f"ffn.balance_over=batch is a loss of the whole batch, which {ranks} processes cut into pieces: use ffn.balance_over=text"
        )
    if way == "fsdp2" and ffn.get("bias_rate"):
        raise ConfigError("ffn.bias_rate moves a whole bias, and runtime.parallel=fsdp2 cuts it in parts: use ddp")


def _check_own_parts(cfg: RunConfig) -> None:
    """Raise ConfigError for user-defined parts with state that the processes cannot share or shard."""
    if not cfg.code:
        return
    from lmablate.model import build_model
    from lmablate.model.plain_torch import own_buffers

    model = build_model(cfg, device="meta")
    if cfg.runtime.parallel == "fsdp2" and (single := [name for name, p in model.named_parameters() if not p.ndim]):
        raise ConfigError(
            f"{single[0]} is a single number, and runtime.parallel=fsdp2 cuts every weight in parts: give it a dimension, "
            "torch.ones(1), or use ddp"
        )
    if buffers := own_buffers(model):
        raise ConfigError(
            f"{next(iter(buffers))} is a buffer of a part of your own, which several processes would each change for itself: leave "
            "runtime.parallel out"
        )


def refuse_study() -> None:
    """Raise ConfigError for a study under torchrun."""
    if under_torchrun():
        raise ConfigError("torchrun trains one run, and a study many: start it without torchrun")


def check(configs: Sequence[RunConfig], launcher: str) -> RunConfig:
    """Return the one run of a command under torchrun. Raises ConfigError for what several processes cannot do."""
    if launcher != "local":
        raise ConfigError(
            f"hydra/launcher={launcher} runs many jobs, and torchrun one: leave the launcher out, or start the sweep without torchrun"
        )
    if len(configs) != 1:
        raise ConfigError(
            f"torchrun trains one run, and this command has {len(configs)}: start torchrun once for each, or the sweep without it "
            "(runtime.parallel=null), which trains a run on each core or GPU"
        )
    cfg, ranks = configs[0], world_size()
    way, batch, micro = cfg.runtime.parallel, cfg.trainer.batch_size, cfg.runtime.microbatch_size
    if batch % ranks:
        near = next(n for n in range(ranks, 0, -1) if batch % n == 0)
        raise ConfigError(
            f"trainer.batch_size={batch} does not divide among {ranks} processes: start {near}, or make it a multiple of {ranks}"
        )
    if cfg.model.dropout and ranks > 1 and (micro is None or (batch // ranks) % micro):
        raise ConfigError(
            f"model.dropout={cfg.model.dropout:g} with {ranks} processes: the noise of a row is drawn with its microbatch, so set "
            f"runtime.microbatch_size to a divisor of {batch // ranks}, here and where the run is to be the same on one process"
        )
    for key in ("time_limit", "retries", "gpu_memory", "on_oom"):
        if getattr(cfg.runtime, key, None) not in (None, 0, "fail"):
            raise ConfigError(
                f"runtime.{key}={getattr(cfg.runtime, key)} is for runs that a sweep watches over; under torchrun leave it out"
            )
    _check_experts(cfg.ffn or {}, str(way), ranks)
    _check_own_parts(cfg)
    if way == "fsdp2" and cfg.diagnostics is not None:
        raise ConfigError("diagnostics read whole weights, and runtime.parallel=fsdp2 cuts them in parts: use ddp")
    if way == "fsdp2" and cfg.trainer.init_from is not None:
        raise ConfigError(
            "trainer.init_from needs whole weights, and runtime.parallel=fsdp2 cuts them in parts: use ddp"
        )
    return cfg
