"""Preparation of a model for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmablate.model.precision import compute_dtype, set_compute_dtype

if TYPE_CHECKING:
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig


def ready(model: TransformerLM, cfg: RunConfig, device: str) -> TransformerLM:
    """Return `model` on `device`, in the precision of its training and in eval mode."""
    set_compute_dtype(model, compute_dtype(cfg.trainer.precision))
    return model.to(device).eval()


@contextmanager
def evaluating(model: TransformerLM) -> Iterator[None]:
    """Turn off the dropout of `model` inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
