"""The Hydra plugins of ``hydra/sweeper=basic`` and ``=study``: Hydra reads the sweep and the command line, our code runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmablate.config.hints import to_config_error
from lmablate.config.overrides import SKIP, ZIP, rewrite
from lmablate.core.errors import ConfigError
from lmablate.launcher.hydra_launchers import Composer, launcher_of
from lmablate.sweeper.grid import base_of, combinations, read_grid
from lmablate.sweeper.looks import rule_of
from lmablate.sweeper.settings import read_study

if TYPE_CHECKING:
    from lmablate.config.resolve import Counted
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study

# Keys that a study sets itself, with the setting that controls them.
OWN = {"seed": "sweep.seeds", "init_seed": "sweep.seeds", "data_seed": "sweep.seeds"}


class StudySweeper(Sweeper):
    """The sweeper of a study. It leaves itself in ``captured``; the command builds and runs the study (cli/front_door.py)."""

    __module__ = "hydra_plugins.lmablate"
    captured: ClassVar[StudySweeper | None] = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config
        self.composer = Composer(self.loader, config)

    def sweep(self, arguments: list[str]) -> None:
        self.arguments = arguments
        StudySweeper.captured = self

    @property
    def launcher_name(self) -> str:
        """Return the name of the launcher that runs the jobs."""
        return launcher_of(self.master)

    def study(self) -> Study:
        """Return the checked study. Raises ConfigError."""
        from lmablate.sweeper import ladder, study

        node = OmegaConf.select(self.master, "sweep")
        if node is None:
            raise ConfigError("hydra/sweeper=study needs arms: choose a stored sweep that has them (sweeps=<question>)")
        sweep = _plain(node)
        fixed, multiplied = self._split_overrides(sweep)
        settings, tune = read_study(sweep, _plain(self.master.tune), multiplied)
        name = self.master.hydra.runtime.choices.get("sweeps") or "study"
        kind = ladder.LadderStudy if settings.ladder is not None else study.Study
        if settings.ladder is not None:
            ladder.refuse_sizes(settings.ladder, fixed)
        return kind(
            str(name), settings, tune, lambda own, counted: self._compose([*fixed, *own], counted), rule_of(settings)
        )

    def _split_overrides(self, sweep: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
        """Return the overrides that hold for every run, and the keys with several values, which multiply the arms."""
        parser = OverridesParser.create(config_loader=self.loader)
        decided = {
            override.lstrip("+").partition("=")[0]: arm
            for arm, overrides in (sweep.get("arms") or {}).items()
            for override in overrides or ()
        }
        fixed: list[str] = []
        multiplied: dict[str, list[str]] = {}
        for override in parser.parse_overrides(self.arguments):
            key = override.key_or_group
            if key in OWN:
                raise ConfigError(
                    f"{override.input_line}: the seeds of a study are its own; set {OWN[key]}, e.g. {OWN[key]}=8"
                )
            if key in decided:
                raise ConfigError(
                    f"{override.input_line}: the arm {decided[key]} sets {key}; change sweep.arms instead"
                )
            if key in (ZIP, SKIP):
                continue  # these belong to the study, not to its runs
            if not override.is_sweep_override():
                fixed.append(str(override.input_line))
            elif len(values := _values(override)) == 1:
                fixed.append(f"{override.get_key_element()}={values[0]}")
            else:
                multiplied[key] = values
        return fixed, multiplied

    def _compose(self, overrides: Sequence[str], counted: Counted | None = None) -> RunConfig:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from lmablate.config.composition import to_run_config

        rewritten = rewrite(list(overrides))
        try:
            return to_run_config(self.composer(rewritten), counted)
        except (HydraException, OmegaConfBaseException) as error:
            raise to_config_error(error, rewritten) from error


class GridSweeper(Sweeper):
    """The sweeper of a grid: the product of values, from the command line and `params` of a stored sweep.

    ``sweep.zip`` and ``sweep.skip`` arrange it (grid.py). Hydra's own sweeper composes every job once to check it, and its
    launcher composes it again. Ours composes and checks every job before the first one starts, and writes nothing before that.
    """

    __module__ = "hydra_plugins.lmablate"

    def __init__(self, params: dict[str, str] | None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        assert self.config is not None and self.launcher is not None  # Hydra calls setup first
        overrides = [*_overrides(self.params), *arguments]
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(overrides):
            if override.key_or_group not in (ZIP, SKIP):  # these belong to the grid, not to its jobs
                swept = override.is_sweep_override()
                values[override.get_key_element()] = (
                    _values(override) if swept else [override.get_value_element_as_str()]
                )
        node = OmegaConf.select(self.config, "sweep")
        settings = read_grid(_plain(node) if node is not None else {})
        jobs = combinations(values, settings.zip, settings.skip)
        varied = {key for key, own in values.items() if len(own) > 1}
        self.launcher.base_overrides = [base_of(job, varied) for job in jobs]  # type: ignore[attr-defined]  # hydra_launchers.py
        self.launcher.launch([[f"{key}={value}" for key, value in job.items()] for job in jobs], initial_job_idx=0)


def _overrides(params: Any) -> list[str]:
    """Return ``hydra.sweeper.params`` as overrides, checked like those of a command line. Raises ConfigError."""
    if not isinstance(params, Mapping):
        raise ConfigError(
            f"hydra.sweeper.params={params}: give keys and values, such as {{norm: 'rms,layer', seed: '0,1'}}"
        )
    return rewrite([f"{key}={'null' if value is None else value}" for key, value in params.items()])


def _plain(node: Any) -> dict[str, Any]:
    value = OmegaConf.to_container(node, resolve=True) if node is not None else {}
    if not isinstance(value, dict):
        raise ConfigError(f"the study's settings are {value!r}, not a mapping: see sweeps/ for examples")
    return {str(key): item for key, item in value.items()}


def _values(override: Override) -> list[str]:
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: give the values themselves, e.g. {override.key_or_group}=1,2,4")
    return [str(value) for value in override.sweep_string_iterator()]


def register_sweeper() -> None:
    """Register the sweepers with Hydra, in the module that holds our launchers (launcher/hydra_launchers.py explains why)."""
    import sys

    from lmablate.sweeper.optuna_plugin import SearchSweeper

    for sweeper in (StudySweeper, SearchSweeper, GridSweeper):
        setattr(sys.modules["hydra_plugins.lmablate"], sweeper.__name__, sweeper)
        Plugins.instance().register(sweeper)
    # This replaces Hydra's own. A YAML of that name would be checked against Hydra's schema, and an override in train.yaml
    # would win over those of stored sweeps.
    node = {"_target_": "hydra_plugins.lmablate.GridSweeper", "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="lmablate")
