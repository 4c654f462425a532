"""The rungs of a ladder study: the sizes that are asked for, and the widths and depths that make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, FiniteFloat, PositiveInt

from lmablate.budget import parameters
from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.schema.run_config import RunConfig
from lmablate.schema.training_config import LENGTHS

FEWEST = 3  # rungs that show the bend of a law
NEAR = 0.2  # a rung may miss its parameters by so much
NEAR_RATIO = 0.3  # and its d_model / n_layers by so much
PER_LAYER = 12  # weights of a block over d_model squared: attention 4, feed-forward 8
Positive = Annotated[FiniteFloat, Field(gt=0)]
Compose = Callable[[Sequence[str]], RunConfig]  # of the baseline


class LadderSettings(Settings):
    """The node ``sweep.ladder`` of a study (conf/ladder). `params` or `rungs` are fitted; `held_out` is forecast from them."""

    params: list[PositiveInt] | None = None
    rungs: dict[str, list[str]] | None = None
    held_out: PositiveInt | str | None = None
    n_layers: PositiveInt | None = None
    ratio: Positive | None = None
    tokens_per_param: Positive
    tune_at: PositiveInt | str | None = None


class Rung(NamedTuple):
    """A size of a ladder: its `name`, its `overrides`, the non-embedding parameters of the baseline, and if it is held out."""

    name: str
    overrides: tuple[str, ...]
    params: int
    held_out: bool


def check_ladder(ladder: LadderSettings) -> None:
    """Raise ConfigError for settings of a ladder that contradict each other, before anything is composed."""
    if (ladder.params is None) == (ladder.rungs is None):
        got = "neither" if ladder.params is None else "both"
        raise ConfigError(
            f"sweep.ladder: give params (sizes) or rungs (overrides by name), not {got}; ladder=laptop has good ones"
        )
    names = list(map(_name, ladder.params)) if ladder.params is not None else list(ladder.rungs or ())
    if ladder.params is not None:
        if (ladder.n_layers is None) == (ladder.ratio is None):
            got = "neither" if ladder.n_layers is None else "both"
            raise ConfigError(f"sweep.ladder: params need n_layers or ratio (d_model / n_layers), not {got}")
        sizes = [*ladder.params, *([ladder.held_out] if isinstance(ladder.held_out, int) else [])]
        if sorted(set(sizes)) != sizes:
            raise ConfigError(f"sweep.ladder: params={ladder.params} and held_out={ladder.held_out} must rise")
        if isinstance(ladder.held_out, str):
            raise ConfigError(f"sweep.ladder.held_out={ladder.held_out}: give its params, such as {2 * sizes[-1]}")
    elif ladder.held_out is not None and ladder.held_out not in names:
        raise ConfigError(f"sweep.ladder.held_out={ladder.held_out}: names one of the rungs, {', '.join(names)}")
    else:
        names = [name for name in names if name != ladder.held_out]
    if len(names) < FEWEST:
        raise ConfigError(
            f"sweep.ladder has {len(names)} rungs besides the one held out: a law needs {FEWEST} or more; add params, or set "
            "held_out=null"
        )
    if ladder.tune_at is not None and _name(ladder.tune_at) not in names:
        raise ConfigError(f"sweep.ladder.tune_at={ladder.tune_at}: names one of the fitted rungs, {', '.join(names)}")
    for name, overrides in (ladder.rungs or {}).items():
        if taken := [key for key in _keys(overrides) if key in LENGTHS]:
            raise ConfigError(f"sweep.ladder.rungs: {name} sets {taken[0]}; use sweep.ladder.tokens_per_param")


def tuned_at(ladder: LadderSettings, rungs: Sequence[Rung]) -> Rung:
    """Return the rung at which learning rates are tuned: by default the one below the largest fitted one."""
    fitted = [rung for rung in rungs if not rung.held_out]
    return fitted[-2] if ladder.tune_at is None else next(r for r in fitted if r.name == _name(ladder.tune_at))


def rungs_of(ladder: LadderSettings, compose: Compose) -> list[Rung]:
    """Return the rungs of a ladder, smallest first. Raises ConfigError for a size that no whole numbers reach."""
    length = f"trainer.tokens_per_param={ladder.tokens_per_param:g}"
    if ladder.rungs is not None:
        out = [
            Rung(name, (*own, length), _params(compose, (*own, length)), name == ladder.held_out)
            for name, own in ladder.rungs.items()
        ]
    else:
        held = [ladder.held_out] if isinstance(ladder.held_out, int) else []
        heads = compose((length,)).model.n_heads
        out = [_solved(ladder, size, length, compose, heads, size in held) for size in (*(ladder.params or ()), *held)]
    ordered = sorted(out, key=lambda rung: rung.params)
    if ordered != out or len({rung.params for rung in out}) < len(out):
        shown = ", ".join(f"{rung.name} has {rung.params:,}" for rung in out)
        raise ConfigError(f"sweep.ladder: rungs go from the smallest to the largest, and {shown}")
    if any(rung.held_out for rung in out[:-1]):
        raise ConfigError("sweep.ladder.held_out: must be the largest rung, which the others forecast")
    return out


def _solved(ladder: LadderSettings, size: int, length: str, compose: Compose, heads: int, held_out: bool) -> Rung:
    """Return the rung whose baseline comes nearest to `size` parameters."""
    step = 2 * heads  # a rotation turns pairs of a head's dimensions
    best: Rung | None = None
    for depth in [ladder.n_layers] if ladder.n_layers else _depths(size, ladder.ratio or 1.0):
        for width in _widths(size, depth, step):
            if ladder.ratio and abs(math.log(width / depth / ladder.ratio)) > math.log1p(NEAR_RATIO):
                continue
            own = (f"model.d_model={width}", f"model.n_layers={depth}", length)
            found = Rung(_name(size), own, _params(compose, own), held_out)
            if best is None or abs(math.log(found.params / size)) < abs(math.log(best.params / size)):
                best = found
    if best is None or abs(best.params / size - 1) > NEAR:
        near = f"the nearest has {best.params:,}" if best else f"none has d_model / n_layers near {ladder.ratio:g}"
        raise ConfigError(
            f"sweep.ladder: no whole width and depth make {size:,} parameters with {heads} heads (model.n_heads): {near}; give "
            "other params, n_layers or model.n_heads"
        )
    return best


def _depths(size: int, ratio: float) -> list[int]:
    exact = (size / PER_LAYER / ratio**2) ** (1 / 3)
    return [depth for depth in (math.floor(exact), math.ceil(exact)) if depth > 0]


def _widths(size: int, depth: int, step: int) -> list[int]:
    exact = math.sqrt(size / PER_LAYER / depth) / step
    return sorted({step * max(1, n) for n in (math.floor(exact), math.ceil(exact))})


def _params(compose: Compose, overrides: Sequence[str]) -> int:
    return parameters(compose(overrides)).active_non_embedding


def _name(size: int | str) -> str:
    """Return the name of a rung: ``50k``, ``1.2M``."""
    if isinstance(size, str):
        return size
    return f"{size / 1e6:.4g}M" if size >= 1_000_000 else f"{size / 1e3:.4g}k"


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.lstrip("+").partition("=")[0] for override in overrides]


def own_keys(ladder: LadderSettings) -> set[str]:
    """Return the keys that the rungs set, which neither arms nor a command line may."""
    sizes = {"model.d_model", "model.n_layers"} if ladder.params is not None else set()
    return {*LENGTHS, *sizes, *(key for own in (ladder.rungs or {}).values() for key in _keys(own))}
