"""Run jobs as tasks of a Ray cluster (``hydra/launcher=ray``), a running one or one of this command's own.

A task is a function of this module, sent by name, with strings; it returns an exit code. Ray's own retries are off,
since they are silent: a run whose worker was lost is started again here, and continues from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lmablate.core.errors import ConfigError
from lmablate.core.hardware import cores
from lmablate.core.settings import Settings
from lmablate.launcher.engine import Engine, task_arguments
from lmablate.launcher.remote import RemoteProcess, Retries
from lmablate.launcher.task import Task

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job

log = logging.getLogger(__name__)
TOKEN = Path("~/.ray/auth_token")
STORE_BYTES = 80 * 1024**2  # object store of our own cluster: Ray requires 75 MB, and we store nothing there


class RaySettings(Settings):
    """Settings of ``hydra.launcher`` for Ray. `address`: null starts a cluster on this machine for the command; auto or
    HOST:PORT joins one. `cpus` and `gpus` a run: null is runtime.threads, and one GPU with runtime.device=cuda.
    `at_once`: runs at a time; null is as many as fit."""

    address: str | None
    cpus: PositiveFloat | None
    gpus: NonNegativeFloat | None
    at_once: PositiveInt | None
    retries: NonNegativeInt


SETTINGS: dict[str, type[Settings]] = {"ray": RaySettings}


def train(arguments: list[str]) -> int:
    """Run a task on a worker of the cluster. Returns its exit code."""
    return Task(arguments).run()


class RayEngine(Engine):
    """An engine that starts jobs as Ray tasks. It connects when the first sweep of the command begins."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.retries = Retries(settings.retries)
        self.tasks: list[Any] = []  # tasks that are not known to have ended

    def slots(self, jobs: Sequence[Job]) -> int:
        cpus, gpus = self._needs(jobs[0])
        self._connect(len(jobs), cpus)
        import ray

        there = ray.cluster_resources()
        room = [int(there.get(name, 0) / need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
        if not min(room):
            raise ConfigError(
                f"hydra/launcher=ray: a run needs {cpus:g} CPU and {gpus:g} GPU, and the cluster has {there.get('CPU', 0):g} and "
                f"{there.get('GPU', 0):g}: start workers (ray start --address=HOST:PORT), or set hydra.launcher.cpus and gpus"
            )
        return min(self.settings.at_once or min(room), len(jobs))

    def start(self, jobs: Sequence[Job], slot: int) -> RemoteProcess:
        import ray

        cpus, gpus = self._needs(jobs[0])
        remote = ray.remote(train).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, name=f"lmablate {jobs[0].run_id}"
        )
        task = remote.remote(task_arguments(jobs))
        self.tasks.append(task)
        return RemoteProcess(jobs, self.retries, lambda: self._ended(task), lambda number: ray.cancel(task))

    def stop(self) -> None:
        """Do nothing: the loop cancels queued tasks together with the running ones."""

    def pause(self, seconds: float) -> None:
        import ray

        if self.tasks:
            ended, _ = ray.wait(self.tasks, timeout=seconds)
            if ended:  # its outcome may take several checks
                time.sleep(seconds)
        else:
            time.sleep(seconds)

    def _ended(self, task: Any) -> int | str | None:
        import ray

        if not ray.wait([task], timeout=0)[0]:
            return None
        with suppress(ValueError):
            self.tasks.remove(task)
        try:
            return int(ray.get(task))
        except ray.exceptions.TaskCancelledError:
            return "it was cancelled"
        except ray.exceptions.RayError as error:  # the worker or its machine is lost, or the task raised
            return (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0].partition('. ')[0]}"  # pages may follow
            )

    def _needs(self, job: Job) -> tuple[float, float]:
        runtime = job.cfg.runtime
        gpus = self.settings.gpus
        if gpus is None:
            gpus = 1.0 if runtime.device == "cuda" else 0.0
        return self.settings.cpus or float(runtime.threads), gpus

    def _connect(self, jobs: int, cpus: float) -> None:
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.settings.address is None:
                ray.init(
                    address="local",
                    num_cpus=max(1, min(cores(), int(jobs * cpus))),
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    **quiet,
                )
            else:
                if _has_token():  # Ray 2.60 sends it only in this mode
                    os.environ.setdefault("RAY_AUTH_MODE", "token")
                ray.init(address=self.settings.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"hydra.launcher.address={self.settings.address}: no cluster answers there ({str(error).strip().splitlines()[0]}): "
                "start one with ray start --head, or leave the address out"
            ) from error
        finally:
            for number, handler in handlers.items():  # Ray installs its own for SIGTERM
                if handler is not None:
                    signal.signal(number, handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()


def _has_token() -> bool:
    """Return whether a cluster's token is where Ray looks for it."""
    return bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)) or TOKEN.expanduser().exists()


make = RayEngine
