"""Trials of a search, the optuna library, and the metric of a finished run."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.sweeper.optuna_space import Dimension

if TYPE_CHECKING:
    import optuna

    from lmablate.schema.result import RunResult

INSTALL = "pip install 'lmablate[optuna]'"
# Final states. `stopped`: at an early rung; `refused`: its settings make no model; `failed`: a run crashed.
FINAL = ("completed", "diverged", "stopped", "refused", "failed")


@dataclass
class SearchTrial:
    """One trial: the settings that optuna chose, its state and its results. `rung`: the last index reached of `halving.rungs`."""

    number: int
    batch: int
    params: dict[str, Any]
    words: tuple[str, ...]
    trial: Any = field(repr=False)
    state: str = "asked"
    value: float | None = None
    by_seed: list[float | None] = field(default_factory=list)
    note: str = ""
    rung: int = 0
    runs: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return the trial's overrides as one string."""
        return " ".join(self.words)


def open_study(sampler: str, space: Sequence[Dimension], seed: int) -> optuna.Study:
    """Return an empty in-memory study; for a grid, with its points enqueued."""
    library = optuna_library(sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
        study = library.create_study(direction="minimize", sampler=make_sampler(sampler, seed))
    if sampler == "grid":
        points = list(itertools.product(*(one.lattice() or () for one in space)))
        random.Random(seed).shuffle(points)  # so that a part of the grid is not one corner of it
        for point in points:
            study.enqueue_trial(dict(zip((one.key for one in space), point, strict=True)))
    return study


def make_sampler(sampler: str, seed: int) -> optuna.samplers.BaseSampler:
    """Return optuna's sampler of that name. TPE is multivariate, since a learning rate and a decay interact."""
    samplers = optuna_library(sampler).samplers
    if sampler == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    if sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)  # of a grid all points are enqueued: GridSampler cannot be asked and told


def metric_of(row: RunResult, metric: str) -> float | None:
    """Return a run's metric, or None if it has no finite value.

    For a diverged run this is the loss before training, in the metric's unit. Every run that learns has a lower one."""
    if row.status == "completed":
        return float(row[metric])
    start, data = row.init_val_loss, row.data
    if start is None:
        return None
    if metric != "val_bpb":
        return float(start)
    tokens, size = data.get("val_tokens"), data.get("val_bytes")
    return float(start * tokens / size / math.log(2)) if tokens and size else None


def optuna_library(sampler: str) -> Any:
    """Return the optuna module with its log silenced. Raises ConfigError if it is not installed."""
    try:
        import optuna

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ImportError as error:
        what = "the optuna library" if error.name == "optuna" else f"{error.name} for sampler={sampler}"
        raise ConfigError(f"hydra/sweeper=optuna needs {what}, which is not installed: {INSTALL}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
