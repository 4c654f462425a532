"""``hydra/launcher=submitit_slurm`` and ``=submitit_local``: runs as jobs of Slurm, or of submitit's own local executor.

On submitit's AutoExecutor. It pickles what is submitted: here a class of this module by its name, and strings. What it
pickles as a job's return value is never read; the run's own folder says what became of it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import NonNegativeInt, PositiveInt

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.launcher.engine import words_of
from lmablate.launcher.processes import environment_of
from lmablate.launcher.remote import RemoteProcess, Retries
from lmablate.launcher.scheduler import slots
from lmablate.launcher.task import Task

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job

FOLDER = ".submitit"  # in results_dir: submissions and the engine's own logs


class LocalSettings(Settings):
    """`at_once`: jobs at a time, since submitit's local executor starts whatever it is given."""

    at_once: PositiveInt | None
    timeout_min: PositiveInt
    retries: NonNegativeInt


class SlurmSettings(Settings):
    """Words of sbatch; null leaves the cluster's own. `array_parallelism`: tasks of a job array at a time.
    `signal_delay_s`: how long before the time limit a run is asked to write its checkpoint, and is then queued again, at
    most `max_num_timeout` times."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    timeout_min: PositiveInt
    cpus_per_task: PositiveInt | None
    gpus_per_node: NonNegativeInt | None
    mem_gb: PositiveInt | None
    array_parallelism: PositiveInt
    signal_delay_s: PositiveInt
    max_num_timeout: NonNegativeInt
    setup: list[str] | None
    additional_parameters: dict[str, str | int | bool] | None
    poll_seconds: PositiveInt
    retries: NonNegativeInt


SETTINGS: dict[str, type[Settings]] = {"submitit_local": LocalSettings, "submitit_slurm": SlurmSettings}


class Call:
    """What submitit calls in its process. It holds no state, so that its pickle is the name of this class."""

    task: Task | None = None

    def __call__(self, *words: str) -> int:
        """Run, and hand on what Slurm and submitit send. A run that was stopped leaves no return value behind: if the
        cluster queues it again, it must not look finished."""
        task = Task(words)
        type(self).task = task
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: _pass_on(task, n))
        code = task.run()
        if task.stopped:
            sys.exit(code if code > 0 else 128 - code)
        return code

    def checkpoint(self, *words: str) -> Any:
        """Called by submitit when the time limit is near, or on its own signal of preemption: the same words again."""
        from submitit.helpers import DelayedSubmission

        if self.task is not None and self.task.child is not None:
            self.task.stop()
        return DelayedSubmission(Call(), *words)


def _pass_on(task: Task, number: int) -> None:
    task.stopped = True
    task.send(number)


class SubmititEngine:
    """Hands jobs over as they come; those that come together become one job array."""

    def __init__(self, word: str, settings: LocalSettings | SlurmSettings) -> None:
        self.word, self.settings = word, settings
        self.retries = Retries(settings.retries)
        self.waiting: list[tuple[list[str], _Handle]] = []
        self.executor: Any = None

    @property
    def local(self) -> bool:
        return isinstance(self.settings, LocalSettings)

    def slots(self, jobs: Sequence[Job]) -> int:
        """Slurm gets all jobs at once and has its own queue; the local executor has none."""
        if isinstance(self.settings, SlurmSettings):
            return len(jobs)

        return min(self.settings.at_once or slots(jobs), len(jobs))

    def ready(self) -> bool:
        return True

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        return 0

    def start(self, jobs: Sequence[Job], slot: int) -> RemoteProcess:
        words = words_of(jobs)
        if self.local:
            words += ["--watch", str(os.getpid())]
            if (gpu := environment_of(jobs[0], slot).get("CUDA_VISIBLE_DEVICES")) is not None:
                words += ["--gpu", gpu]  # submitit would give every job the first one
        if self.executor is None:
            self.executor = self._executor(jobs[0])
        handle = _Handle(self.local)
        self.waiting.append((words, handle))
        return RemoteProcess(jobs, self.retries, handle.ended, handle.send)

    def stop(self) -> None:
        for _, handle in self.waiting:
            handle.dropped = True
        self.waiting.clear()

    def pause(self, seconds: float) -> None:
        if self.waiting:
            self._submit()
        time.sleep(self.settings.poll_seconds if isinstance(self.settings, SlurmSettings) else seconds)

    def _submit(self) -> None:
        """One command to Slurm for all that wait, as an array."""
        together, self.waiting = self.waiting, []
        with self.executor.batch():
            made = [self.executor.submit(Call(), *words) for words, _ in together]
        for job, (_, handle) in zip(made, together, strict=True):
            handle.job = job

    def _executor(self, job: Job) -> Any:
        import submitit

        folder = Path(job.cfg.results_dir).absolute() / FOLDER / "%j"
        s, runtime = self.settings, job.cfg.runtime
        gpus = 1 if runtime.device == "cuda" else 0
        if isinstance(s, LocalSettings):
            executor = submitit.AutoExecutor(folder=folder, cluster="local")
            executor.update_parameters(timeout_min=s.timeout_min)
            return executor
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=s.max_num_timeout)
        except RuntimeError as error:
            raise ConfigError(
                f"hydra/launcher={self.word}: this machine has no Slurm ({error}): start the sweep on a login node of the cluster, "
                "or use hydra/launcher=local or submitit_local"
            ) from error
        executor.update_parameters(
            name="lmablate",
            timeout_min=s.timeout_min,
            cpus_per_task=s.cpus_per_task or runtime.threads,
            gpus_per_node=s.gpus_per_node or (gpus if s.gpus_per_node is None else 0) or None,
            mem_gb=s.mem_gb,
            slurm_partition=s.partition,
            slurm_account=s.account,
            slurm_qos=s.qos,
            slurm_constraint=s.constraint,
            slurm_array_parallelism=s.array_parallelism,
            slurm_signal_delay_s=s.signal_delay_s,
            slurm_setup=s.setup,
            slurm_additional_parameters={"requeue": True, **(s.additional_parameters or {})},
        )
        return executor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class _Handle:
    """A submission: waiting to be sent, or in the engine's hands."""

    def __init__(self, local: bool) -> None:
        self.local = local
        self.job: Any = None
        self.dropped = False

    def ended(self) -> str | None:
        if self.dropped:
            return "it was not submitted"
        if self.job is None or not self.job.done():
            return None
        return f"job {self.job.job_id} ended ({self.job.state}); {self.job.paths.stderr} may say why"

    def send(self, number: int) -> None:
        if self.job is None:
            self.dropped = True
        elif self.local:  # the job's id is the process id of its controller, which hands SIGTERM on
            with suppress(ProcessLookupError):
                os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


def make(settings: LocalSettings | SlurmSettings) -> SubmititEngine:
    """The engine of these settings."""
    word = "submitit_local" if isinstance(settings, LocalSettings) else "submitit_slurm"
    return SubmititEngine(word, settings)
