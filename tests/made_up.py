"""Frames of finished runs as load_runs gives them, with final losses of one's own choice."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

COMMON = {
    "norm": "rms", "norm_position": "pre", "activation": "swiglu", "posemb": "rope", "attention": "mha", "stability": "none",
    "activation.gated": True, "optim.lr": 3e-3, "optim.eps": 1e-8, "optim.weight_decay": 0.1, "schedule.warmup_steps": 20,
    "trainer.steps": 400, "model.d_model": 128, "model.d_ff": 344, "model.n_layers": 4, "science_version": 1, "sweep": None,
    "n_params": 1_300_000, "n_params_non_embedding": 800_000, "flops_per_token": 6_700_000, "init_val_loss": 7.6,
    "numerics": "cpu fp32 eager", "tokens_per_second": 14_000.0,
}  # fmt: skip
AXES = ["norm", "norm_position", "activation", "posemb", "attention", "stability"]


def rows(losses: Mapping[int, float | None] | Sequence[float | None], **columns: Any) -> list[dict[str, Any]]:
    """One run a seed (or for each number of a list, seeds from 0); None is a run that diverged."""
    by_seed = losses if isinstance(losses, Mapping) else dict(enumerate(losses))
    out = []
    for seed, loss in by_seed.items():
        row = {**COMMON, **{key.replace("__", "."): value for key, value in columns.items()}}
        row |= {"status": "diverged" if loss is None else "completed", "val_loss": loss, "train_loss": loss}
        row |= {"val_bpb": None if loss is None else loss / 2.5, "init_seed": seed, "data_seed": seed}
        out.append(row)
    return out


def frame(*arms: list[dict[str, Any]]) -> pd.DataFrame:
    out = pd.DataFrame([row for arm in arms for row in arm])
    out["run_id"] = [f"{i:012x}" for i in range(len(out))]
    out.attrs["axes"] = AXES
    return out
