"""Engines: what runs the jobs of a sweep in the place of this machine's own processes (Slurm, Ray, submitit).

The scheduler is the same for all of them: it skips what is done, reads status.json and result.json, and tells what failed.
An engine only starts processes somewhere and says whether they still live. What it is handed is the path of a run's folder,
in which config.yaml stands, and a few words more; the process reads that file, checks it as any configuration, and leaves
its result in the folder (task.py). So the folders of results and caches must be the same ones on every machine.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import ValidationError

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings
from lmablate.runs.config_file import ASKED
from lmablate.training.compile import compile_cache

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.launcher.processes import Process

# By the word of the launcher: the module with its `make` and its `SETTINGS`, and the extra that brings its library.
ENGINES = {
    "submitit_local": ("lmablate.launcher.submitit_engine", "slurm", "submitit"),
    "submitit_slurm": ("lmablate.launcher.submitit_engine", "slurm", "submitit"),
    "ray": ("lmablate.launcher.ray_engine", "ray", "ray"),
}


class Starts(Protocol):
    """What the scheduler asks of whatever starts its processes; entering and leaving it is the life of one sweep."""

    def ready(self) -> bool:
        """Can a job be handed over now?"""

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        """Where in the queue to go on."""

    def start(self, jobs: Sequence[Job], slot: int) -> Process:
        """Start a job (several: a gang, or branches of one trunk one after the other)."""

    def stop(self) -> None:
        """The jobs are about to be stopped: nothing shall start in place of one."""

    def pause(self, seconds: float) -> None:
        """Wait, or until something has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Engine(Starts, Protocol):
    """The same, elsewhere."""

    def slots(self, jobs: Sequence[Job]) -> int:
        """How many jobs to hand over at a time."""


class Launcher(str):
    """The word of a launcher (``ray``), with what its group says (``hydra.launcher.address``)."""

    __slots__ = ("settings",)
    settings: Mapping[str, Any]

    def __new__(cls, word: str, settings: Mapping[str, Any]) -> Launcher:
        made = super().__new__(cls, word)
        made.settings = {str(key): value for key, value in settings.items() if not str(key).startswith("_")}
        return made


def engine_of(launcher: str) -> Engine | None:
    """The engine that a launcher names; None for this machine's own processes. Raises ConfigError where its library is
    missing, or a setting is wrong, before anything is computed."""
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
    given = launcher.settings if isinstance(launcher, Launcher) else {}
    return make(checked(module.SETTINGS[str(launcher)], launcher, given))


def checked(settings: type[Settings], launcher: str, given: Mapping[str, Any]) -> Any:
    """The settings of a launcher's group; raises ConfigError in the words of hydra.launcher."""
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


def words_of(jobs: Sequence[Job]) -> list[str]:
    """The command line of task.py for `jobs`: all that crosses to the engine, as plain strings."""
    from lmablate.model.components import trusted

    runtime = jobs[0].cfg.runtime
    words = [str(job.directory.path.absolute()) for job in jobs]
    words += ["--folder", os.getcwd(), "--threads", str(runtime.threads)]
    words += ["--compiled", str(compile_cache(runtime.cache_dir))]
    if runtime.wandb != "disabled":
        words += ["--wandb", runtime.wandb]
    if cache := os.environ.get("LMABLATE_CACHE"):
        words += ["--cache", os.path.abspath(cache)]
    if asked := os.environ.get(ASKED):
        words += ["--asked", asked]
    for package in trusted():
        words += ["--trust", package]
    return words
