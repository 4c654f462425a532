"""How the process of a job starts: forked from a warm one where that is safe, from nothing elsewhere.

Fork (Linux, runs on the CPU) saves the imports, some three seconds a job, and loses nothing: the process that forks
(forkserver.py) has no threads and does nothing else. ``LMABLATE_START=spawn`` turns it off.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import Job
from lmablate.launcher.slots import Places, gpus
from lmablate.launcher.warm import Broken, Forked, WarmProcess, end_early, start_early, warm_process
from lmablate.runs.config_file import ASKED
from lmablate.training import compile

log = logging.getLogger(__name__)


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
        from lmablate.model.components import trusted

        module = "worker" if len(jobs) == 1 else "gang_worker"
        command = [sys.executable, "-m", f"lmablate.launcher.{module}", *(str(job.directory.path) for job in jobs)]
        command += ["--parent", str(os.getpid())]
        for package in trusted():
            command += ["--trust", package]
        with open(jobs[0].directory.log_path, "ab") as log_file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
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
        self._compiling: dict[str, Forked] = {}
        jobs = [job for unit in queue for job in unit]
        if jobs and all(can_fork(job) for job in jobs):
            log.debug("runs start by fork of a warm process")
            self._left.update(graph for unit in queue if (graph := graph_of(unit)))
            compiled = any(job.cfg.runtime.compile is True for job in jobs)
            self.warm = warm_process(["torch._inductor.compile_fx"] if compiled else [], environment_of(jobs[0], 0))

    def ready(self) -> bool:
        """Can a process be started now? Not while the warm one still imports."""
        if self.warm is not None:
            self.warm.receive()
            self._give_up_if_broken()
        return self.warm is None or self.warm.ready

    def next(self, queue: Sequence[Sequence[Job]]) -> int:
        """Where in the queue to go on: not where a graph is needed that another run is still compiling, if possible."""
        busy = {graph for graph, first in self._compiling.items() if first.waits_for_graph}
        return next((i for i, unit in enumerate(queue) if not busy or graph_of(unit) not in busy), 0)

    def start(self, jobs: Sequence[Job], slot: int) -> Process:
        """A process at work on `jobs` (several: as a gang), its words in the log of the first."""
        from lmablate.model.components import trusted

        environment = environment_of(jobs[0], slot, self.places.device(slot) if self.places is not None else None)
        if self.warm is not None:
            directories = [job.directory.path for job in jobs]
            graph, last = self._graph_of_next(jobs)
            try:
                started = self.warm.start(
                    directories, jobs[0].directory.log_path, trusted(), environment, graph=graph, last=last
                )
                if graph is not None:
                    self._compiling.setdefault(graph, started)
                return started
            except Broken as error:
                if not self.warm.why:
                    log.warning("a run could not be forked (%s); it gets a process of its own", error)
                self._give_up_if_broken()
        return Spawned(jobs, environment)

    def stop(self) -> None:
        """The runs are about to be stopped: nothing shall start in place of one."""
        if self.warm is not None:
            self.warm.stop()

    def _graph_of_next(self, jobs: Sequence[Job]) -> tuple[str | None, bool]:
        """The graph to be compiled once for these jobs and others to come, and whether they are the last of it."""
        graph = graph_of(jobs)
        if graph is None:
            return None, False
        self._left[graph] -= 1
        shared = graph in self._compiling or self._left[graph] > 0
        return (graph, self._left[graph] == 0) if shared and self._left[graph] >= 0 else (None, False)

    def pause(self, seconds: float) -> None:
        """Wait, or until a forked process has ended."""
        if self.warm is not None and not self.warm.why:
            select.select([self.warm.channel], [], [], seconds)
        else:
            time.sleep(seconds)

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
        if self.warm is not None:
            self.warm.end("is no longer needed")


@contextmanager
def started_early(words: Sequence[str]) -> Iterator[None]:
    """A warm process that begins at once, if the command line `words` look like several runs on the CPU."""
    several = {"-m", "--multirun"} & set(words) or any(word.startswith(("sweeps=", "hydra/sweeper=")) for word in words)
    shows = {"-h", "--help", "-c", "--cfg", "--info"} & set(words)
    gpu = "runtime.device=cuda" in words or os.path.exists("/dev/nvidiactl")
    if several and not shows and not gpu and _method() == "auto" and _handles_work():
        start_early()
    try:
        yield
    finally:
        end_early()


def can_fork(job: Job) -> bool:
    """Fork is safe on Linux for what does not touch a GPU."""
    method = _method()
    if method not in ("auto", "spawn"):
        raise ConfigError(f"LMABLATE_START={method}: use auto or spawn")
    return method == "auto" and job.cfg.runtime.device == "cpu" and _handles_work()


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
    from lmablate.model.components import trusted

    cfg = jobs[0].cfg
    if len(jobs) > 1 or cfg.runtime.compile is not True or cfg.runtime.threads != 1 or trusted():
        return None
    return compile.graph_of(cfg)


def environment_of(job: Job, slot: int, device: str | None = None) -> dict[str, str]:
    """What a run's environment adds to ours. `device`: the GPU for it; None: the one whose turn it is."""
    runtime = job.cfg.runtime
    threads = str(runtime.threads)
    # Two OpenMP teams on one core wait for each other; with one thread a run there is nothing to wait for.
    added = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    # What one run of a sweep compiled, the next one finds; and one process compiles, since every core has a run.
    added["TORCHINDUCTOR_CACHE_DIR"] = str(compile.compile_cache(runtime.cache_dir))
    added["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if ASKED in os.environ:  # a process that was started early does not have it
        added[ASKED] = os.environ[ASKED]
    if runtime.device == "cuda":
        visible = [one.name for one in gpus()]
        added["CUDA_VISIBLE_DEVICES"] = device or visible[slot % len(visible)]
    return added
