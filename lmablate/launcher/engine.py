"""Choose the engine that runs a sweep's jobs instead of local processes (Slurm, Ray, submitit).

The scheduler is the same for all engines: it skips finished runs, reads status.json and result.json, and reports
failures. An engine only starts processes somewhere and reports whether they still live. It gets the path of a run's
folder and a few more arguments; the process reads config.yaml there, checks it like any configuration, and writes its
result there (task.py). So the folders of results and caches must be shared by all machines.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import ValidationError

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.runs.config_file import LAUNCHER_VARIABLE
from lmablate.training.compile import compile_cache

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.launcher.processes import Process

# By launcher name: the module with its `make` and `SETTINGS`, the extra that installs its library, and the library.
ENGINES = {
    "submitit_local": ("lmablate.launcher.submitit_engine", "slurm", "submitit"),
    "submitit_slurm": ("lmablate.launcher.submitit_engine", "slurm", "submitit"),
    "ray": ("lmablate.launcher.ray_engine", "ray", "ray"),
}


class JobStarter(Protocol):
    """The interface between the scheduler and whatever starts its processes. Its context lasts for one sweep."""

    def ready(self) -> bool:
        """Return whether a job can be started now."""

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        """Return the index in the queue of the entry to start next."""

    def start(self, jobs: Sequence[Job], slot: int) -> Process:
        """Start a job (several: a gang, or branches of one trunk one after the other)."""

    def stop(self) -> None:
        """Prepare for the jobs to be stopped: no job may start in place of a stopped one."""

    def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until a job has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Engine(JobStarter, Protocol):
    """A starter of processes that wait in a queue of its own, if at all: it takes every job, in order."""

    def ready(self) -> bool:
        return True

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        return 0

    def slots(self, jobs: Sequence[Job]) -> int:
        """Return how many jobs to start at a time."""


class LauncherChoice(str):
    """The name of a launcher (``ray``) with the settings of its group (``hydra.launcher.address``)."""

    __slots__ = ("settings",)
    settings: Mapping[str, Any]

    def __new__(cls, name: str, settings: Mapping[str, Any]) -> LauncherChoice:
        made = super().__new__(cls, name)
        made.settings = {str(key): value for key, value in settings.items() if not str(key).startswith("_")}
        return made


def engine_of(launcher: str) -> Engine | None:
    """Return the engine of a launcher, or None for local processes. Raises ConfigError before any compute if its
    library is missing or a setting is wrong."""
    if launcher not in ENGINES:
        return None
    name, extra, library = ENGINES[launcher]
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"hydra/launcher={launcher} needs {library}, which comes with an extra ({error}): "
            f"pip install -c constraints.txt 'lmablate[{extra}]'"
        ) from error
    module = importlib.import_module(name)
    make: Callable[[Any], Engine] = module.make
    given = launcher.settings if isinstance(launcher, LauncherChoice) else {}
    return make(validated_settings(module.SETTINGS[str(launcher)], launcher, given))


def validated_settings(settings: type[Settings], launcher: str, given: Mapping[str, Any]) -> Any:
    """Return the validated settings of a launcher's group. Raises ConfigError that names the keys of hydra.launcher."""
    try:
        return settings.model_validate(dict(given))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(("hydra.launcher", *map(str, item["loc"])))
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                lines.append(
                    f"{key}: hydra/launcher={launcher} has no such key; it has {', '.join(settings.model_fields)}"
                )
            elif item["type"] == "missing":
                lines.append(f"{key}: missing")
            else:
                lines.append(f"{key}={item['input']}: {message[0].lower()}{message[1:]}")
        raise ConfigError("\n".join(lines)) from error


def task_arguments(jobs: Sequence[Job]) -> list[str]:
    """Return the arguments of task.py for `jobs`: everything that an engine gets, as plain strings."""
    from lmablate.model.components import trusted

    runtime = jobs[0].cfg.runtime
    arguments = [str(job.directory.path.absolute()) for job in jobs]
    arguments += ["--folder", os.getcwd(), "--threads", str(runtime.threads)]
    arguments += ["--compiled", str(compile_cache(runtime.cache_dir))]
    if runtime.wandb != "disabled":
        arguments += ["--wandb", runtime.wandb]
    if cache := os.environ.get("LMABLATE_CACHE"):
        arguments += ["--cache", os.path.abspath(cache)]
    if launcher := os.environ.get(LAUNCHER_VARIABLE):
        arguments += ["--asked", launcher]
    for package in trusted():
        arguments += ["--trust", package]
    return arguments
