"""Define the Hydra launchers (``hydra/launcher=local``, ``gang`` and the engines): Hydra expands the grid, scheduler.py runs it."""

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
from lmablate.config.reuse import CachedComposer
from lmablate.launcher import engine


class Composer(CachedComposer):
    """A cached ``loader.load_sweep_config(master, overrides)`` for one job after another."""

    def __init__(self, loader: Any, master: DictConfig) -> None:
        super().__init__(loader, lambda overrides: loader.load_sweep_config(master, overrides))


class LocalLauncher(Launcher):
    """A launcher that composes every job of a multirun into ``collected``; the command checks and runs them (front_door.py)."""

    __module__ = "hydra_plugins.lmablate"
    collected: ClassVar[list[DictConfig]] = []
    bases: ClassVar[
        list[tuple[str, ...]]
    ] = []  # the overrides of each job's base (sweeper/grid.py), which `compose` composes
    compose: ClassVar[Composer]
    base_overrides: Sequence[tuple[str, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        """Accept the settings of an engine's group; the engine checks them (engine.py)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        LocalLauncher.compose = compose = Composer(self.hydra_context.config_loader, self.config)
        self.bases.extend(self.base_overrides)
        for overrides in job_overrides:
            try:
                self.collected.append(compose(overrides))
            except (HydraException, OmegaConfBaseException) as error:
                raise to_config_error(error, overrides) from error  # the message needs the options of this job
        return []


# Launchers that only the scheduler tells apart, by the name that Hydra chose (gang_run.py, ray_engine.py, submitit_engine.py).
OTHERS = ("GangLauncher", "RayLauncher", "SubmititLocalLauncher", "SubmititSlurmLauncher")


def register() -> None:
    """Register the launchers of ``hydra_plugins.lmablate`` with Hydra.

    Hydra takes launchers only from the namespace package hydra_plugins, and its discovery walks folders, which misses
    an editable install. A module made here exists in a checkout, an editable install and a wheel alike.
    """
    plugins = Plugins.instance()
    try:
        parent = importlib.import_module("hydra_plugins")
    except ImportError:
        parent = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        parent.__path__ = []
    module = types.ModuleType("hydra_plugins.lmablate")
    sys.modules["hydra_plugins.lmablate"] = parent.lmablate = module  # type: ignore[attr-defined]
    others = [type(name, (LocalLauncher,), {"__module__": LocalLauncher.__module__}) for name in OTHERS]
    for launcher in (LocalLauncher, *others):
        setattr(module, launcher.__name__, launcher)
        plugins.register(launcher)


def launcher_of(composed: DictConfig) -> engine.LauncherChoice:
    """Return the name of the launcher that Hydra chose, with its settings."""
    settings = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    named = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    return engine.LauncherChoice(composed.hydra.runtime.choices["hydra/launcher"], named)
