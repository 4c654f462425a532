"""Make distinct jobs from the configurations of a command: data loaded, id known, duplicates merged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from lmablate.budget import flops_per_token
from lmablate.config.limits import log_notices
from lmablate.core import access
from lmablate.core.console import detail
from lmablate.core.errors import ConfigError
from lmablate.core.locks import FileLock, LockHeld
from lmablate.core.source_code import describe
from lmablate.data import TokenData
from lmablate.launcher.labels import label_jobs
from lmablate.runs.evaluate_run import check_text
from lmablate.runs.prepared import check_vocabulary, load_data, prepare_run
from lmablate.runs.result import epochs
from lmablate.runs.run_directory import RunDirectory, check_readable, check_writable
from lmablate.runs.state import RunState, state_of
from lmablate.runs.tracking.account import check_names
from lmablate.runs.wsd_branches import trunk_id
from lmablate.schema.diagnostics import merge
from lmablate.schema.result import RunResult
from lmablate.schema.run_config import RunConfig
from lmablate.training.checkpoint import newest_first

log = logging.getLogger(__name__)
_logged: set[str] = set()
_replaced: set[str] = set()
REPLACED = ".replaced"
MOST_EPOCHS = 4  # up to here repeated text is about as good as new


@dataclass
class Job:
    """A run to be made. `requests` counts the lines of the sweep that request it."""

    cfg: RunConfig
    run_id: str
    label: str = ""  # name shown to the user
    arm: str = ""  # label without seeds; a study names its arms itself
    requests: int = 1
    other_overrides: list[list[str]] = field(default_factory=list)
    epochs: float | None = None  # of the text, where it has an end
    trunk: str | None = None  # runs of one trunk train in one process, the longest first
    starts_others: bool = False  # other runs of the study start from its weights
    _state: RunState | None = None

    @cached_property
    def directory(self) -> RunDirectory:
        """Return the folder of the run."""
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    @property
    def done(self) -> bool:
        """Return whether nothing is left to do. A finished run that lacks requested diagnostics or an evaluation, or
        that is to be replaced, is not done."""
        return not self.to_replace and self.state.done

    @property
    def state(self) -> RunState:
        """Return the state of the run, read anew until it is done."""
        if self._state is None or not self._state.done:
            self._state = state_of(self.cfg, self.directory, self._state)
        return self._state

    @property
    def to_replace(self) -> bool:
        """Return whether the run is finished, to be trained anew (runtime.again, or weights that are needed are not there), and
        not yet put aside by this command."""
        if str(self.directory.path) in _replaced:
            return False
        return self.directory.is_done if self.cfg.runtime.again else self.lacks_weights

    @property
    def lacks_weights(self) -> bool:
        """Return whether only the row of a finished run is there, as from an archive, and other runs start from its weights, or an
        evaluation that needs them is not there either."""
        result, lacks = self.state.result, self.state.lacks
        needed = self.starts_others or "evaluation" in lacks
        return (
            needed
            and result is not None
            and result.status == "completed"
            and not newest_first(self.directory.checkpoint_dir)
        )

    @property
    def work(self) -> int:
        """Return the FLOPs of the whole run; 0 for a user's component that cannot be counted, which the run itself reports."""
        try:
            return flops_per_token(self.cfg) * self.cfg.tokens
        except Exception:
            return 0

    @property
    def row(self) -> RunResult:
        """Return the result of a job that is done."""
        result = self.state.result
        assert result is not None
        return result


def put_aside(jobs: Sequence[Job]) -> None:
    """Move runs that are to be trained anew to ``results_dir/.replaced``, once in a command. A run at work stays."""
    for job in jobs:
        if not job.to_replace:
            continue
        path = job.directory.path
        _replaced.add(str(path))
        try:
            lock = FileLock.acquire(job.directory.lock_path)
        except LockHeld:  # another process trains it at this moment
            continue
        try:
            folder = path.parent / REPLACED
            folder.mkdir(exist_ok=True)
            kept = folder / f"{path.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
            path.rename(kept)
        finally:
            lock.release()
        log.info("again   %s  %s: what was there is in %s", job.run_id, job.label, kept)


def log_solved(jobs: Sequence[Job]) -> None:
    """Log once in a command the sizes that a budget solved and the rates of a rule, with the arms they belong to."""
    arms: dict[tuple[int, str], list[str]] = {}
    for job in jobs:
        for level, message in ((logging.INFO, job.cfg.solved), (detail(), job.cfg.lr_from)):
            if message is not None:
                arms.setdefault((level, message), []).append(job.cfg.arm or job.arm)
    for (level, message), names in arms.items():
        if message not in _logged:
            _logged.add(message)
            whose = ", ".join(name for name in dict.fromkeys(names) if name)
            log.log(level, "%s%s", f"{whose}: " if whose else "", message)


def log_code(jobs: Sequence[Job]) -> None:
    """Log once in a command the components that are not as shipped, since they count in the run ids."""
    code = {module: digest for job in jobs for module, digest in (job.cfg.code or {}).items()}
    line = f"not as shipped, so part of the run id by content: {describe(code)}"
    if code and line not in _logged:
        _logged.add(line)
        log.info("%s", line)


def log_epochs(jobs: Sequence[Job], data: Mapping[str, TokenData]) -> None:
    """Log once in a command which texts are read more than once, and how often by the longest run."""
    longest: dict[str, Job] = {}
    for job in jobs:
        text = f"data={job.cfg.choices.get('data')}"
        if (job.epochs or 0.0) > max(1.0, longest[text].epochs or 0.0 if text in longest else 0.0):
            longest[text] = job
    for text, job in longest.items():
        assert job.epochs is not None
        times = f"{job.cfg.tokens / job.epochs:,.0f} training tokens {job.epochs:.2f} times ({job.cfg.tokens:,} tokens)"
        line = f"{text}: the longest run reads its {times}"
        much = job.epochs > MOST_EPOCHS
        if much:
            line += (
                f"; beyond {MOST_EPOCHS} times repeated text teaches less and less (Muennighoff et al. 2023, arXiv 2305.16264): "
                "train shorter, or give more text (data=both, data=files)"
            )
        if line not in _logged:
            _logged.add(line)
            log.log(logging.WARNING if much else detail(), "%s", line)


def prepare_jobs(configs: Sequence[RunConfig]) -> tuple[list[Job], dict[str, TokenData]]:
    """Return the distinct jobs of `configs` in order, and the data of each by run id. Each distinct text is read and
    tokenised once. Raises ConfigError before any training."""
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
            jobs[identity].requests += 1
            jobs[identity].other_overrides.append(cfg.overrides)
            if (more := merge(jobs[identity].cfg, final)) is None:
                raise ConfigError(
                    f"run {identity} is asked for twice, with diagnostics that do not hold each other "
                    f"({' '.join(jobs[identity].cfg.overrides)}; {' '.join(cfg.overrides)}): ask for both at once"
                )
            jobs[identity].cfg = more
        else:
            jobs[identity] = Job(final, identity, epochs=epochs(final.tokens, data))
            data_of[identity] = data
            jobs[identity].trunk = trunk_id(final, data) if final.branches else None

    made = list(jobs.values())
    if unwritable and (left := [job for job in made if not job.done and job.cfg.results_dir in unwritable]):
        raise unwritable[left[0].cfg.results_dir]
    label_jobs(made)
    log_solved(made)
    log_code(made)
    log_notices([job.cfg for job in made])
    log_epochs(made, data_of)
    return made, data_of


def _unwritable(folder: str) -> ConfigError | None:
    """Return the error of a results directory that can only be read, or None. Its finished runs may still be used.
    Raises ConfigError for a directory that cannot be read either."""
    try:
        check_writable(folder, keep=False)
    except ConfigError as error:
        if not Path(folder).is_dir():
            raise
        check_readable(Path(folder))
        return error
    return None


def closed(job: Job) -> str:
    """Return why the folder of a job may not be entered (another user's, for example), or ""."""
    path = job.directory.path
    return access.why_closed(path) if access.there(path) else ""
