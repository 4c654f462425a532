"""Run jobs through submitit: on Slurm (``hydra/launcher=submitit_slurm``), or in its local executor
(``submitit_local``).

This uses submitit's AutoExecutor, which pickles what is submitted: here a class of this module by name, and strings.
The pickled return value of a job is never read; the run's folder holds its outcome.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import NonNegativeInt, PositiveInt

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.launcher.engine import Engine, task_arguments
from lmablate.launcher.jobs import Job
from lmablate.launcher.processes import environment_of
from lmablate.launcher.remote import RemoteProcess, Retries
from lmablate.launcher.scheduler import slot_count
from lmablate.launcher.task import Task

FOLDER = ".submitit"  # in results_dir: submissions and logs of submitit


class LocalSettings(Settings):
    """Settings of ``hydra.launcher``. `at_once`: jobs at a time, since submitit's local executor starts all it is given."""

    at_once: PositiveInt | None
    timeout_min: PositiveInt
    retries: NonNegativeInt


class SlurmSettings(Settings):
    """Settings of ``hydra.launcher`` as sbatch options; null keeps the cluster's own. `array_parallelism`: tasks of a
    job array at a time. `signal_delay_s`: seconds before the time limit at which a run is stopped with a checkpoint and
    requeued, at most `max_num_timeout` times."""

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
    """The callable that submitit runs in its process. It holds no state, so that its pickle is the name of this class."""

    task: Task | None = None

    def __call__(self, *arguments: str) -> int:
        """Run a task, and forward the signals of Slurm and submitit. Returns its exit code. A stopped run exits without
        a return value, so that it does not look finished if the cluster requeues it."""
        task = Task(arguments)
        type(self).task = task
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: _pass_on(task, n))
        code = task.run()
        if task.stopped:
            sys.exit(code if code > 0 else 128 - code)
        return code

    def checkpoint(self, *arguments: str) -> Any:
        """Stop the run and resubmit the same arguments. submitit calls this near the time limit, or on its preemption signal."""
        from submitit.helpers import DelayedSubmission

        if self.task is not None and self.task.child is not None:
            self.task.stop()
        return DelayedSubmission(Call(), *arguments)


def _pass_on(task: Task, number: int) -> None:
    task.stopped = True
    task.send(number)


class SubmititEngine(Engine):
    """An engine that submits jobs as they come; those that come together become one job array."""

    def __init__(self, settings: LocalSettings | SlurmSettings) -> None:
        self.settings = settings
        self.retries = Retries(settings.retries)
        self.waiting: list[tuple[list[str], _Handle]] = []
        self.executor: Any = None

    @property
    def local(self) -> bool:
        return isinstance(self.settings, LocalSettings)

    def slots(self, jobs: Sequence[Job]) -> int:
        """Return all jobs for Slurm, which has its own queue; the local executor has none."""
        if isinstance(self.settings, SlurmSettings):
            return len(jobs)

        return min(self.settings.at_once or slot_count(jobs), len(jobs))

    def start(self, jobs: Sequence[Job], slot: int) -> RemoteProcess:
        arguments = task_arguments(jobs)
        if self.local:
            arguments += ["--watch", str(os.getpid())]
            if (gpu := environment_of(jobs[0], slot).get("CUDA_VISIBLE_DEVICES")) is not None:
                arguments += ["--gpu", gpu]  # submitit would give every job the first one
        if self.executor is None:
            self.executor = self._executor(jobs[0])
        handle = _Handle(self.local)
        self.waiting.append((arguments, handle))
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
        """Submit all waiting jobs in one command, as an array."""
        together, self.waiting = self.waiting, []
        with self.executor.batch():
            submitted = [self.executor.submit(Call(), *arguments) for arguments, _ in together]
        for job, (_, handle) in zip(submitted, together, strict=True):
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
                f"hydra/launcher=submitit_slurm: this machine has no Slurm ({error}): start the sweep on a login node of the cluster, "
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
    """A submission: waiting, or submitted."""

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
        elif self.local:  # the job's id is the process id of its controller, which forwards SIGTERM
            with suppress(ProcessLookupError):
                os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


make = SubmititEngine
