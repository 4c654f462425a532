"""``hydra/launcher=local``: Hydra expands the grid, our own scheduler runs the jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmablate.config.compose import to_run_config


class LocalLauncher(Launcher):
    """Composes and checks every job before the first one starts, then hands all of them to the command's action."""

    # Hydra accepts plugins of the namespace package hydra_plugins alone. We register this class by hand (cli.py), which
    # works in a checkout, an editable install and a wheel alike, where discovery of namespace packages does not.
    __module__ = "hydra_plugins.lmablate"
    action: ClassVar[Callable[[Sequence[Any]], int]]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader = self.hydra_context.config_loader
        composed = [loader.load_sweep_config(self.config, list(words)) for words in job_overrides]
        type(self).action([to_run_config(job) for job in composed])
        return []
