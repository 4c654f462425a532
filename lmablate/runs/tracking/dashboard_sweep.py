"""Describe a stored sweep for a dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

SEEDS = ("seed", "init_seed", "data_seed")
X, CURVES = (
    "tokens",
    ("val_loss", "train_loss", "grad_norm", "val_bpb"),
)  # keys of history.jsonl, as follower.py sends them
LOSS, SUMMARY = "val_loss", ("val_loss", "val_bpb", "status", "n_params", "flops_per_token")  # keys of the summary
ARM, STAGE, RATE = "arm", "stage", "optim.lr"  # keys of the configuration
TUNE = "tune"  # the stage that tunes the learning rate


@dataclass(frozen=True)
class DashboardSweep:
    """A stored sweep as a dashboard shows it. `varied`: keys that vary besides seeds; `stages`: of a study, those that
    evaluate its arms; `tuned`: whether another stage tunes them; `configs`: the jobs of a plain grid."""

    name: str
    question: str
    varied: tuple[str, ...]
    stages: tuple[str, ...]
    tuned: bool
    project: str
    configs: tuple[RunConfig, ...] = ()

    @property
    def study(self) -> bool:
        """Return whether arms and stages have names."""
        return bool(self.stages)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the configuration keys that tell its arms apart."""
        return (ARM,) if self.study else self.varied
