"""From the configurations of a command to distinct jobs: data ready, identity known, duplicates merged."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate import access
from lmablate.axes import AXES, default_choices
from lmablate.branches import trunk_id
from lmablate.diagnostics.settings import is_complete, merge
from lmablate.errors import ConfigError
from lmablate.evaluations import lacks
from lmablate.identity import SCIENCE_VERSION, run_id
from lmablate.run import check_vocabulary, load_data, with_data
from lmablate.run_directory import RunDirectory, check_readable, check_writable

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData

log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass
class Job:
    """One run to be made; `asked` counts how many lines of the sweep ask for it."""

    cfg: RunConfig
    run_id: str
    label: str = ""  # what a person recognises the run by
    asked: int = 1
    other_overrides: list[list[str]] = field(default_factory=list)
    trunk: str | None = None  # runs with the same one train in one process, the longest first

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    @property
    def done(self) -> bool:
        """A finished run that lacks the diagnostics or the evaluation asked for is not done."""
        directory = self.directory
        return is_complete(directory, self.cfg) and not lacks(self.cfg, directory.path, directory.read_result())

    @property
    def row(self) -> dict[str, Any]:
        """The result of a job that is done."""
        result = self.directory.read_result()
        assert result is not None
        return result


def tell_solved(jobs: Sequence[Job]) -> None:
    """Say once in a command what a budget solved for each of its models."""
    for job in jobs:
        if job.cfg.solved is not None and job.cfg.solved not in _told:
            _told.add(job.cfg.solved)
            log.info("%s", job.cfg.solved)


def label_jobs(jobs: Sequence[Job]) -> None:
    """Name each job by what differs between them; a single one by what differs from the defaults."""
    defaults = default_choices()
    words = [_words(job.cfg) for job in jobs]
    varies = {key for key in {k for w in words for k in w} if len({w.get(key) for w in words}) > 1}
    if len(jobs) == 1:
        varies = {key for key, value in words[0].items() if defaults.get(key) != value}
    for job, word in zip(jobs, words, strict=True):
        shown = [value if key in AXES else f"{key}={value}" for key, value in word.items() if key in varies]
        job.label = " ".join(shown) or "defaults"


def _words(cfg: RunConfig) -> dict[str, str]:
    """Axis options first, then the other choices and the overrides of single keys, then the seeds."""
    asked = (word.lstrip("+").partition("=") for word in cfg.overrides)
    skipped = ("runtime.", "hydra.", "hydra/", "results_dir", "seed", "init_seed", "data_seed", "sweeps")
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


def prepare_jobs(configs: Sequence[RunConfig]) -> tuple[list[Job], dict[str, TokenData]]:
    """The distinct jobs of `configs` in order, and the data of each by run id.

    Text is read and tokenised once for each distinct source. Raises ConfigError before anything is trained.
    """
    from lmablate.evaluate.of_run import check_text

    unwritable = {folder: why for folder in {cfg.results_dir for cfg in configs} if (why := _unwritable(folder))}
    stores: dict[str, TokenData] = {}
    jobs: dict[str, Job] = {}
    data_of: dict[str, TokenData] = {}
    for cfg in configs:
        check_vocabulary(cfg, getattr(cfg.tokenizer, "vocab_size", None))
        tokenizer = cfg.tokenizer.model_dump() if cfg.tokenizer else None
        key = json.dumps(
            [cfg.data.model_dump(), tokenizer, cfg.model.context_length, cfg.runtime.cache_dir],
            sort_keys=True,
            default=str,
        )
        if key not in stores:
            stores[key] = load_data(cfg)
        data = stores[key]
        final = with_data(cfg, data)
        check_text(final, data)
        identity = run_id(final, data)
        if identity in jobs:
            jobs[identity].asked += 1
            jobs[identity].other_overrides.append(cfg.overrides)
            if (more := merge(jobs[identity].cfg, final)) is None:
                raise ConfigError(
                    f"run {identity} is asked for twice, with diagnostics that do not hold each other "
                    f"({' '.join(jobs[identity].cfg.overrides)}; {' '.join(cfg.overrides)}): ask for both at once"
                )
            jobs[identity].cfg = more
        else:
            jobs[identity], data_of[identity] = Job(final, identity), data
            jobs[identity].trunk = trunk_id(final, data) if final.branches else None
    from lmablate.compilation import resolve_compile
    from lmablate.config.limits import tell
    from lmablate.launcher.scheduler import slots

    made = list(jobs.values())
    if unwritable and (left := [job for job in made if not job.done and job.cfg.results_dir in unwritable]):
        raise unwritable[left[0].cfg.results_dir]
    label_jobs(made)
    tell_solved(made)
    tell([job.cfg for job in made])
    resolve_compile(made, slots(made))
    return made, data_of


def _unwritable(folder: str) -> ConfigError | None:
    """What keeps runs from being written to a results directory. One that can only be read, a colleague's perhaps, is good for
    runs that are done; any other is refused at once."""
    try:
        check_writable(folder)
    except ConfigError as error:
        if not Path(folder).is_dir():
            raise
        check_readable(Path(folder))
        return error
    return None


def closed(job: Job) -> str:
    """Why the folder of a job may not be entered, another user's perhaps, or ""."""
    path = job.directory.path
    return access.why_closed(path) if access.there(path) else ""


def stale(row: dict[str, Any]) -> bool:
    """Was this row made by code whose numbers have since changed?"""
    return row.get("science_version") != SCIENCE_VERSION
