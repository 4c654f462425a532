"""Small configurations, a small text, and the training record of a run."""

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from lmablate.axes import AXES
from lmablate.config.compose import explicit, from_request, register_resolvers, rewrite, to_request
from lmablate.model import build_model
from lmablate.model.primitives import Matrix
from lmablate.paths import CONF_DIR
from lmablate.trainer import Trainer

VOCAB = 64
# Two layers, and windows and bucket ranges shorter than the text, so that every option has something to do.
SMALL = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.context_length=24",
    "trainer.batch_size=4",
    "trainer.precision=fp32",
    "trainer.steps=4",
    "runtime.log_every=1",
    "runtime.evaluations=2",
    "runtime.device=cpu",
)
SHORT = {
    "attention": {"window": 7},
    "posemb": {"max_distance": 20, "n_buckets": 16, "original_length": 10},
    "ffn": {"leaks": True},
}


def options(axis: str) -> list[str]:
    """The option words of an axis: whatever stands in conf/."""
    return sorted(path.stem for path in (CONF_DIR / axis).glob("*.yaml"))


def every_option() -> list[tuple[str, str]]:
    return [(axis, option) for axis in AXES for option in options(axis)]


def option_cases() -> list[Any]:
    """For parametrize: every option, of which the aspect ratios but one are slow, being full-sized models of one architecture,
    and of the mixtures of experts all but one, which share most of their code and are small operations in large numbers."""
    fast = {"aspect_ratio": ("none", "r128"), "ffn": ("dense", "token_choice")}
    return [
        pytest.param(axis, option, marks=() if option in fast.get(axis, (option,)) else pytest.mark.slow)
        for axis, option in every_option()
    ]


@cache
def _request(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        raw = to_request(hydra_compose("train", overrides=rewrite(list(overrides)), return_hydra_config=True))
    for group, keys in SHORT.items():
        raw[group] |= {key: value for key, value in keys.items() if key in raw[group]}
    if raw["tokenizer"].get("kind") == "bpe":
        raw["tokenizer"]["vocab_size"] = 300
    return raw


def request(*overrides: str) -> dict[str, Any]:
    """A small RunRequest as plain values, free to be changed."""
    sizes = SMALL
    if any(word.startswith("aspect_ratio=") and word != "aspect_ratio=none" for word in overrides):
        sizes = tuple(word for word in SMALL if not word.startswith(("model.d_model", "model.n_layers")))
    return copy.deepcopy(_request(*sizes, *overrides))


def config(*overrides: str, raw: dict[str, Any] | None = None, given: dict[str, Any] | None = None):
    """A small, resolved RunConfig with a vocabulary of VOCAB."""
    raw = request(*overrides) if raw is None else raw
    cfg = from_request(raw, explicit(raw["overrides"]) | (given or {}))
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": VOCAB})})


class SmallText:
    """The part of TokenData that training uses, over a short random text with structure to learn."""

    def __init__(self, length: int = 3000) -> None:
        rng = np.random.default_rng(0)
        self.train = self.tokens = (np.cumsum(rng.integers(0, 3, length)) % VOCAB).astype(np.int64)
        self.val_bytes = 200

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        starts = np.random.default_rng([data_seed, step]).integers(0, len(self.tokens) - context_length - 1, batch_size)
        return self.tokens[starts[:, None] + np.arange(context_length + 1)]

    def val_windows(self, context_length: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.tokens[: 2 * context_length + 1]
        return rows[:-1].reshape(2, -1), rows[1:].reshape(2, -1)


def tokens_for(cfg, rows: int = 3) -> torch.Tensor:
    batch = SmallText().batch(0, data_seed=0, batch_size=rows, context_length=cfg.model.context_length)
    return torch.from_numpy(batch)


def scaled_model(cfg, scale: float = 1.0):
    """A model whose matrices are `scale` times larger than at initialisation."""
    model = build_model(cfg)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Matrix):
                module.weight.mul_(scale)
    return model


def training_record(cfg, scale: float = 1.0) -> SimpleNamespace:
    """Loss and gradient norm of every step, the last validation loss and what became of the run."""
    trainer = Trainer(scaled_model(cfg, scale), SmallText(), cfg, folder=None)
    records = list(trainer.records())
    numbers = [record.get(key) for record in records for key in ("train_loss", "grad_norm", "val_loss")]
    return SimpleNamespace(
        numbers=[x for x in numbers if x is not None],
        diverged=trainer.progress.diverged_at_step,
        tokens=records[-1].get("tokens"),
    )


def distance(a: SimpleNamespace, b: SimpleNamespace) -> float:
    """The largest relative difference between two records; infinite if they differ in length or fate."""
    if len(a.numbers) != len(b.numbers) or a.diverged != b.diverged or a.tokens != b.tokens:
        return float("inf")
    x, y = np.array(a.numbers, dtype=float), np.array(b.numbers, dtype=float)
    both_nan = np.isnan(x) & np.isnan(y)
    gap = np.abs(x - y) / np.maximum(np.abs(y), 1e-12)
    gap[both_nan] = 0.0
    return float("inf") if np.isnan(gap).any() else float(gap.max())
