"""``hydra/launcher=local``, ``=gang`` and the engines: Hydra expands the grid, our own scheduler (scheduler.py) runs the jobs."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from typing import Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmablate.config.hints import to_config_error
from lmablate.launcher import engine
from lmablate.launcher.composer import Composer


class LocalLauncher(Launcher):
    """Composes every job of a multirun and leaves them in ``collected``; the command checks and runs them (cli.py)."""

    __module__ = "hydra_plugins.lmablate"
    collected: ClassVar[list[DictConfig]] = []

    def __init__(self, **settings: Any) -> None:
        """What an engine's group says; the engine checks it (engine.py)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        compose = Composer(self.hydra_context.config_loader, self.config)
        for words in job_overrides:
            try:
                self.collected.append(compose(words))
            except (HydraException, OmegaConfBaseException) as error:
                raise to_config_error(error, words) from error  # here it is known which options this job has chosen
        return []


class GangLauncher(LocalLauncher):
    """The same, for jobs that then train together where their graphs are equal (gang.py)."""

    __module__ = "hydra_plugins.lmablate"


class RayLauncher(LocalLauncher):
    """The same, for jobs that then run on Ray (ray_engine.py)."""

    __module__ = "hydra_plugins.lmablate"


class SubmititLocalLauncher(LocalLauncher):
    """The same, for jobs that then run as submitit's (submitit_engine.py)."""

    __module__ = "hydra_plugins.lmablate"


class SubmititSlurmLauncher(LocalLauncher):
    """The same, for jobs that then run on Slurm."""

    __module__ = "hydra_plugins.lmablate"


def register() -> None:
    """Make the launchers of ``hydra_plugins.lmablate`` known to Hydra.

    Hydra takes launchers from the namespace package hydra_plugins alone, and its discovery walks folders, which does not
    see an editable install. Made by hand, the module is there in a checkout, an editable install and a wheel alike.
    """
    plugins = Plugins.instance()
    try:
        parent = importlib.import_module("hydra_plugins")
    except ImportError:
        parent = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        parent.__path__ = []
    module = types.ModuleType("hydra_plugins.lmablate")
    sys.modules["hydra_plugins.lmablate"] = parent.lmablate = module  # type: ignore[attr-defined]
    for launcher in (LocalLauncher, GangLauncher, RayLauncher, SubmititLocalLauncher, SubmititSlurmLauncher):
        setattr(module, launcher.__name__, launcher)
        plugins.register(launcher)


def launcher_of(composed: DictConfig) -> engine.Launcher:
    """The word of the launcher that Hydra chose, with its settings."""
    settings = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    named = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    return engine.Launcher(composed.hydra.runtime.choices["hydra/launcher"], named)
