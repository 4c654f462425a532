"""How the process of a job starts: forked from a warm one where that is safe, from nothing elsewhere.

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
from lmablate.launcher.slots import Places, gpus
from lmablate.launcher.warm import UNNEEDED, Broken, Template, WarmProcess
from lmablate.launcher.worker import start_worker, thread_environment
from lmablate.model.components import trusted
from lmablate.training import compile

log = logging.getLogger(__name__)
_idle: list[WarmProcess] | None = None  # of the present command, between its sweeps; None outside of one


class Process(Protocol):
    """What the scheduler needs of a process."""

    lost: bool  # it ended because the process it was forked from did: the job may start again

    @property
    def pid(self) -> int:
        """What leads its session: where its signals go."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def send(self, number: int) -> None:
        """Hand a signal to it and to what it has started."""


class Spawned:
    """A process started from nothing, for one job or for several of one graph."""

    lost = False

    def __init__(self, jobs: Sequence[Job], environment: dict[str, str]) -> None:
        self.process = start_worker([job.directory.path for job in jobs], _trusted(), environment)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def send(self, number: int) -> None:
        os.killpg(self.pid, number)


class Starter:
    """Starts the processes of one sweep."""

    def __init__(self, queue: Sequence[Sequence[Job]], places: Places | None = None) -> None:
        self.warm: WarmProcess | None = None
        self.places = places
        self._left: Counter[str] = Counter()  # runs to come, by graph
        self._templates: dict[str, Template] = {}  # by graph
        jobs = [job for unit in queue for job in unit]
        if jobs and all(can_fork(job) for job in jobs):
            log.debug("runs start by fork of a warm process")
            self._left.update(graph for unit in queue if (graph := graph_of(unit)))
            compiled = any(job.cfg.runtime.compile is True for job in jobs)
            self.warm = _take(["torch._inductor.compile_fx"] if compiled else [])

    def ready(self) -> bool:
        """Can a process be started now? Not while the warm one still imports."""
        if self.warm is not None:
            self.warm.receive()
            self._give_up_if_broken()
        return self.warm is None or self.warm.ready

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        """Where in the queue to go on: not where a graph is needed that is still compiled for another run, if possible."""
        busy = {graph for graph, template in self._templates.items() if template.compiling}
        return next((i for i, unit in enumerate(queue) if not busy or graph_of(unit) not in busy), 0)

    def start(self, jobs: Sequence[Job], slot: int) -> Process:
        """A process at work on `jobs` (several: as a gang), its words in the log of the first."""
        environment = environment_of(jobs[0], slot, self.places.device(slot) if self.places is not None else None)
        if self.warm is not None:
            directories = [job.directory.path for job in jobs]
            try:
                forker = self._template_of(jobs, environment) or self.warm
                return forker.start(directories, _trusted(), environment)
            except Broken as error:
                if not self.warm.why:
                    log.warning("a run could not be forked (%s); it gets a process of its own", error)
                self._give_up_if_broken()
        return Spawned(jobs, environment)

    def stop(self) -> None:
        """What waits for a graph ends with the process that compiles it."""

    def _template_of(self, jobs: Sequence[Job], environment: dict[str, str]) -> Template | None:
        """What has compiled the graph of these jobs, or is to compile it for them and others to come. Raises Broken."""
        graph = graph_of(jobs)
        if self.warm is None or graph is None:
            return None
        self._left[graph] -= 1
        if graph not in self._templates and self._left[graph] > 0:
            self._templates[graph] = self.warm.template(jobs[0].directory.path, _trusted(), environment)
        template = self._templates.get(graph)
        if template is None or template.why or template.refused:
            return None
        template.last = self._left[graph] <= 0
        return template

    def pause(self, seconds: float) -> None:
        """Wait, or until a forked process has started or ended."""
        forkers = [one for one in (self.warm, *self._templates.values()) if one is not None and not one.why]
        if not forkers:
            time.sleep(seconds)
            return
        wait([one.channel for one in forkers], seconds)
        for one in forkers:
            one.receive()

    def _give_up_if_broken(self) -> None:
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
            _give_back(self.warm)


@contextmanager
def started_early(words: Sequence[str]) -> Iterator[None]:
    """Have the sweeps of a command share a warm process; it starts at once if its line looks like several runs on the CPU."""
    global _idle
    several = {"-m", "--multirun"} & set(words) or any(word.startswith(("sweeps=", "hydra/sweeper=")) for word in words)
    shows = {"-h", "--help", "-c", "--cfg", "--info"} & set(words)
    gpu = "runtime.device=cuda" in words or os.path.exists("/dev/nvidiactl")
    early = several and not shows and not gpu and _method() == "auto" and _handles_work()
    before, _idle = _idle, [WarmProcess()] if early else []
    try:
        yield
    finally:
        for warm in _idle:
            warm.end(UNNEEDED)
        _idle = before


def _take(modules: Sequence[str]) -> WarmProcess:
    """The warm process of this command, if it lives and is in this folder, with `modules` imported too; else a new one."""
    while _idle:
        warm = _idle.pop()
        warm.receive()
        if not warm.why and warm.folder == os.getcwd():
            warm.prepare(modules)
            return warm
        warm.end(UNNEEDED)
    return WarmProcess(modules)


def _give_back(warm: WarmProcess) -> None:
    """A sweep has ended; one that was broken off leaves runs behind, which end with the warm process."""
    if _idle is None or warm.live:
        warm.end(UNNEEDED)
    else:
        _idle.append(warm)


def can_fork(job: Job) -> bool:
    """Fork is safe on Linux for what does not touch a GPU."""
    method = _method()
    if method not in ("auto", "spawn"):
        raise ConfigError(f"LMABLATE_START={method}: use auto or spawn")
    return method == "auto" and job.cfg.runtime.device == "cpu" and _handles_work()


def _trusted() -> list[str]:

    return trusted()


def _method() -> str:
    return os.environ.get("LMABLATE_START", "auto")


def _handles_work() -> bool:
    """Process handles need Linux 5.3."""
    if sys.platform != "linux" or not hasattr(os, "fork") or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def graph_of(jobs: Sequence[Job]) -> str | None:
    """The graph to be compiled once for all its runs; None for what is not to be compiled ahead of them.

    A process that has used several threads cannot fork, and parts of a user's own may leave traces in it.
    """
    cfg = jobs[0].cfg
    if len(jobs) > 1 or cfg.runtime.compile is not True or cfg.runtime.threads != 1 or _trusted():
        return None
    return compile.graph_of(cfg)


def environment_of(job: Job, slot: int, device: str | None = None) -> dict[str, str]:
    """What a run's environment adds to ours. `device`: the GPU for it; None: the one whose turn it is."""
    runtime = job.cfg.runtime
    added = thread_environment(runtime.threads, str(compile.compile_cache(runtime.cache_dir)))
    # One process compiles, since every core has a run.
    added["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if runtime.device == "cuda":
        visible = [one.name for one in gpus()]
        added["CUDA_VISIBLE_DEVICES"] = device or visible[slot % len(visible)]
    return added
