"""The stored record of a search: the order of its trials, and the settings that this order depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.launcher.jobs import prepare_jobs
from lmablate.sweeper.optuna_space import Dimension, SearchSettings
from lmablate.sweeper.optuna_trials import FINAL, optuna_library

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.optuna_search import Search

SHOWN = ("number", "batch", "params", "words", "state", "value", "by_seed", "note", "rung", "runs")


def identity(base: RunConfig, settings: SearchSettings) -> dict[str, Any]:
    """Return the settings that the order of trials depends on; `base` is the command's run without the space."""
    (job,), _ = prepare_jobs([base])
    kept = settings.model_dump(include={"space", "sampler", "seed", "metric", "seeds", "halving"})
    versions = {"optuna": optuna_library(settings.sampler).__version__}
    return json.loads(json.dumps({"base": job.run_id, **kept, **versions}))


def within(params: Mapping[str, Any], space: Sequence[Dimension]) -> bool:
    """Return True if the settings of a recorded trial lie in the space."""
    return params.keys() == {one.key for one in space} and all(
        params[one.key] in one.choices
        if one.choices is not None
        else isinstance(params[one.key], int | float) and one.low <= params[one.key] <= one.high
        for one in space
    )


def content(search: Search) -> dict[str, Any]:
    """Return the content of ``RESULTS_DIR/studies/<name>.json``."""
    best, settings = search.best, search.settings
    trials = [{key: getattr(one, key) for key in SHOWN} for one in search.trials]
    done = len(search.trials) >= search.total and all(one.state in FINAL for one in search.trials)
    return {
        "schema_version": 1, "sweep": search.name, "question": search.question, "claims": [], "baseline": None, "arms": {},
        "stage": "done" if done else "search",
        "search": {
            "identity": search.identity, "fixed": list(search.fixed), "metric": settings.metric, "seeds": settings.seeds,
            # keep trials of an earlier command that this one has not reached yet
            "trials": [*trials, *(one for one in search.recorded if one["number"] >= len(trials))],
            "best": None if best is None else {"number": best.number, "words": list(best.words), "value": best.value},
        },
        "shared": None, "notes": [], "runs": list(search.uses.values()),
    }  # fmt: skip
