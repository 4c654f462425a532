"""Control forkserver.py from the scheduler: processes that fork others on request, and the forked runs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

WARM_SECONDS = 120.0  # for the warm process to import torch, even from a slow disk
ANSWER_SECONDS = 20.0  # for it to fork
UNNEEDED = "is no longer needed"
KILL_SECONDS = 60.0  # for a run to write its checkpoint after its warm process died


class ForkFailed(Exception):
    """The error of a process that could not be forked."""


class Forker:
    """A process that forks others: the warm one, or a template, which has compiled a graph."""

    def __init__(self, channel: Connection, pid: int) -> None:
        self.channel, self.pid = channel, pid
        self.why = ""  # the reason for its end, once it has ended
        # By request number: process id, exit code, and error of a failed fork.
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        self.refused: dict[int, str] = {}
        self.live: set[int] = set()  # requests without an answer, or at work
        self._count = 0

    def start(self, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]) -> Forked:
        """Fork a process that trains the runs in `directories`, as soon as this one is free."""
        return Forked(self, self._ask("start", directories, trusted, environment))

    def receive(self, seconds: float = 0.0) -> None:
        """Handle its messages, waiting `seconds` at most for the first one."""
        try:
            while not self.why and self.channel.poll(seconds):
                seconds = 0.0
                self._handle(self.channel.recv())
        except (EOFError, OSError):
            self.end()

    def end(self, why: str = "ended") -> None:
        """Hang up, so that it ends together with its children. `why` is the reason."""
        self.why = self.why or why
        self.channel.close()

    def _ask(self, what: str, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]) -> int:
        """Send a request. Returns its number. `environment` is added to ours."""
        self._count += 1
        self.live.add(self._count)
        self._send((what, self._count, list(directories), list(trusted), {**os.environ, **environment}))
        return self._count

    def _send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):  # it has died, which `receive` will notice
            self.channel.send(message)

    def _handle(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("started", number, pid):
                self.pids[number] = pid
            case ("ended", number, code):
                self.codes[number] = code
                self.live.discard(number)
            case ("refused", number, error):
                self.refused[number] = error
                self.live.discard(number)


class Template(Forker):
    """A child of the warm process that compiles a graph and then forks the runs of it."""

    last = False  # no more runs will be requested

    @property
    def compiling(self) -> bool:
        return not self.why and not self.pids

    def _handle(self, message: tuple[Any, ...]) -> None:
        super()._handle(message)
        if self.last and not self.live:
            self.end(UNNEEDED)


class WarmProcess(Forker):
    """A process that has imported what runs need."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self.folder = os.getcwd()
        ours, theirs = Pipe()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "lmablate.launcher.forkserver"]
        command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        one["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "1")
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                env={**os.environ, **one},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        super().__init__(ours, self.process.pid)
        self.began = time.monotonic()
        self._importing = 1  # number of `ready` messages to come
        self.prepare(modules)

    @property
    def ready(self) -> bool:
        return not self._importing

    def prepare(self, modules: Sequence[str]) -> None:
        """Import `modules` too before the next fork."""
        if modules:
            self._importing += 1
            self._send(("import", list(modules)))

    def start(self, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]) -> Forked:
        """Fork a process that trains the runs in `directories`, and wait until it has started. Raises ForkFailed."""
        process = super().start(directories, trusted, environment)
        self._wait_for(process.number)
        return process

    def template(self, directory: Path, trusted: Sequence[str], environment: dict[str, str]) -> Template:
        """Fork a process that compiles the graph of the run in `directory`, and writes to its log. Raises ForkFailed."""
        ours, theirs = Pipe()
        with theirs:
            number = self._ask("template", [directory], trusted, environment)
            with suppress(OSError):
                send_handle(self.channel, theirs.fileno(), self.pid)
        try:
            self._wait_for(number)
        except ForkFailed:
            ours.close()
            raise
        self.live.discard(number)  # it has a channel of its own
        return Template(ours, self.pids[number])

    def receive(self, seconds: float = 0.0) -> None:
        super().receive(seconds)
        if not self.ready and time.monotonic() - self.began > WARM_SECONDS:
            self.end(f"took more than {WARM_SECONDS:.0f} s to start")

    def end(self, why: str = "") -> None:
        """End the process. Without `why`, its output and exit code give the reason."""
        if self.why:
            return
        self.channel.close()
        if not why:  # it hung up, so it is about to exit
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self.errors.seek(0)
        output = self.errors.read().decode(errors="replace").strip().splitlines()
        self.errors.close()
        died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.why = why or (f"{died} ({output[-1]})" if output and code > 0 else died)

    def _wait_for(self, number: int) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while number not in self.pids and number not in self.refused and not self.why:
            self.receive(0.1)
            if time.monotonic() > deadline:
                self.end(f"did not answer for {ANSWER_SECONDS:.0f} s")
        if number not in self.pids:
            raise ForkFailed(self.why or self.refused[number])

    def _handle(self, message: tuple[Any, ...]) -> None:
        super()._handle(message)
        if message[0] == "ready":
            self._importing -= 1
            if message[1] != 1:
                self.end(f"has {message[1]} threads")


class Forked:
    """A run's process, in a session of its own."""

    def __init__(self, forker: Forker, number: int) -> None:
        self.forker, self.number = forker, number
        self.lost = False
        self.code: int | None = None
        self.killed_at = 0.0
        self._fd: int | None = None  # unlike a pid it is never reused; -1 if the process has ended

    @property
    def pid(self) -> int:
        """Return the process that receives this run's signals: while its graph compiles, the one that compiles."""
        return self.forker.pids.get(self.number, self.forker.pid)

    @property
    def waits_for_graph(self) -> bool:
        return self.code is None and self.number not in self.forker.pids

    def poll(self) -> int | None:
        if self.code is None:
            self.forker.receive()
            if self._fd is None and self.number in self.forker.pids:
                try:
                    self._fd = os.pidfd_open(self.pid)
                except ProcessLookupError:
                    self._fd = -1
            self.code = self.forker.codes.pop(self.number, None)
            if self.code is None and (self.forker.why or self.number in self.forker.refused):
                self._check_orphan()
            if self.code is not None and self._fd is not None and self._fd >= 0:
                os.close(self._fd)
        return self.code

    def send(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it is not a session leader yet
            os.kill(self.pid, number)

    def _check_orphan(self) -> None:
        """Handle the end of a run whose forker is gone, so that its exit code is unknown. The kernel has sent it
        SIGTERM, which takes effect after its step."""
        if self._fd is None or self._fd < 0 or select.select([self._fd], [], [], 0)[0]:
            self.lost, self.code = True, -signal.SIGTERM
            return
        now = time.monotonic()
        self.killed_at = self.killed_at or now + KILL_SECONDS
        if now > self.killed_at:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
