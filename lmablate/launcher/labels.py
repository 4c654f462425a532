"""Label runs, arms and grids for the user by the overrides that matter, in few characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmablate.core.axes import AXES, default_choices

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig

SEEDS = ("seed", "init_seed", "data_seed")
HOW = (
    "runtime.",
    "hydra.",
    "hydra/",
    "results_dir",
    "sweeps",
)  # keys that say how and where a run trains, not what it is
_PATH = re.compile(r"""[^\s,\[\]'"]*/[^\s,\[\]'"]*/([^/\s,\[\]'"]+/[^/\s,\[\]'"]+)""")


def label_jobs(jobs: Sequence[Job]) -> None:
    """Label each job by its differences from the others; a single one by its differences from the defaults."""
    settings = [_settings(job.cfg) for job in jobs]
    varies = {key for key in {k for s in settings for k in s} if len({s.get(key) for s in settings}) > 1}
    if len(jobs) == 1:
        defaults = {**default_choices(), "seed": "0"}
        own = settings[0].items()
        settings = [{key: value if key in jobs[0].cfg.choices else short_paths(value) for key, value in own}]
        varies = {key for key, value in settings[0].items() if defaults.get(key) != value}
    for job, values in zip(jobs, settings, strict=True):
        shown = {key: value if key in AXES else f"{key}={value}" for key, value in values.items() if key in varies}
        job.label = " ".join(shown.values()) or "defaults"
        job.arm = " ".join(value for key, value in shown.items() if key not in SEEDS)


def short_paths(value: str) -> str:
    """Return the value of an override with long paths cut to two parts: ``/home/me/texts/en/*.txt`` is ``.../en/*.txt``."""
    return _PATH.sub(r".../\1", value)


def of_overrides(overrides: Sequence[str]) -> str:
    """Return the label of a run of which only the overrides are known."""
    split = (override.lstrip("+").partition("=") for override in overrides)
    shown = (f"{key}{equals}{short_paths(value)}" for key, equals, value in split if not key.startswith(HOW))
    return " ".join(text for text in shown if text != "seed=0") or "defaults"


def of_grid(runs: Sequence[Sequence[str]]) -> str:
    """Return the overrides in which a grid's runs differ, as on its command line: ``norm=rms,layer seed=0,1``."""
    values: dict[str, dict[str, None]] = {}
    for overrides in runs:
        last = dict(override.lstrip("+").partition("=")[::2] for override in overrides)  # a repeated key: the last wins
        for key, value in last.items():
            if not key.startswith(HOW):
                values.setdefault(key, {})[value] = None
    differ = {key: options for key, options in values.items() if len(options) > 1}
    return " ".join(f"{key}={','.join(map(short_paths, options))}" for key, options in differ.items())


def _settings(cfg: RunConfig) -> dict[str, str]:
    """Return the settings of a run: axis options first, then other choices and single keys, then the seeds."""
    overrides = (override.lstrip("+").partition("=") for override in cfg.overrides)
    skipped = (*HOW, *SEEDS)
    single = {key: value for key, _, value in overrides if not key.startswith(skipped) and key not in cfg.choices}
    seeds = (
        {"seed": str(cfg.seed)}
        if cfg.seed is not None
        else {"init_seed": str(cfg.init_seed), "data_seed": str(cfg.data_seed)}
    )
    given = {override.partition("=")[0] for override in cfg.overrides}
    axes = [axis for axis in AXES if "preset" not in cfg.choices or axis in given]  # a preset stands for its axes
    order = [*axes, *(group for group in cfg.choices if group not in AXES)]
    return {**{group: cfg.choices[group] for group in order if group in cfg.choices}, **single, **seeds}
