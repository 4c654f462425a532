"""``hydra/launcher=local``: Hydra expands the grid, our own scheduler (scheduler.py) runs the jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Composes every job of a multirun and leaves them in ``collected``; the command checks and runs them (cli.py)."""

    # Hydra accepts plugins of the namespace package hydra_plugins alone. This class is registered by hand (cli.py), which
    # works in a checkout, an editable install and a wheel alike, where discovery of namespace packages does not.
    __module__ = "hydra_plugins.lmablate"
    collected: ClassVar[list[DictConfig]] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.hydra_context.config_loader
        self.collected.extend(loader.load_sweep_config(self.config, list(words)) for words in job_overrides)
        return []
