"""The Hydra plugin of ``hydra/sweeper=optuna``: Hydra reads the space and the fixed overrides, our code searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from lmablate.config.composition import counted_in
from lmablate.config.overrides import SKIP, ZIP
from lmablate.config.resolve import by_steps
from lmablate.core.errors import ConfigError
from lmablate.schema.training_config import LENGTHS
from lmablate.sweeper.optuna_space import OWN, read_search
from lmablate.sweeper.plugin import StudySweeper, _values

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.optuna_search import Search


class SearchSweeper(StudySweeper):
    """The sweeper of a search. It leaves itself in ``StudySweeper.captured``, as a study does."""

    __module__ = "hydra_plugins.lmablate"

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def study(self) -> Search:  # type: ignore[override]
        """Return the checked search. Raises ConfigError."""
        from lmablate.sweeper.optuna_search import Search

        raw = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        fixed, typed = self._split_search()
        node = OmegaConf.select(self.master, "sweep")
        grid = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}
        if isinstance(grid, dict) and (grid.get("zip") or grid.get("skip")):
            raise ConfigError(
                "sweep.zip and sweep.skip arrange a grid or a study; a search draws its trials: leave them out"
            )
        if isinstance(grid, dict) and grid.get("arms"):
            raise ConfigError("sweep.arms are the arms of a study: use hydra/sweeper=study, or search without them")
        settings = read_search(raw, typed)
        for key in settings.space:
            if any(override.lstrip("+").partition("=")[0] == key for override in fixed):
                raise ConfigError(f"{key} stands in hydra.sweeper.space and is set on the command line: say it once")
        stored = self.master.hydra.runtime.choices.get("sweeps")
        question = str(grid.get("question") or "") if isinstance(grid, dict) else ""
        name = settings.name or str(stored or "search")
        whole = counted_in(lambda: self._compose(fixed))

        def compose(overrides: Sequence[str]) -> RunConfig:
            return by_steps(self._compose(overrides, None if list(overrides) == fixed else whole))

        return Search(name, settings, tuple(fixed), compose, question)

    def _split_search(self) -> tuple[list[str], dict[str, Any]]:
        """Return the overrides that hold for every trial, and the dimensions. Raises ConfigError."""
        fixed: list[str] = []
        typed: dict[str, Any] = {}
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(self.arguments):
            key = override.key_or_group
            if key in OWN:
                raise ConfigError(
                    f"{override.input_line}: every trial of a search has the seeds of {OWN[key]}; set that"
                )
            if key in (ZIP, SKIP):
                raise ConfigError(
                    f"{key} arranges a grid or a study; a search draws its trials from the whole space: leave it out"
                )
            if override.is_sweep_override():
                values = _values(override) if override.is_discrete_sweep() else []
                if len(values) == 1:  # choice(4): one value for every trial
                    fixed.append(f"{override.get_key_element()}={values[0]}")
                    continue
                if key in LENGTHS:
                    raise ConfigError(f"{override.input_line}: {key} is not searched over: the longest run would win")
                typed[key] = _dimension(override)
            else:
                fixed.append(str(override.input_line))
        return fixed, typed


def _dimension(override: Override) -> dict[str, Any]:
    """Return the dimension of an override.

    Forms: ``a=1,2``, ``a=choice(1,2)``, ``a=range(1,9,2)``, ``a=interval(0,1)``, ``a=tag(log,interval(1e-4,1e-2))``. The tag
    int makes an interval of whole numbers. Raises ConfigError."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None and high is not None
        if unknown := value.tags - {"log", "int"}:
            raise ConfigError(f"{override.input_line}: the tag {min(unknown)} is unknown; there are log and int")
        if "int" in value.tags:
            low, high = int(low), int(high)
        return {"low": low, "high": high, "log": "log" in value.tags or None}
    if override.is_discrete_sweep():
        return {"choices": [str(choice) for choice in override.sweep_string_iterator()]}
    raise ConfigError(
        f"{override.input_line}: give choices (1,2,4), or a range: interval(0,1), tag(log,interval(1e-4,1e-2))"
    )
