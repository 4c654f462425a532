"""Commands that train runs again, ready to paste, and those that add seeds.

In the folder of the results they only train what is missing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.results.arms import is_missing, keys
from lmablate.schema.sweeps import stored_sweep

if TYPE_CHECKING:
    import pandas as pd

Overrides = tuple[str, ...]
TRAIN = ("lmablate", "train")
FEW = 8  # seeds that a command names one by one
DEFAULT = "results"  # the results_dir of conf/config.yaml


def command(overrides: Any) -> str:
    """Return the command that trains a run again."""
    return shlex.join([*TRAIN, *(() if is_missing(overrides) else overrides)])


def commands(runs: pd.DataFrame, results_dir: str | Path = DEFAULT, sized: Collection[str] = ()) -> list[str]:
    """Return the commands that train all of `runs` again in `results_dir`.

    There is one for each stored sweep, and a grid for the other runs if they form one. `sized`: keys that a ladder sets itself."""
    found = _sweep_overrides(runs, sized)
    return [shlex.join([*TRAIN, *overrides, *_location(results_dir)]) for overrides, _ in found]


def with_more_seeds(
    runs: pd.DataFrame, more: int, results_dir: str | Path = DEFAULT, sized: Collection[str] = ()
) -> str:
    """Return the command that adds `more` seeds to the evaluation of `runs`, which are of one sweep or of none.

    Empty if no single command does it."""
    seeds = _seeds(runs)
    sweeps = list(_sweep_overrides(runs, sized))
    if len(sweeps) != 1 or not seeds:
        return ""
    ((overrides, study),) = sweeps
    fresh = (seed for seed in range(seeds[-1] + more + 1) if seed not in seeds)
    wanted = sorted([*seeds, *(next(fresh) for _ in range(more))])
    key = "sweep.seeds.values" if study else "seed"
    value = f"[{','.join(map(str, wanted))}]" if study else ",".join(map(str, wanted))
    if wanted == list(range(len(wanted))):
        value = str(len(wanted)) if study else value if len(wanted) <= FEW else f"range({len(wanted)})"
    kept = [override for override in overrides if not override.startswith(f"{key}=")]
    return shlex.join([*TRAIN, *kept, f"{key}={value}", *_location(results_dir)])


def _sweep_overrides(runs: pd.DataFrame, sized: Collection[str]) -> Iterator[tuple[list[str], bool]]:
    """Yield the overrides of each sweep's command, without results_dir, and True if it is a tuned study."""
    names = keys(runs, "sweep")
    for name in dict.fromkeys(names):
        rows = runs[[one == name for one in names]]
        per_run = [() if is_missing(item) else _science(item) for item in rows.get("provenance.overrides", ())]
        if name is None:
            if grid := _grid(per_run):
                yield ["-m", *grid, *_common(per_run)], False
            continue
        sweep = stored_sweep(str(name))
        # A run that another sweep trained first carries the overrides of that one.
        own = [run for run in per_run if f"sweeps={sweep}" in run] or per_run
        study = "stage" in rows and bool(rows["stage"].notna().any())
        own = [_given(run) for run in own] if study else own
        kept = (one for one in _common(own) if one.lstrip("+").partition("=")[0] not in ("sweeps", *sized))
        yield [f"sweeps={sweep}", *kept], study


def _science(overrides: Sequence[str]) -> Overrides:
    return tuple(str(override) for override in overrides if not str(override).startswith("results_dir="))


def _given(overrides: Overrides) -> Overrides:
    """Return the overrides of a study's run without those that the study itself appends: the rate and all after it."""
    rates = [i for i, override in enumerate(overrides) if override.startswith("optim.lr=")]
    return overrides[: rates[-1]] if rates else overrides


def _common(per_run: Sequence[Overrides]) -> list[str]:
    return [one for one in (per_run[0] if per_run else ()) if all(one in other for other in per_run)]


def _grid(per_run: Sequence[Overrides]) -> list[str]:
    """Return ``key=a,b`` for every override that varies, if the runs are all combinations of them; else nothing."""
    settings = [dict(override.partition("=")[::2] for override in run) for run in per_run]
    names = [name for name in (settings[0] if settings else {}) if len({run.get(name) for run in settings}) > 1]
    options = {name: list(dict.fromkeys(str(run.get(name)) for run in settings)) for name in names}
    whole = math.prod(map(len, options.values())) == len(settings) > 1 and all(
        run.keys() == settings[0].keys() for run in settings
    )
    plain = not any("," in value for values in options.values() for value in values)
    return [f"{name}={','.join(sorted(values))}" for name, values in options.items()] if whole and plain else []


def _location(results_dir: str | Path) -> list[str]:
    """Return ``results_dir=...`` in Hydra's grammar, unless it is the default."""
    folder = Path(results_dir).as_posix()
    if folder == DEFAULT:
        return []
    plain = re.fullmatch(r"[\w./:@+-]+", folder, flags=re.ASCII)
    return [f"results_dir={folder}" if plain else "results_dir='" + folder.replace("'", "\\'") + "'"]


def _seeds(runs: pd.DataFrame) -> list[int]:
    """Return the seeds of runs whose weights and data share theirs; empty if a run has two."""
    pairs = set(zip(keys(runs, "init_seed"), keys(runs, "data_seed"), strict=True))
    known = [int(init) for init, data in pairs if init is not None and init == data]  # type: ignore[call-overload]
    return sorted(known) if len(known) == len(pairs) else []
