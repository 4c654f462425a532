"""Commands that make runs again, ready to paste, and those that add seeds. Where the results lie they train only what is missing."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.results.arms import is_missing, keys
from lmablate.schema.sweeps import stored_sweep

if TYPE_CHECKING:
    import pandas as pd

Words = tuple[str, ...]
TRAIN = ("python", "-m", "lmablate.train")
DEFAULT = "results"  # the results_dir of conf/config.yaml


def command(overrides: Any) -> str:
    """The command that makes a run again."""
    return shlex.join([*TRAIN, *(() if is_missing(overrides) else overrides)])


def commands(runs: pd.DataFrame, results_dir: str | Path = DEFAULT) -> list[str]:
    """Commands that make all of `runs` again in `results_dir`: one for each stored sweep, and a grid for the others where
    they are one."""
    return [shlex.join([*TRAIN, *words, *_place(results_dir)]) for words, _ in _asked(runs)]


def with_more_seeds(runs: pd.DataFrame, more: int, results_dir: str | Path = DEFAULT) -> str:
    """The command that adds `more` seeds to the evaluation of `runs`, which are of one sweep or of none; "" where no single
    command does."""
    seeds = _seeds(runs)
    found = list(_asked(runs))
    if len(found) != 1 or not seeds:
        return ""
    ((words, study),) = found
    fresh = (seed for seed in range(seeds[-1] + more + 1) if seed not in seeds)
    wanted = sorted([*seeds, *(next(fresh) for _ in range(more))])
    key = "sweep.seeds.values" if study else "seed"
    counted = study and wanted == list(range(len(wanted)))
    value = str(len(wanted)) if counted else f"[{','.join(map(str, wanted))}]" if study else ",".join(map(str, wanted))
    kept = [word for word in words if not word.startswith(f"{key}=")]
    return shlex.join([*TRAIN, *kept, f"{key}={value}", *_place(results_dir)])


def _asked(runs: pd.DataFrame) -> Iterator[tuple[list[str], bool]]:
    """The overrides of the command behind each sweep of `runs`, without results_dir, and whether it is a tuned study."""

    names = keys(runs, "sweep")
    for name in dict.fromkeys(names):
        rows = runs[[one == name for one in names]]
        words = [() if is_missing(item) else _science(item) for item in rows.get("provenance.overrides", ())]
        if name is None:
            if grid := _grid(words):
                yield ["-m", *grid, *_common(words)], False
            continue
        sweep = stored_sweep(str(name))
        # A run that another sweep trained first carries the overrides of that one.
        own = [run for run in words if f"sweeps={sweep}" in run] or words
        study = "stage" in rows and bool(rows["stage"].notna().any())
        own = [_typed(run) for run in own] if study else own
        yield [f"sweeps={sweep}", *(word for word in _common(own) if not word.startswith("sweeps="))], study


def _science(overrides: Sequence[str]) -> Words:
    return tuple(str(word) for word in overrides if not str(word).startswith("results_dir="))


def _typed(words: Words) -> Words:
    """The overrides of a study's run without what the study itself adds at their end: the rate, and what follows it."""
    rates = [i for i, word in enumerate(words) if word.startswith("optim.lr=")]
    return words[: rates[-1]] if rates else words


def _common(words: Sequence[Words]) -> list[str]:
    return [word for word in (words[0] if words else ()) if all(word in other for other in words)]


def _grid(words: Sequence[Words]) -> list[str]:
    """``key=a,b`` for every override that varies, if the runs are all combinations of them; otherwise nothing."""
    settings = [dict(word.partition("=")[::2] for word in run) for run in words]
    names = [name for name in (settings[0] if settings else {}) if len({run.get(name) for run in settings}) > 1]
    options = {name: list(dict.fromkeys(str(run.get(name)) for run in settings)) for name in names}
    whole = math.prod(map(len, options.values())) == len(settings) > 1 and all(
        run.keys() == settings[0].keys() for run in settings
    )
    plain = not any("," in value for values in options.values() for value in values)
    return [f"{name}={','.join(sorted(values))}" for name, values in options.items()] if whole and plain else []


def _place(results_dir: str | Path) -> list[str]:
    """``results_dir=...`` as Hydra reads it, where it is not the default."""
    folder = Path(results_dir).as_posix()
    if folder == DEFAULT:
        return []
    plain = re.fullmatch(r"[\w./:@+-]+", folder, flags=re.ASCII)
    return [f"results_dir={folder}" if plain else "results_dir='" + folder.replace("'", "\\'") + "'"]


def _seeds(runs: pd.DataFrame) -> list[int]:
    """The seeds of runs whose weights and data share theirs; none where a run has two."""
    pairs = set(zip(keys(runs, "init_seed"), keys(runs, "data_seed"), strict=True))
    known = [int(init) for init, data in pairs if init is not None and init == data]  # type: ignore[call-overload]
    return sorted(known) if len(known) == len(pairs) else []
