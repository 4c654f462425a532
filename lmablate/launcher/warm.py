"""The scheduler's end of forkserver.py: a warm process, and the children it forks on request."""

from __future__ import annotations

import json
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

WARM_SECONDS = 120.0  # for the warm process to import torch, from a slow disk too
ANSWER_SECONDS = 20.0  # for it to fork
KILL_SECONDS = 60.0  # for a run whose warm process died to write its checkpoint


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
        self.codes: dict[int, int] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self._pending = b""

    def start(self, directories: Sequence[Path], log: Path, trusted: list[str], environment: dict[str, str]) -> Forked:
        """Fork a process that trains what stands in `directories`. Raises Broken."""
        self._count += 1
        number = self._count
        request = {"start": number, "directories": [str(path) for path in directories], "log": str(log)}
        request |= {"trust": trusted, "environment": environment}
        with suppress(OSError):  # it has died, as `receive` will find
            self.channel.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + ANSWER_SECONDS
        while number not in self._answers and not self.why:
            self.receive(0.1)
            if time.monotonic() > deadline:
                self.end(f"did not answer for {ANSWER_SECONDS:.0f} s")
        if number not in self._answers:
            raise Broken(self.why)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Broken(answer["error"])
        return Forked(self, number, answer["pid"])

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
            *lines, self._pending = (self._pending + received).split(b"\n")
            for message in map(json.loads, lines):
                if "ready" in message:
                    self.ready = True
                    if message["ready"] != 1:
                        self.end(f"has {message['ready']} threads")
                elif "ended" in message:
                    self.codes[message["ended"]] = message["code"]
                else:
                    self._answers[message.get("started", message.get("refused"))] = message
        if not self.ready and time.monotonic() - self.began > WARM_SECONDS:
            self.end(f"took more than {WARM_SECONDS:.0f} s to start")

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

    def __init__(self, warm: WarmProcess, number: int, pid: int) -> None:
        self.warm, self.number, self.pid = warm, number, pid
        self.lost = False
        self.code: int | None = None
        self.killed_at = 0.0
        self.fd: int | None = None  # a handle that cannot come to mean another process
        with suppress(OSError):  # it has ended already
            self.fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.code is None:
            self.warm.receive()
            self.code = self.warm.codes.pop(self.number, None)
            if self.code is None and self.warm.why:
                self._see_it_end()
            if self.code is not None and self.fd is not None:
                os.close(self.fd)
                self.fd = None
        return self.code

    def _see_it_end(self) -> None:
        """Nobody can say how it ended. The kernel asked it to stop (SIGTERM), which takes until its step is done."""
        if self.fd is None or select.select([self.fd], [], [], 0)[0]:
            self.lost, self.code = True, -signal.SIGTERM
            return
        now = time.monotonic()
        self.killed_at = self.killed_at or now + KILL_SECONDS
        if now > self.killed_at:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.fd, signal.SIGKILL)
