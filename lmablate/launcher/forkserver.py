"""The warm process that starts runs by fork: ``python -m lmablate.launcher.forkserver --fd N --parent PID``.

It imports torch and all that a run needs, starts no thread, and forks one child for each job it is asked for, so that a
run begins in a fraction of a second. The sweep's own process may have threads, and must not fork itself.

JSON lines over the socket `N`. In: ``{"start": id, "directories": [path], "log": path, "trust": [package],
"environment": {name: value}}``; several directories are runs of one graph, for a gang. Out: ``{"ready": threads}`` once,
``{"started": id, "pid": pid}`` when the child leads a session of its own, ``{"refused": id, "error": words}`` when it could
not be forked, and ``{"ended": id, "code": code}``, negative for a signal. When the socket closes, this process ends, and
the kernel ends its children as it does when it is killed.

A child's peak memory (``ru_maxrss``) counts the pages it shares with this process, as that of a process of its own counts
those of the libraries it loads: it is what the run would need alone, and the sum over a sweep is more than it takes.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lmablate.launcher.worker import die_with_parent, run_directory

Request = dict[str, Any]
TRAINING = (
    *(
        "yaml",
        "lmablate.run",
        "lmablate.trainer",
        "lmablate.model",
        "lmablate.model.attention",
        "lmablate.model.posemb",
    ),
    *("lmablate.model.activation", "lmablate.data.build", "lmablate.tracking", "lmablate.config.schema"),
)


def warm_up(modules: Sequence[str]) -> int:
    """Import what a run needs; returns how many threads this process has, which must be 1 for a fork to be safe."""
    for name in (*modules, *TRAINING):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # The first optimizer of a process imports hundreds of modules of torch. One number starts no thread.
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    torch.optim.AdamW([one], fused=True).step()
    gc.collect()
    gc.freeze()  # the collector of a child then leaves these objects alone, and their pages stay shared
    return len(os.listdir("/proc/self/task"))


class Server:
    """Forks children on request and reports what becomes of them."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.children: dict[int, tuple[int, int]] = {}  # by process file descriptor: request id, process id

    def serve(self) -> Request | None:
        """Work until the other side hangs up: None. In a child it returns at once, with the request to be run."""
        pending = b""
        while True:
            poll = select.poll()  # made anew each time: an epoll set would be shared with children
            for fd in (self.channel.fileno(), *self.children):
                poll.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            for fd in ready:
                if fd in self.children:
                    self._reap(fd)
            if self.channel.fileno() in ready:
                received = self.channel.recv(1 << 16)
                if not received:
                    return None
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if self._fork(request):
                        return request

    def send(self, message: dict[str, Any]) -> None:
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def _reap(self, fd: int) -> None:
        request, pid = self.children.pop(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self.send({"ended": request, "code": os.waitstatus_to_exitcode(status)})

    def _fork(self, request: Request) -> bool:
        """True in the child. The parent goes on when the child can take signals for itself and its descendants."""
        heard, said = os.pipe()
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(heard)
            os.close(said)
            self.send({"refused": request["start"], "error": str(error)})
            return False
        if pid == 0:
            self._become_child(request, server)
            os.close(heard)
            os.close(said)  # what the parent waits for
            return True
        os.close(said)
        os.read(heard, 1)
        os.close(heard)
        self.children[os.pidfd_open(pid)] = (request["start"], pid)
        self.send({"started": request["start"], "pid": pid})
        return False

    def _become_child(self, request: Request, server: int) -> None:
        """Leave everything of the server's behind, as a process of its own would start."""
        os.setsid()
        self.channel.close()
        for fd in self.children:
            os.close(fd)
        self.children.clear()
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(server)


def run_child(request: Request) -> int:
    """The job of a child; returns the exit code."""
    import numpy as np
    import torch

    from lmablate.cli import speak

    os.environ.update(request["environment"])
    # As in a process of its own, from the operating system's noise (Python sees to its own). Nothing of ours draws here.
    torch.default_generator.seed()
    np.random.seed()  # noqa: NPY002
    speak()
    paths = [Path(path) for path in request["directories"]]
    if len(paths) == 1:
        return run_directory(paths[0], request["trust"])
    from lmablate.launcher.gang_worker import run_group

    return run_group(paths, request["trust"])


def _leave(code: int) -> NoReturn:
    """Exit as Python does, threads joined and exit handlers run, but without taking apart a whole interpreter of modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            stream.flush()
    os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    words = parser.parse_args()
    die_with_parent(words.parent)
    server = Server(socket.socket(fileno=words.fd))
    server.send({"ready": warm_up(words.modules)})
    request = server.serve()
    if request is None:
        return 0
    try:
        code = run_child(request)
    except SystemExit as left:  # a part of the user's own
        code = left.code if isinstance(left.code, int) else left.code is not None
    except BaseException:
        traceback.print_exc()
        code = 1
    _leave(code)


if __name__ == "__main__":
    sys.exit(main())
