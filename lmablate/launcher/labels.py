"""What a person recognises a run, an arm or a grid by: the overrides that matter, in few characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmablate.core.axes import AXES, default_choices

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig

SEEDS = ("seed", "init_seed", "data_seed")
HOW = ("runtime.", "hydra.", "hydra/", "results_dir", "sweeps")  # keys that say how and where, and not what
_PATH = re.compile(r"""[^\s,\[\]'"]*/[^\s,\[\]'"]*/([^/\s,\[\]'"]+/[^/\s,\[\]'"]+)""")


def label_jobs(jobs: Sequence[Job]) -> None:
    """Name each job by what differs between them; a single one by what differs from the defaults."""
    words = [_words(job.cfg) for job in jobs]
    varies = {key for key in {k for w in words for k in w} if len({w.get(key) for w in words}) > 1}
    if len(jobs) == 1:
        defaults = {**default_choices(), "seed": "0"}
        words = [{key: value if key in jobs[0].cfg.choices else short_paths(value) for key, value in words[0].items()}]
        varies = {key for key, value in words[0].items() if defaults.get(key) != value}
    for job, word in zip(jobs, words, strict=True):
        shown = {key: value if key in AXES else f"{key}={value}" for key, value in word.items() if key in varies}
        job.label = " ".join(shown.values()) or "defaults"
        job.arm = " ".join(value for key, value in shown.items() if key not in SEEDS)


def short_paths(value: str) -> str:
    """The last two parts of every long path in the value of an override: ``/home/me/texts/en/*.txt`` is ``.../en/*.txt``."""
    return _PATH.sub(r".../\1", value)


def of_overrides(overrides: Sequence[str]) -> str:
    """The label of a run of which only its overrides are known."""
    shown = (word.lstrip("+").partition("=") for word in overrides)
    said = (f"{key}{equals}{short_paths(value)}" for key, equals, value in shown if not key.startswith(HOW))
    return " ".join(word for word in said if word != "seed=0") or "defaults"


def of_grid(runs: Sequence[Sequence[str]]) -> str:
    """The overrides that a grid's runs differ in, as on its command line: ``norm=rms,layer seed=0,1``."""
    values: dict[str, dict[str, None]] = {}
    for words in runs:
        last = dict(word.lstrip("+").partition("=")[::2] for word in words)  # of a key that is given twice
        for key, value in last.items():
            if not key.startswith(HOW):
                values.setdefault(key, {})[value] = None
    differ = {key: options for key, options in values.items() if len(options) > 1}
    return " ".join(f"{key}={','.join(map(short_paths, options))}" for key, options in differ.items())


def _words(cfg: RunConfig) -> dict[str, str]:
    """Axis options first, then the other choices and the overrides of single keys, then the seeds."""
    asked = (word.lstrip("+").partition("=") for word in cfg.overrides)
    skipped = (*HOW, *SEEDS)
    single = {key: value for key, _, value in asked if not key.startswith(skipped) and key not in cfg.choices}
    seeds = (
        {"seed": str(cfg.seed)}
        if cfg.seed is not None
        else {"init_seed": str(cfg.init_seed), "data_seed": str(cfg.data_seed)}
    )
    given = {word.partition("=")[0] for word in cfg.overrides}
    axes = [axis for axis in AXES if "preset" not in cfg.choices or axis in given]  # a preset stands for its axes
    order = [*axes, *(group for group in cfg.choices if group not in AXES)]
    return {**{group: cfg.choices[group] for group in order if group in cfg.choices}, **single, **seeds}
