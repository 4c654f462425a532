"""From the configurations of a command to distinct jobs: data ready, identity known, duplicates merged."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.budget import flops_per_token
from lmablate.config.limits import log_notices
from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.locks import FileLock, Held
from lmablate.core.source_code import describe
from lmablate.launcher.labels import label_jobs
from lmablate.runs.evaluate_run import check_text
from lmablate.runs.prepared import check_vocabulary, load_data, prepare_run
from lmablate.runs.run_directory import RunDirectory, check_readable, check_writable
from lmablate.runs.state import RunState, state_of
from lmablate.runs.tracking.account import check_names
from lmablate.runs.wsd_branches import trunk_id
from lmablate.schema.diagnostics import merge

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
_told: set[str] = set()
_replaced: set[str] = set()
REPLACED = ".replaced"


@dataclass
class Job:
    """One run to be made; `asked` counts how many lines of the sweep ask for it."""

    cfg: RunConfig
    run_id: str
    label: str = ""  # what a person recognises the run by
    arm: str = ""  # the same without its seeds; a study names its arms itself
    asked: int = 1
    other_overrides: list[list[str]] = field(default_factory=list)
    trunk: str | None = None  # runs with the same one train in one process, the longest first
    _state: RunState | None = None

    @cached_property
    def directory(self) -> RunDirectory:
        """The folder of the run."""
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    @property
    def done(self) -> bool:
        """A finished run that lacks the diagnostics or the evaluation asked for is not done, nor one that is to be trained again."""
        return not self.to_replace and self.state.done

    @property
    def state(self) -> RunState:
        """What the run has and lacks; what is done stays done, and is not looked at again."""
        if self._state is None or not self._state.done:
            self._state = state_of(self.cfg, self.directory, self._state)
        return self._state

    @property
    def to_replace(self) -> bool:
        """A finished run that its command trains anew (runtime.again), and has not yet put aside."""
        return bool(self.cfg.runtime.again) and str(self.directory.path) not in _replaced and self.directory.is_done

    @property
    def work(self) -> int:
        """FLOPs of the whole run; 0 for a part of the user's own that cannot be counted: its run will say so, and harm no other."""

        try:
            return flops_per_token(self.cfg) * self.cfg.tokens
        except Exception:
            return 0

    @property
    def row(self) -> RunResult:
        """The result of a job that is done."""
        result = self.state.result
        assert result is not None
        return result


def put_aside(jobs: Sequence[Job]) -> None:
    """Move what is to be trained anew to ``results_dir/.replaced``, each once in a command. A run that somebody works on stays."""
    for job in jobs:
        if not job.to_replace:
            continue
        path = job.directory.path
        _replaced.add(str(path))
        try:
            lock = FileLock.take(job.directory.lock_path)
        except Held:  # it is trained anew at this moment
            continue
        try:
            folder = path.parent / REPLACED
            folder.mkdir(exist_ok=True)
            kept = folder / f"{path.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
            path.rename(kept)
        finally:
            lock.release()
        log.info("again   %s  %s: what was there is in %s", job.run_id, job.label, kept)


def tell_solved(jobs: Sequence[Job]) -> None:
    """Say once in a command what a budget solved for each of its models, and which arms that is."""
    arms: dict[str, list[str]] = {}
    for job in jobs:
        if job.cfg.solved is not None:
            arms.setdefault(job.cfg.solved, []).append(job.cfg.arm or job.arm)
    for solved, names in arms.items():
        if solved not in _told:
            _told.add(solved)
            whose = ", ".join(name for name in dict.fromkeys(names) if name)
            log.info("%s%s", f"{whose}: " if whose else "", solved)


def tell_code(jobs: Sequence[Job]) -> None:
    """Say once in a command which parts of its runs are not as shipped, since they count in the runs' ids."""
    code = {module: said for job in jobs for module, said in (job.cfg.code or {}).items()}
    line = f"not as shipped, so part of the run id by content: {describe(code)}"
    if code and line not in _told:
        _told.add(line)
        log.info("%s", line)


def prepare_jobs(configs: Sequence[RunConfig]) -> tuple[list[Job], dict[str, TokenData]]:
    """The distinct jobs of `configs` in order, and the data of each by run id.

    Text is read and tokenised once for each distinct source. Raises ConfigError before anything is trained.
    """

    unwritable = {folder: why for folder in {cfg.results_dir for cfg in configs} if (why := _unwritable(folder))}
    stores: dict[str, TokenData] = {}
    jobs: dict[str, Job] = {}
    data_of: dict[str, TokenData] = {}
    for cfg in configs:
        if cfg.runtime.wandb != "disabled":
            check_names(cfg.runtime.wandb_project, cfg.sweep)
        check_vocabulary(cfg, getattr(cfg.tokenizer, "vocab_size", None))
        tokenizer = cfg.tokenizer.model_dump() if cfg.tokenizer else None
        key = json.dumps(
            [cfg.data.model_dump(), tokenizer, cfg.model.context_length, cfg.runtime.cache_dir],
            sort_keys=True,
            default=str,
        )
        if key not in stores:
            stores[key] = load_data(cfg)
        run = prepare_run(cfg, stores[key])
        final, data, identity = run.cfg, run.data, run.run_id
        check_text(final, data)
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

    made = list(jobs.values())
    if unwritable and (left := [job for job in made if not job.done and job.cfg.results_dir in unwritable]):
        raise unwritable[left[0].cfg.results_dir]
    label_jobs(made)
    tell_solved(made)
    tell_code(made)
    log_notices([job.cfg for job in made])
    return made, data_of


def _unwritable(folder: str) -> ConfigError | None:
    """What keeps runs from being written to a results directory. One that can only be read, a colleague's perhaps, is good for
    runs that are done; any other is refused at once."""
    try:
        check_writable(folder, keep=False)
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
