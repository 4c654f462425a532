"""The scheduler's end of forkserver.py: a warm process, and the children it forks on request."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmablate.launcher.server import Lines, send

WARM_SECONDS = 120.0  # for the warm process to import torch, from a slow disk too
ANSWER_SECONDS = 20.0  # for it to fork
KILL_SECONDS = 60.0  # for a run whose warm process died to write its checkpoint


_early: list[WarmProcess] = []


def start_early() -> None:
    """Start a warm process before it is known which runs there are: it imports while the command is read."""
    _early.append(
        WarmProcess([], {"TORCHINDUCTOR_COMPILE_THREADS": os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "1")})
    )


def warm_process(modules: Sequence[str], environment: dict[str, str]) -> WarmProcess:
    """The one that was started early if it still lives, with `modules` imported too, or a new one."""
    while _early:
        warm = _early.pop()
        if warm.process.poll() is None:
            warm.prepare(modules, environment)
            return warm
        warm.end()
    return WarmProcess(modules, environment)


def end_early() -> None:
    """There was nothing to run."""
    while _early:
        _early.pop().end("is not needed")


class Broken(Exception):
    """The warm process cannot be used (any more)."""


class WarmProcess:
    """A process that has imported what runs need, and forks them. `environment` is added to ours."""

    def __init__(self, modules: Sequence[str], environment: dict[str, str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "lmablate.launcher.forkserver"]
        command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        for module in modules:
            command += ["--import", module]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.began = time.monotonic()
        self.ready = False
        self.why = ""  # it is of no use any more
        # By request: the process, exit codes, and what else is known of it.
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        self.refused: dict[int, str] = {}
        self.waiting: set[int] = set()
        self.orphaned: set[int] = set()
        self._count = 0
        self._lines = Lines()

    def start(
        self,
        directories: Sequence[Path],
        log: Path,
        trusted: list[str],
        environment: dict[str, str],
        graph: str | None = None,
        last: bool = False,
    ) -> Forked:
        """Fork a process that trains what stands in `directories`. Raises Broken.

        `graph` names what is compiled once for all that name it; `last` says that no other will.
        """
        self._count += 1
        number = self._count
        request = {"start": number, "directories": [str(path) for path in directories], "log": str(log)}
        request |= {"trust": trusted, "environment": environment}
        if graph is not None:
            request |= {"graph": graph, "last": last}
        with suppress(OSError):  # it has died, as `receive` will find
            send(self.channel, request)
        deadline = time.monotonic() + ANSWER_SECONDS
        while number not in self.pids and number not in self.refused and not self.why:
            self.receive(0.1)
            if time.monotonic() > deadline:
                self.end(f"did not answer for {ANSWER_SECONDS:.0f} s")
        if number not in self.pids:
            raise Broken(self.why or self.refused[number])
        return Forked(self, number)

    def prepare(self, modules: Sequence[str], environment: dict[str, str]) -> None:
        """Import `modules` before the first fork, under `environment`."""
        with suppress(OSError):  # it has died, as `receive` will find
            send(self.channel, {"import": list(modules), "environment": environment})

    def stop(self) -> None:
        """Let no run start any more."""
        with suppress(OSError):
            send(self.channel, {"stop": True})

    def receive(self, seconds: float = 0.0) -> None:
        """Take in what it says, waiting `seconds` at most for the first word."""
        while not self.why and select.select([self.channel], [], [], seconds)[0]:
            seconds = 0.0
            try:
                received = self.channel.recv(1 << 16)
            except OSError:
                received = b""
            if not received:
                self.end()
                return
            for message in self._lines.take(received):
                self._note(message)
        if not self.ready and time.monotonic() - self.began > WARM_SECONDS:
            self.end(f"took more than {WARM_SECONDS:.0f} s to start")

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": threads}:
                self.ready = True
                if threads != 1:
                    self.end(f"has {threads} threads")
            case {"started": number, "pid": pid}:
                self.pids[number] = pid
                (self.waiting.add if "waiting" in message else self.waiting.discard)(number)
            case {"ended": number, "code": code}:
                self.codes[number] = code
            case {"refused": number, "error": error}:
                self.refused[number] = error
            case {"orphaned": number}:
                self.orphaned.add(number)

    def end(self, why: str = "") -> None:
        """Let it go, and with it its children; `why` is found out if not given."""
        if self.why:
            return
        self.channel.close()
        if not why:  # it hung up, so it is about to be gone
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        self.errors.close()
        died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.why = why or (f"{died} ({said[-1]})" if said and code > 0 else died)


class Forked:
    """A child of the warm process, in a session of its own."""

    def __init__(self, warm: WarmProcess, number: int) -> None:
        self.warm, self.number = warm, number
        self.lost = False
        self.code: int | None = None
        self.killed_at = 0.0
        self._handle: tuple[int, int] | None = None  # of the process id, and the file descriptor: 0 if it has ended
        self._follow()

    @property
    def pid(self) -> int:
        """What a signal for this run goes to: while its graph compiles, the process that does so."""
        return self.warm.pids[self.number]

    @property
    def waits_for_graph(self) -> bool:
        return self.code is None and self.number in self.warm.waiting

    def poll(self) -> int | None:
        if self.code is None:
            self.warm.receive()
            self._follow()
            self.code = self.warm.codes.pop(self.number, None)
            if self.number in self.warm.refused:  # its template died, and nothing else could be forked
                self.lost, self.code = True, -signal.SIGTERM
            elif self.code is None and (self.warm.why or self.number in self.warm.orphaned):
                self._see_it_end()
            if self.code is not None:
                self._let_go()
        return self.code

    def send(self, number: int) -> None:
        os.killpg(self.pid, number)

    def _follow(self) -> None:
        """Hold a handle that cannot come to mean another process."""
        if self._handle is None or self._handle[0] != self.pid:
            self._let_go()
            fd = 0
            with suppress(OSError):  # it has ended already
                fd = os.pidfd_open(self.pid)
            self._handle = (self.pid, fd)

    def _let_go(self) -> None:
        if self._handle is not None and self._handle[1]:
            os.close(self._handle[1])
        self._handle = None

    def _see_it_end(self) -> None:
        """Nobody can say how it ended. The kernel asked it to stop (SIGTERM), which takes until its step is done."""
        fd = self._handle[1] if self._handle else 0
        if not fd or select.select([fd], [], [], 0)[0]:
            self.lost, self.code = True, -signal.SIGTERM
            return
        now = time.monotonic()
        self.killed_at = self.killed_at or now + KILL_SECONDS
        if now > self.killed_at:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
