"""The settings of a study: arms, seeds, and how the learning rate is chosen, from a stored sweep and ``tune=``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from lmablate.config.hints import validated
from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.sweeper.grid import Skips, Zips, value_text
from lmablate.sweeper.grid import combinations as arranged
from lmablate.sweeper.rungs import LadderSettings, check_ladder, own_keys

Seed = Annotated[int, Field(ge=0)]
Values = list[Any]
Pairing = Literal["paired", "init", "data", "crossed"]
ARM = "arm"  # the key of the arm in sweep.skip
HELD = 0  # the fixed seed, of the data order in `seeds.mode=init` and of the weights in `=data`


class SeedSettings(Settings):
    """`values`: the number of seeds (0, 1, ...), or a list of them. `mode`: what a seed changes.

    paired: weights and data order together; init: weights alone; data: the order alone; crossed: every pair of the two."""

    values: Annotated[int, Field(gt=0)] | list[Seed]
    mode: Pairing


class TuneSettings(Settings):
    """How learning rates are chosen.

    The grid is `factors` times the arm's own optim.lr. Up to `extend` times a point is added if the best lies at the edge.
    `cross` maps other keys to values, which are chosen together with the rate."""

    mode: Literal["none", "shared", "per_arm", "both"]
    factors: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    seeds: list[Seed] | None = None
    extend: Annotated[int, Field(ge=0)] | None = None
    cross: dict[str, Values] | None = None


class StudySettings(Settings):
    """The node ``sweep`` of a stored study.

    `arms` are lists of overrides, the first the baseline. `cross` multiplies them by values of more keys, `zip` pairs some
    keys, and `skip` leaves combinations out (grid.py; ``arm`` is the arm). `starts` maps an arm to the arm whose run of the same
    seeds it starts from (trainer.init_from). After `looks` pairs, decided arms stop by `look_rule` (None: obrien_fleming). `ladder` trains
    every arm at several sizes (rungs.py).
    """

    question: str
    arms: dict[str, list[str]]
    seeds: SeedSettings
    claims: list[str] | None = None
    scales: dict[str, list[str]] | None = None
    cross: dict[str, Values] | None = None
    zip: Zips | None = None
    skip: Skips | None = None
    starts: dict[str, str] | None = None
    looks: list[Annotated[int, Field(gt=1)]] | None = None
    look_rule: Literal["obrien_fleming", "pocock", "anytime"] | None = None
    ladder: LadderSettings | None = None


class Arm(NamedTuple):
    """The name of an arm and its overrides."""

    name: str
    overrides: tuple[str, ...]


class SeedPair(NamedTuple):
    """The seeds of the weights and of the data order."""

    init: int
    data: int


def read_study(
    node: dict[str, Any], tune: dict[str, Any], typed: dict[str, list[str]]
) -> tuple[StudySettings, TuneSettings]:
    """Return the checked nodes ``sweep`` and ``tune``.

    `typed` are keys with several values on the command line, which multiply the arms like ``sweep.cross``. Raises ConfigError.
    """
    node = {key: value for key, value in node.items() if value is not None}
    if isinstance(node.get("seeds"), int | list):  # sweep.seeds=8
        node["seeds"] = {"values": node["seeds"], "mode": "paired"}
    if typed:
        node["cross"] = {**(node.get("cross") or {}), **typed}
    where = "in the study (sweep.*, tune.*): "
    study, tuning = validated(StudySettings, node, where), validated(TuneSettings, tune, where)
    check_study(study, tuning)
    return study, tuning


def check_study(study: StudySettings, tune: TuneSettings) -> None:
    """Raise ConfigError for settings that contradict each other."""
    if not study.arms:
        raise ConfigError("sweep.arms is empty: a study needs at least one arm, e.g. sweep.arms={base: []}")
    if tune.mode != "none":
        for key in ("factors", "seeds"):
            if not getattr(tune, key):
                raise ConfigError(f"tune.{key}: tune={tune.mode} needs at least one value")
        factors = tune.factors or []
        if len(set(factors)) != len(factors):
            raise ConfigError(f"tune.factors={factors}: a factor stands there twice")
        crossed = math.prod(len(values) for values in (tune.cross or {}).values())
        if len(factors) == 1 and not tune.extend and crossed == 1:
            raise ConfigError(
                f"tune.factors={factors} with tune.extend={tune.extend}: tune={tune.mode} has one learning rate to choose from: give more "
                "factors, or use tune=none"
            )
        both = set(tune.seeds or ()) & {number for pair in seed_pairs(study.seeds) for number in pair}
        if both:
            raise ConfigError(
                f"tune.seeds={tune.seeds} and the evaluation seeds share {', '.join(map(str, sorted(both)))}: "
                "a learning rate that is judged by the seeds it was chosen on looks better than it is; use other tune.seeds"
            )
    moved = ("seed", "init_seed", "data_seed")
    for name, values in {"sweep.cross": study.cross, "tune.cross": tune.cross}.items():
        for key, options in (values or {}).items():
            if key in (*moved, "optim.lr"):
                raise ConfigError(
                    f"{name}: {key} is the study's own; set sweep.seeds, tune.factors or optim.lr instead"
                )
            if not options or len({str(option) for option in options}) != len(options):
                raise ConfigError(f"{name}: {key}={options} needs values, each once")
    for arm, overrides in study.arms.items():
        keys = [override.lstrip("+").partition("=")[0] for override in overrides]
        if clash := [key for key in keys if key in moved]:
            raise ConfigError(f"sweep.arms: {arm} sets {clash[0]}; the seeds are the study's own (sweep.seeds)")
        if tune.mode != "none" and "optim.lr" in keys and not tune.factors:
            raise ConfigError(f"sweep.arms: {arm} sets optim.lr and tune={tune.mode} chooses it")
    _check_starts(study, tune)
    if study.ladder is not None:
        _check_ladder(study, study.ladder, tune)
    if study.look_rule is not None and not study.looks:
        raise ConfigError(
            f"sweep.look_rule={study.look_rule} has no effect without sweep.looks, the numbers of pairs to look after"
        )
    if study.looks:
        n = len(seed_pairs(study.seeds))
        if sorted(set(study.looks)) != study.looks or study.looks[-1] > n:
            raise ConfigError(
                f"sweep.looks={study.looks}: numbers of pairs that rise, at most the {n} pairs of sweep.seeds"
            )
        if study.looks == [n]:
            raise ConfigError(
                f"sweep.looks={study.looks}: the study ends with its {n} pairs, so that a look there stops nothing: give smaller "
                "numbers, or leave it out"
            )


def _check_ladder(study: StudySettings, ladder: LadderSettings, tune: TuneSettings) -> None:
    for other, value in (
        ("sweep.starts", study.starts),
        ("sweep.looks", study.looks),
        ("tune=both", tune.mode == "both"),
    ):
        if value:
            raise ConfigError(f"sweep.ladder and {other} do not go together: leave one of them out")
    check_ladder(ladder)
    for name, overrides in study.arms.items():
        keys = [override.lstrip("+").partition("=")[0] for override in overrides]
        if clash := [key for key in keys if key in own_keys(ladder)]:
            raise ConfigError(f"sweep.arms: {name} sets {clash[0]}, which the rungs of sweep.ladder set")


def _check_starts(study: StudySettings, tune: TuneSettings) -> None:
    starts = study.starts or {}
    for other, value in (
        ("sweep.cross", study.cross),
        (f"tune={tune.mode}", tune.mode != "none"),
        ("sweep.looks", study.looks),
    ):
        if starts and value:
            raise ConfigError(
                f"sweep.starts and {other} do not go together: an arm starts from one finished run of its seeds"
            )
    for arm, parent in starts.items():
        for name in (arm, parent):
            if name not in study.arms:
                raise ConfigError(f"sweep.starts: there is no arm {name}; arms: {', '.join(study.arms)}")
        if any(override.lstrip("+").startswith("trainer.init_from=") for override in study.arms[arm]):
            raise ConfigError(
                f"sweep.starts: {arm} starts from {parent}, and its words set trainer.init_from: drop one of them"
            )
        generation(starts, arm)


def generation(starts: Mapping[str, str], arm: str) -> int:
    """Return how many arms must be trained before `arm` can start. Raises ConfigError for a cycle."""
    line = [arm]
    while (parent := starts.get(line[-1])) is not None:
        if parent in line:
            raise ConfigError(f"sweep.starts: {' waits for '.join([*line, parent])}")
        line.append(parent)
    return len(line) - 1


def expand_arms(study: StudySettings) -> list[Arm]:
    """Return every arm at every combination of ``sweep.cross``, in reading order. Raises ConfigError."""
    cross = {key: [value_text(value) for value in values] for key, values in (study.cross or {}).items()}
    arms = []
    for chosen in arranged({ARM: list(study.arms), **cross}, study.zip, study.skip):
        name = chosen.pop(ARM)
        label = ", ".join([name, *(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())])
        arms.append(Arm(label, (*study.arms[name], *(f"{key}={value}" for key, value in chosen.items()))))
    return arms


def combinations(tune: TuneSettings) -> list[tuple[str, ...]]:
    """Return the overrides of every combination of ``tune.cross``; one empty combination without it."""
    cross = tune.cross or {}
    return [
        tuple(f"{key}={value_text(value)}" for key, value in zip(cross, values, strict=True))
        for values in itertools.product(*cross.values())
    ]


def seed_pairs(seeds: SeedSettings) -> list[SeedPair]:
    """Return the seeds of weights and data order, in the order in which they are run. Raises ConfigError for duplicates."""
    values = list(range(seeds.values)) if isinstance(seeds.values, int) else seeds.values
    if len(set(values)) != len(values):
        raise ConfigError(f"sweep.seeds={values}: a seed stands there twice")
    match seeds.mode:
        case "paired":
            return [SeedPair(value, value) for value in values]
        case "init":
            return [SeedPair(value, HELD) for value in values]
        case "data":
            return [SeedPair(HELD, value) for value in values]
        case "crossed":
            return [SeedPair(a, b) for a, b in itertools.product(values, values)]
