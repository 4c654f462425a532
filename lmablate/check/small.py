"""Small configurations, a small text, and the training record of a run, for the checks and the project's tests."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lmablate.config.composition import explicit, from_request
from lmablate.config.composition import request as composed
from lmablate.model import build_model
from lmablate.model.primitives import Matrix
from lmablate.model.transformer import TransformerLM
from lmablate.objective import objective_of
from lmablate.schema.run_config import RunConfig
from lmablate.training.trainer import Trainer

VOCAB = 64
# Two layers, and windows and bucket ranges shorter than the text, so that every option has an effect.
SMALL = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.context_length=24",
    "model.init_std=0.02",  # numbers, of which `scale` is a multiple at every width
    "model.head_std=0.02",
    "model.embedding_std=0.02",
    "optim.lr=3e-3",
    "trainer.batch_size=4",
    "trainer.precision=fp32",
    "trainer.steps=4",
    "runtime.log_every=1",
    "runtime.evaluations=2",
    "runtime.device=cpu",
)
SHORT: dict[str, dict[str, Any]] = {
    "attention": {"window": 7},
    "posemb": {"max_distance": 20, "n_buckets": 16, "original_length": 10},
    "ffn": {"leaks": True},
}


@cache
def _request(folder: Path, *overrides: str) -> dict[str, Any]:
    raw = composed(overrides)
    given = explicit(overrides)
    for group, keys in SHORT.items():
        raw[group] |= {key: value for key, value in keys.items() if key in raw[group] and f"{group}.{key}" not in given}
    if raw["tokenizer"].get("kind") == "bpe":
        raw["tokenizer"]["vocab_size"] = 300
    return raw


def request(*overrides: str) -> dict[str, Any]:
    """Return a small RunRequest as plain values, free to be changed. Raises ConfigError for overrides that do not compose."""
    keys = explicit(overrides)
    shaped = keys.get("aspect_ratio", "none") != "none"
    dropped = {*keys, *(("model.d_model", "model.n_layers") if shaped else ())}
    sizes = [size for size in SMALL if size.partition("=")[0] not in dropped]
    return copy.deepcopy(_request(Path.cwd(), *sizes, *overrides))


def config(*overrides: str, raw: dict[str, Any] | None = None, given: dict[str, Any] | None = None) -> RunConfig:
    """Return a small, resolved RunConfig with a vocabulary of VOCAB. Raises ConfigError."""
    raw = request(*overrides) if raw is None else raw
    cfg = from_request(raw, explicit(raw["overrides"]) | (given or {}))
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": VOCAB})})


class SmallText:
    """The part of TokenData that training uses, over a short random text with structure to learn."""

    fingerprint, tokenizer_fingerprint = "text", "tokenizer"

    def __init__(self, length: int = 3000) -> None:
        rng = np.random.default_rng(0)
        self.train = self.tokens = (np.cumsum(rng.integers(0, 3, length)) % VOCAB).astype(np.int64)
        self.val_bytes = 200
        self.texts = ()

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """Return the batch of a step: int64 ``[batch_size, context_length + 1]``."""
        starts = np.random.default_rng([data_seed, step]).integers(0, len(self.tokens) - context_length - 1, batch_size)
        return self.tokens[starts[:, None] + np.arange(context_length + 1)]

    def val_windows(self, context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets: int64 ``[2, context_length]`` each."""
        rows = self.tokens[: 2 * context_length + 1]
        return rows[:-1].reshape(2, -1), rows[1:].reshape(2, -1)

    def val_rows(self, context_length: int) -> dict[str, slice]:
        """Return all windows, of one text."""
        return {"": slice(None)}


def tokens_for(cfg: RunConfig, rows: int = 3) -> torch.Tensor:
    """Return the first batch of the small text: int64 ``[rows, T + 1]``."""
    batch = SmallText().batch(0, data_seed=0, batch_size=rows, context_length=cfg.model.context_length)
    return torch.from_numpy(batch)


def scaled_model(cfg: RunConfig, scale: float = 1.0) -> TransformerLM:
    """Return a model whose matrices are `scale` times larger than at initialisation."""
    model = build_model(cfg)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Matrix):
                module.weight.mul_(scale)
    return model


def first_loss(cfg: RunConfig, model: TransformerLM) -> torch.Tensor:
    """Return the loss of a model in training on the first batch of the small text, with its graph."""
    rows, objective = tokens_for(cfg), objective_of(cfg)
    batch = objective.batch(rows[:, :-1], rows[:, 1:], data_seed=cfg.data_seed, step=0)
    return objective(model.train(), *batch).objective


def trainer_of(cfg: RunConfig, scale: float = 1.0, folder: Path | None = None) -> Trainer:
    """Return a trainer on the small text."""
    return Trainer(scaled_model(cfg, scale), SmallText(), cfg, folder)  # type: ignore[arg-type]


def training_record(cfg: RunConfig, scale: float = 1.0) -> SimpleNamespace:
    """Return loss and gradient norm of every step, the last validation loss and the step of divergence."""
    trainer = trainer_of(cfg, scale)
    records = list(trainer.records())
    return SimpleNamespace(
        numbers=[number for record in records for number in _numbers(record)],
        diverged=trainer.progress.diverged_at_step,
        tokens=records[-1].get("tokens"),
    )


def _numbers(record: dict[str, Any]) -> list[float]:
    return [record[key] for key in ("train_loss", "grad_norm", "val_loss") if record.get(key) is not None]


def differs(cfg: RunConfig, other: SimpleNamespace, scale: float = 1.0) -> bool:
    """Return True if the training record of `cfg` differs from `other` in any bit. Trains up to the first difference."""
    trainer = trainer_of(cfg, scale)
    left, tokens = list(other.numbers), None
    for record in trainer.records():
        numbers, tokens = _numbers(record), record.get("tokens")
        expected, left = left[: len(numbers)], left[len(numbers) :]
        if not np.array_equal(numbers, expected, equal_nan=True):
            return True
    return bool(left) or trainer.progress.diverged_at_step != other.diverged or tokens != other.tokens


def distance(a: SimpleNamespace, b: SimpleNamespace) -> float:
    """Return the largest relative difference between two records; infinite if they differ in length or outcome."""
    if len(a.numbers) != len(b.numbers) or a.diverged != b.diverged or a.tokens != b.tokens:
        return float("inf")
    x, y = np.array(a.numbers, dtype=float), np.array(b.numbers, dtype=float)
    both_nan = np.isnan(x) & np.isnan(y)
    gap = np.abs(x - y) / np.maximum(np.abs(y), 1e-12)
    gap[both_nan] = 0.0
    return float("inf") if np.isnan(gap).any() else float(gap.max())
