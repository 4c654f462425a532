"""The space of a search: keys with their ranges or choices, from ``hydra.sweeper`` and the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lmablate.config.hints import validated
from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.schema.training_config import LENGTHS
from lmablate.sweeper.grid import value_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Word = str | int | float | bool | None
Number = int | float
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
DIGITS = 4  # significant digits of a number that is drawn from a range
LR = "optim.lr"
# Keys that the search sets itself, with the setting that controls them.
OWN = dict.fromkeys(("seed", "init_seed", "data_seed"), "hydra.sweeper.seeds")


class RangeSettings(Settings):
    """Numbers from `low` to `high`, both included; whole numbers if both are.

    `log`: uniform in the logarithm. `step`: the spacing of a lattice."""

    low: Number
    high: Number
    log: bool | None = None
    step: Number | None = None


class ChoiceSettings(Settings):
    """A list of values to choose from."""

    choices: list[Word]


def _form(value: Any) -> str:
    return (
        "choices" if isinstance(value, ChoiceSettings) or (isinstance(value, dict) and "choices" in value) else "range"
    )


Entry = Annotated[
    Annotated[RangeSettings, Tag("range")] | Annotated[ChoiceSettings, Tag("choices")], Discriminator(_form)
]


class HalvingSettings(Settings):
    """`rungs`: shares of the steps, the last 1. `keep`: the share of the trials that continues to the next rung."""

    rungs: list[Share]
    keep: Annotated[float, Field(gt=0, lt=1)]


class SearchSettings(Settings):
    """The keys of ``hydra/sweeper=optuna``; conf/hydra/sweeper/optuna.yaml explains them."""

    space: dict[str, Entry]
    trials: Annotated[int, Field(gt=0)]
    sampler: Literal["tpe", "random", "cmaes", "grid"]
    seed: Seed
    metric: Literal["val_loss", "val_bpb", "train_loss"]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    batch: Annotated[int, Field(gt=0)] | None = None
    halving: HalvingSettings | None = None
    name: str | None = None


@dataclass(frozen=True)
class Dimension:
    """One key of a space, with its `choices` or its range from `low` to `high`."""

    key: str
    choices: tuple[Word, ...] | None = None
    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Number | None = None

    @property
    def whole(self) -> bool:
        """Return True if the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def distribution(self) -> BaseDistribution:
        """Return the distribution in optuna's form."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def lattice(self) -> list[Any] | None:
        """Return every value, or None if they cannot be listed."""
        if self.choices is not None:
            return list(self.choices)
        if self.step is None and not (self.whole and not self.log):
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + i * step if self.whole else float(f"{self.low + i * step:.12g}") for i in range(count)]

    def override(self, value: Any) -> str:
        """Return ``key=value`` in Hydra's grammar.

        A drawn number is rounded to DIGITS digits, so that its run has a name that can be typed."""
        if self.choices is None and isinstance(value, float):
            digits = 12 if self.step is not None else DIGITS
            value = min(max(float(f"{value:.{digits}g}"), self.low), self.high)
            return f"{self.key}={value:g}" if float(f"{value:g}") == value else f"{self.key}={value}"
        return f"{self.key}={value_text(value)}"

    def edge(self, value: Any) -> str | None:
        """Return ``low`` or ``high`` if a number lies within 5 % of the range from that end, else None."""
        if self.choices is not None or self.high == self.low:
            return None
        at, low, high = (math.log(x) if self.log else x for x in (value, self.low, self.high))
        share = (at - low) / (high - low)
        return "low" if share < 0.05 else "high" if share > 0.95 else None

    def __str__(self) -> str:
        if self.choices is not None:
            return ", ".join(self.override(choice).partition("=")[2] for choice in self.choices)
        step = f" in steps of {self.step:g}" if self.step is not None else ""
        return (
            f"{self.low:g} to {self.high:g}{step}{', log' if self.log else ''}{', whole numbers' if self.whole else ''}"
        )


def read_search(raw: dict[str, Any], typed: dict[str, Any]) -> SearchSettings:
    """Return the checked keys of ``hydra.sweeper``; `typed` are dimensions of the command line. Raises ConfigError."""
    given = (raw.get("space") or {}).items()
    space = {key: {"choices": value} if isinstance(value, list) else value for key, value in given}
    if both := set(space) & set(typed):
        raise ConfigError(f"{min(both)} stands in hydra.sweeper.space and on the command line: say it once")
    halving = raw.get("halving")
    if isinstance(halving, dict) and isinstance(halving.get("rungs"), list):
        raw = {**raw, "halving": {**halving, "rungs": [float(x) if _number(x) else x for x in halving["rungs"]]}}
    try:
        settings = validated(SearchSettings, {**raw, "space": {**space, **typed}}, "in the search, hydra.sweeper.")
    except ConfigError as error:
        raise ConfigError(re.sub(r"(space\.\S+)\.(range|choices)(?=[.:])", r"\1", str(error))) from error
    check_search(settings)
    return settings


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_search(settings: SearchSettings) -> None:
    """Raise ConfigError for settings that contradict each other."""
    node = "hydra.sweeper.space"
    if not settings.space:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search: give keys with a range or choices, e.g. "
            "'optim.lr=tag(log,interval(1e-4,1e-2))' norm=rms,layer, or hydra.sweeper.space={...}"
        )
    for key, one in settings.space.items():
        if key in OWN:
            raise ConfigError(f"{node}: {key} is not searched over; a trial has the seeds of {OWN[key]}")
        if key in LENGTHS:
            raise ConfigError(f"{node}: {key} is not searched over: the longest run would win")
        if isinstance(one, ChoiceSettings):
            if len({(type(x), x) for x in one.choices}) != len(one.choices) or len(one.choices) < 2:
                raise ConfigError(f"{node}: {key}={one.choices} needs two choices or more, each once")
            continue
        if not (math.isfinite(one.low) and math.isfinite(one.high) and one.low < one.high):
            raise ConfigError(f"{node}: {key} goes from low={one.low:g} to high={one.high:g}; low must be below high")
        if one.log and one.low <= 0:
            raise ConfigError(
                f"{node}: {key} is drawn in its logarithm, and low={one.low:g} has none; use a low above 0"
            )
        if one.step is not None and (one.log or one.step <= 0):
            raise ConfigError(f"{node}: {key} has step={one.step:g}: a step is above 0, and goes without log")
    if len(set(settings.seeds)) != len(settings.seeds):
        raise ConfigError(f"hydra.sweeper.seeds={settings.seeds}: a seed stands there twice")
    if "tokenizer" in {key.partition(".")[0] for key in settings.space} and settings.metric != "val_bpb":
        raise ConfigError(
            f"hydra.sweeper.metric={settings.metric} is per token, and the space changes the tokens: use hydra.sweeper.metric=val_bpb"
        )
    if settings.name is not None and not settings.name.isidentifier():
        raise ConfigError(f"hydra.sweeper.name={settings.name}: letters, digits and _ only, as it names a file")
    if settings.sampler == "grid":
        for dimension in dimensions(settings):
            if dimension.lattice() is None:
                raise ConfigError(
                    f"hydra.sweeper.sampler=grid needs the values of {dimension.key}: give choices, or low, high and step"
                )
    if settings.halving is not None:
        _check_halving(settings, settings.halving)


def _check_halving(settings: SearchSettings, halving: HalvingSettings) -> None:
    others = [key for key in settings.space if key != LR]
    if others or LR not in settings.space:
        raise ConfigError(
            "hydra.sweeper.halving drops trials after short runs, which prefers what learns fast early and would be unfair to the "
            f"rest: it is for optim.lr alone, and this space has {', '.join(others)}; search it without halving"
        )
    rungs = halving.rungs
    if sorted(set(rungs)) != rungs or rungs[-1] != 1.0 or len(rungs) < 2:
        raise ConfigError(
            f"hydra.sweeper.halving.rungs={rungs}: shares of the steps that rise, two or more, the last of them 1.0"
        )


def dimensions(settings: SearchSettings) -> list[Dimension]:
    """Return the dimensions of the space, in the order given."""
    out = []
    for key, one in settings.space.items():
        if isinstance(one, ChoiceSettings):
            out.append(Dimension(key, choices=tuple(one.choices)))
        else:
            out.append(Dimension(key, None, one.low, one.high, bool(one.log), one.step))
    return out
