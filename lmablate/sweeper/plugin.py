"""``hydra/sweeper=basic`` and ``=study``: Hydra reads what a stored sweep and the command line say; the rest is our own."""

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

from lmablate.config.hints import in_words
from lmablate.config.overrides import SKIP, ZIP, rewrite
from lmablate.core.errors import ConfigError
from lmablate.launcher.composer import Composer
from lmablate.launcher.hydra_launchers import launcher_of
from lmablate.sweeper.grid import combinations, read_grid
from lmablate.sweeper.rules import rule_of
from lmablate.sweeper.settings import read_study

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study

# What a study decides itself, and the key that says how.
OWN = {"seed": "sweep.seeds", "init_seed": "sweep.seeds", "data_seed": "sweep.seeds"}


class StudySweeper(Sweeper):
    """Leaves itself in ``asked``; the command builds the study from it and runs or prices it (cli.py)."""

    __module__ = "hydra_plugins.lmablate"
    asked: ClassVar[StudySweeper | None] = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config
        self.composer = Composer(self.loader, config)

    def sweep(self, arguments: list[str]) -> None:
        self.arguments = arguments
        StudySweeper.asked = self

    @property
    def launcher_word(self) -> str:
        """The word of the launcher that runs the jobs."""

        return launcher_of(self.master)

    def study(self) -> Study:
        """The checked study. Raises ConfigError."""
        from lmablate.sweeper.study import Study

        node = OmegaConf.select(self.master, "sweep")
        if node is None:
            raise ConfigError("hydra/sweeper=study needs arms: choose a stored sweep that has them (sweeps=<question>)")
        sweep = _plain(node)
        fixed, several = self._typed(_plain(self.master.get("tune")), sweep)
        settings, tune = read_study(sweep, _plain(self.master.tune), several)
        name = self.master.hydra.runtime.choices.get("sweeps") or "study"
        return Study(str(name), settings, tune, lambda words: self._compose([*fixed, *words]), rule_of(settings))

    def _typed(self, tune: dict[str, Any], sweep: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
        """The words of the command line: those that hold for every run, and keys with several values, which multiply arms."""
        parser = OverridesParser.create(config_loader=self.loader)
        decided = {
            word.lstrip("+").partition("=")[0]: arm
            for arm, words in (sweep.get("arms") or {}).items()
            for word in words or ()
        }
        fixed: list[str] = []
        several: dict[str, list[str]] = {}
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
                continue  # of the study, not of its runs
            if not override.is_sweep_override():
                fixed.append(str(override.input_line))
            elif len(values := _values(override)) == 1:
                fixed.append(f"{override.get_key_element()}={values[0]}")
            else:
                several[key] = values
        return fixed, several

    def _compose(self, words: Sequence[str]) -> RunConfig:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from lmablate.config.composition import to_run_config

        overrides = rewrite(list(words))
        try:
            return to_run_config(self.composer(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise in_words(error, overrides) from error


class GridSweeper(Sweeper):
    """The product of values, as Hydra's basic sweeper makes it, and as it takes `params` from a stored sweep; ``sweep.zip``
    and ``sweep.skip`` arrange it (grid.py).

    Hydra's own composes every job once to see whether it can be, and its launcher again; ours composes all of them, and each
    is checked, before the first one starts. Nothing is written down before that.
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
        words = [*_overrides(self.params), *arguments]
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(words):
            if override.key_or_group not in (ZIP, SKIP):  # of the grid, not of its jobs
                swept = override.is_sweep_override()
                values[override.get_key_element()] = (
                    _values(override) if swept else [override.get_value_element_as_str()]
                )
        node = OmegaConf.select(self.config, "sweep")
        settings = read_grid(_plain(node) if node is not None else {})
        jobs = combinations(values, settings.zip, settings.skip)
        self.launcher.launch([[f"{key}={value}" for key, value in job.items()] for job in jobs], initial_job_idx=0)


def _overrides(params: Any) -> list[str]:
    """``hydra.sweeper.params`` as overrides, held to what those of a command line are. Raises ConfigError."""
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
    """Make them known to Hydra, in the module that holds our launchers (launcher/local.py says why by hand)."""
    import sys

    from lmablate.sweeper.optuna_plugin import SearchSweeper

    for sweeper in (StudySweeper, SearchSweeper, GridSweeper):
        setattr(sys.modules["hydra_plugins.lmablate"], sweeper.__name__, sweeper)
        Plugins.instance().register(sweeper)
    # In the place of Hydra's own: a YAML of that name would be held against its schema, and an override in train.yaml would
    # win over those of stored sweeps.
    node = {"_target_": "hydra_plugins.lmablate.GridSweeper", "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=node, provider="lmablate")
