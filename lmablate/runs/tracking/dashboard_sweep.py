"""What a dashboard shows of a stored sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

SEEDS = ("seed", "init_seed", "data_seed")
X, CURVES = "tokens", ("val_loss", "train_loss", "grad_norm", "val_bpb")  # of history.jsonl, as mirror.py sends them
LOSS, SUMMARY = "val_loss", ("val_loss", "val_bpb", "status", "n_params", "flops_per_token")  # of the end of a run
ARM, STAGE, RATE = "arm", "stage", "optim.lr"  # of its configuration
TUNE = "tune"  # the stage that tunes


@dataclass(frozen=True)
class Sweep:
    """What a dashboard knows of a stored sweep: what it varies beside seeds and, of a study, the stages that evaluate its arms
    and whether one tunes them. `configs`: the jobs of a plain grid."""

    name: str
    question: str
    varied: tuple[str, ...]
    stages: tuple[str, ...]
    tuned: bool
    project: str
    configs: tuple[RunConfig, ...] = ()

    @property
    def study(self) -> bool:
        """Whether its arms and stages have names."""
        return bool(self.stages)

    @property
    def groups(self) -> tuple[str, ...]:
        """The configuration keys that tell its arms apart."""
        return (ARM,) if self.study else self.varied
