"""The duration of a training step on this machine, measured once per shape and stored in the cache folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lmablate.budget import flops_per_token
from lmablate.core.hardware import matmul_rates, processor, remembered
from lmablate.core.paths import cache_dir
from lmablate.schema.identity import GRAPH

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

BUDGET_SECONDS = 2.0  # of measured steps, after one warm-up step
# Eager steps, measured on one core of an AMD EPYC with AVX512-BF16, at widths 32 to 384; see docs/benchmarks.md.
EFFICIENCY = {"fp32": 0.5, "bf16": 0.2}  # rate of the matrix products, as a fraction of the matmul peak
LAYER_SECONDS = 1.5e-3  # fixed overhead of a layer, whatever its size


class RandomTokens:
    """The part of TokenData that a step needs, with random tokens: a step's time does not depend on the text."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """Return int64 ``[B, T + 1]``."""
        rng = np.random.default_rng([data_seed, step])
        return rng.integers(0, self.vocab_size, (batch_size, context_length + 1), dtype=np.int64)


def seconds_per_step(cfg: RunConfig) -> float:
    """Return the median seconds of an optimizer step of `cfg`, without evaluation.

    The time is measured once and stored in ``timings.json`` in the cache folder, so that later commands solve for the same steps. The
    first measurement needs an otherwise idle machine.
    """
    path = (Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else cache_dir()) / "timings.json"
    key = hashlib.sha256(json.dumps(_shape(cfg), sort_keys=True, default=str).encode()).hexdigest()[:16]
    return remembered(path, key, lambda: _measure(cfg), float)


def _shape(cfg: RunConfig) -> list[Any]:
    """The key of a measurement: the machine, the graph, and how it runs."""
    import torch

    graph = cfg.model_dump(include=set(GRAPH))
    graph["trainer"] = {key: graph["trainer"][key] for key in ("batch_size", "precision")}
    device = cfg.runtime.device
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    how = (device, cfg.runtime.threads, cfg.runtime.microbatch_size, cfg.runtime.compile is True)
    return [name, torch.__version__, graph, how]


def _measure(cfg: RunConfig) -> float:
    import torch

    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    steady = cfg.schedule.model_copy(update={"kind": "constant", "warmup_steps": 0, "warmup_fraction": None})
    cfg = cfg.model_copy(update={"schedule": steady})
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.runtime.threads)
    try:
        data = cast("TokenData", RandomTokens(cfg.model.vocab_size))
        trainer = Trainer(build_model(cfg), data, cfg, folder=None)
        if cfg.runtime.compile is True:
            trainer.compile()
        return trainer.seconds_per_step(BUDGET_SECONDS)
    finally:
        torch.set_num_threads(threads)


def estimated_seconds(cfg: RunConfig) -> float:
    """Estimate the training time of a run on this machine's CPU, in seconds, without training."""
    folder = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    precision = cfg.trainer.precision
    rate = EFFICIENCY[precision] * matmul_rates(folder)[precision]
    return cfg.trainer.steps * (flops_per_token(cfg) * cfg.tokens_per_step / rate + cfg.model.n_layers * LAYER_SECONDS)
