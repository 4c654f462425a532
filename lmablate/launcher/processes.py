"""Start the process of a job: by fork from a warm process if that is safe, as a new process elsewhere.

Fork (Linux, runs on the CPU) saves the imports, some three seconds a job, and loses nothing: the process that forks
(forkserver.py) has no threads and does nothing else. ``LMABLATE_START=spawn`` turns it off.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Protocol

from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import Job
from lmablate.launcher.slots import Slots, gpus
from lmablate.launcher.warm import UNNEEDED, ForkFailed, Template, WarmProcess
from lmablate.launcher.worker import start_worker, thread_environment
from lmablate.model.components import trusted
from lmablate.training import compile

log = logging.getLogger(__name__)
_idle: list[WarmProcess] | None = None  # unused ones between sweeps of the present command; None outside of one


class Process(Protocol):
    """The interface of a job's process for the scheduler."""

    lost: bool  # it ended through no fault of the job, which may start again

    @property
    def pid(self) -> int:
        """Return the id of its session leader, which receives signals."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def send(self, number: int) -> None:
        """Send a signal to it and to its children."""


class Spawned:
    """A new process for one job or for several of one graph."""

    lost = False

    def __init__(self, jobs: Sequence[Job], environment: dict[str, str]) -> None:
        self.process = start_worker([job.directory.path for job in jobs], trusted(), environment)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def send(self, number: int) -> None:
        os.killpg(self.pid, number)


class Starter:
    """The starter of the processes of one sweep."""

    def __init__(self, queue: Sequence[Sequence[Job]], slots: Slots | None = None) -> None:
        self.warm: WarmProcess | None = None
        self.slots = slots
        self._left: Counter[str] = Counter()  # number of runs to come, by graph
        self._templates: dict[str, Template] = {}  # by graph
        jobs = [job for unit in queue for job in unit]
        if jobs and all(can_fork(job) for job in jobs):
            log.debug("runs start by fork of a warm process")
            self._left.update(graph for unit in queue if (graph := graph_of(unit)))
            compiled = any(job.cfg.runtime.compile is True for job in jobs)
            self.warm = _claim(["torch._inductor.compile_fx"] if compiled else [])

    def ready(self) -> bool:
        """Return whether a process can be started now, which it cannot while the warm one still imports."""
        if self.warm is not None:
            self.warm.receive()
            self._drop_broken()
        return self.warm is None or self.warm.ready

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        """Return the index of the queue entry to start next, if possible one whose graph is not being compiled."""
        busy = {graph for graph, template in self._templates.items() if template.compiling}
        return next((i for i, unit in enumerate(queue) if not busy or graph_of(unit) not in busy), 0)

    def start(self, jobs: Sequence[Job], slot: int) -> Process:
        """Start a process for `jobs` (several: as a gang), which writes to the log of the first."""
        environment = environment_of(jobs[0], slot, self.slots.device(slot) if self.slots is not None else None)
        if self.warm is not None:
            directories = [job.directory.path for job in jobs]
            try:
                forker = self._template_of(jobs, environment) or self.warm
                return forker.start(directories, trusted(), environment)
            except ForkFailed as error:
                if not self.warm.why:
                    log.warning("a run could not be forked (%s); it gets a process of its own", error)
                self._drop_broken()
        return Spawned(jobs, environment)

    def stop(self) -> None:
        """Do nothing: a run that waits for its graph ends with the process that compiles it."""

    def _template_of(self, jobs: Sequence[Job], environment: dict[str, str]) -> Template | None:
        """Return the process that compiles or has compiled the graph of these jobs, or None. Raises ForkFailed."""
        graph = graph_of(jobs)
        if self.warm is None or graph is None:
            return None
        self._left[graph] -= 1
        if graph not in self._templates and self._left[graph] > 0:
            self._templates[graph] = self.warm.template(jobs[0].directory.path, trusted(), environment)
        template = self._templates.get(graph)
        if template is None or template.why or template.refused:
            return None
        template.last = self._left[graph] <= 0
        return template

    def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until a forked process has started or ended."""
        forkers = [one for one in (self.warm, *self._templates.values()) if one is not None and not one.why]
        if not forkers:
            time.sleep(seconds)
            return
        wait([one.channel for one in forkers], seconds)
        for one in forkers:
            one.receive()

    def _drop_broken(self) -> None:
        if self.warm is not None and self.warm.why:
            log.warning(
                "the process that starts runs %s; runs now start without it, those cut short from their checkpoints",
                self.warm.why,
            )
            self.warm = None

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *error: object) -> None:
        for template in self._templates.values():
            template.end()
        if self.warm is not None:
            _return(self.warm)


@contextmanager
def shared_warm_process(args: Sequence[str]) -> Iterator[None]:
    """Share a warm process among the sweeps of a command. It starts at once if the arguments suggest several runs on the CPU."""
    global _idle
    several = {"-m", "--multirun"} & set(args) or any(arg.startswith(("sweeps=", "hydra/sweeper=")) for arg in args)
    shows = {"-h", "--help", "-c", "--cfg", "--info"} & set(args)
    gpu = "runtime.device=cuda" in args or os.path.exists("/dev/nvidiactl")
    early = several and not shows and not gpu and _method() == "auto" and _pidfd_works()
    before, _idle = _idle, [WarmProcess()] if early else []
    try:
        yield
    finally:
        for warm in _idle:
            warm.end(UNNEEDED)
        _idle = before


def _claim(modules: Sequence[str]) -> WarmProcess:
    """Return the command's warm process if it lives in this folder, with `modules` imported too, or else a new one."""
    while _idle:
        warm = _idle.pop()
        warm.receive()
        if not warm.why and warm.folder == os.getcwd():
            warm.prepare(modules)
            return warm
        warm.end(UNNEEDED)
    return WarmProcess(modules)


def _return(warm: WarmProcess) -> None:
    """Keep a warm process for the next sweep, or end it together with the runs that a broken-off sweep left behind."""
    if _idle is None or warm.live:
        warm.end(UNNEEDED)
    else:
        _idle.append(warm)


def can_fork(job: Job) -> bool:
    """Return whether a fork is safe: on Linux, for jobs without a GPU. Raises ConfigError for an unknown LMABLATE_START."""
    method = _method()
    if method not in ("auto", "spawn"):
        raise ConfigError(f"LMABLATE_START={method}: use auto or spawn")
    return method == "auto" and job.cfg.runtime.device == "cpu" and _pidfd_works()


def _method() -> str:
    return os.environ.get("LMABLATE_START", "auto")


def _pidfd_works() -> bool:
    """Return whether process file descriptors work, which need Linux 5.3."""
    if sys.platform != "linux" or not hasattr(os, "fork") or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def graph_of(jobs: Sequence[Job]) -> str | None:
    """Return the key of a graph that is compiled once for all its runs; None if its runs compile for themselves. A
    process that has used several threads cannot fork, and a user's own components may change its state."""
    cfg = jobs[0].cfg
    if len(jobs) > 1 or cfg.runtime.compile is not True or cfg.runtime.threads != 1 or trusted():
        return None
    return compile.graph_of(cfg)


def environment_of(job: Job, slot: int, device: str | None = None) -> dict[str, str]:
    """Return the environment variables to add for a run. `device`: its GPU; None: chosen in turn by `slot`."""
    runtime = job.cfg.runtime
    added = thread_environment(runtime.threads, str(compile.compile_cache(runtime.cache_dir)))
    # One process compiles, since every core has a run.
    added["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if runtime.device == "cuda":
        visible = [one.name for one in gpus()]
        added["CUDA_VISIBLE_DEVICES"] = device or visible[slot % len(visible)]
    return added
