"""The warm process that starts runs by fork: ``python -m lmablate.launcher.forkserver --fd N --parent PID``.

It imports torch and all that a run needs, starts no thread, and forks a child for each request, so that a run begins in a
fraction of a second. The sweep's own process may have threads, and must not fork itself. When the sweep's process dies,
this one ends, and the kernel stops its children.

Messages are tuples over a socket. In: ``("start", id, directories, trusted packages, environment)``, where several
directories are runs that share a process; ``("template", ...)`` with the same, for a child that compiles the graph of the
first directory and then serves as this process does, over the file descriptor that follows; ``("import", modules)``.
Out: ``("ready", threads)`` after imports, ``("started", id, pid)``, ``("refused", id, error)`` where a fork failed, and
``("ended", id, exit code)``, negative for a signal.

A child's peak memory (``ru_maxrss``) counts the pages it shares with this process, as that of a process of its own counts
those of the libraries it loads: it is what the run would need alone, and the sum over a sweep is more than it takes.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, NoReturn

from lmablate.core.logging import configure_logging
from lmablate.core.source_code import snapshot
from lmablate.launcher.worker import die_with_parent, run
from lmablate.runs.config_file import read_config, request_path

TRAINING = """yaml lmablate.runs.run lmablate.training.trainer lmablate.model lmablate.model.attention lmablate.model.posemb
lmablate.model.activation lmablate.data.build lmablate.schema.run_config""".split()
_compiled: list[object] = []  # kept, since torch forgets a compiled graph with the model that it was compiled for


def warm_up(modules: Sequence[str] = ()) -> int:
    """Import what a run needs; returns how many threads this process has, which must be 1 for a fork to be safe."""
    for name in (*modules, *TRAINING):
        importlib.import_module(name)
    import torch

    snapshot()  # runs of this sweep are of the code that is imported now
    torch.set_num_threads(1)
    # The first optimizer of a process imports hundreds of modules of torch. One number starts no thread.
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    torch.optim.AdamW([one], fused=True).step()
    return _settled()


def compile_graph(directory: Path, trusted: Sequence[str]) -> None:
    """Do all that the first step of a run does, so that children find its code compiled. Exits where a fork is unsafe."""
    from lmablate.model import build_model
    from lmablate.model.components import trust
    from lmablate.training.trainer import Trainer

    with suppress(ImportError):  # the compiler shows progress by it, and it would start a thread to watch itself
        import tqdm

        tqdm.tqdm.monitor_interval = 0
    trust(*trusted)
    cfg = read_config(request_path(directory))
    no_text: Any = None  # reading it may start threads, and none is needed
    trainer = Trainer(build_model(cfg), no_text, cfg, folder=None)
    trainer.compile()
    _compiled.append(trainer)
    if (threads := _settled()) != 1:
        sys.exit(f"compiling has left {threads} threads, so the runs of this graph compile for themselves")


def _settled() -> int:
    """Have the collector of a child leave alone what is there, so that its pages stay shared; returns the number of threads."""
    gc.collect()
    gc.freeze()
    return len(os.listdir("/proc/self/task"))


class Server:
    """Forks children on request and reports what becomes of them."""

    def __init__(self, channel: Connection) -> None:
        self.channel, self.pid = channel, os.getpid()
        self.children: dict[int, tuple[int, int]] = {}  # by process file descriptor: request id, process id

    def serve(self) -> None:
        """Work until the other side hangs up."""
        with suppress(EOFError, ConnectionError):
            while True:
                for ready in wait([self.channel, *self.children]):
                    if isinstance(ready, int):
                        self._reap(ready)
                    else:
                        self._take(self.channel.recv())

    def _take(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("import", modules):
                self.channel.send(("ready", warm_up(modules)))
            case ("start", number, *request):
                self._fork(number, lambda: self._be_run(*request))
            case ("template", number, *request):
                fd = recv_handle(self.channel)
                self._fork(number, lambda: self._be_template(Connection(fd), *request))
                os.close(fd)

    def _fork(self, number: int, work: Callable[[], int]) -> None:
        """Have a child do `work`."""
        try:
            pid = os.fork()
        except OSError as error:
            self.channel.send(("refused", number, str(error)))
            return
        if pid == 0:
            _leave_after(work)
        self.children[os.pidfd_open(pid)] = (number, pid)
        self.channel.send(("started", number, pid))

    def _reap(self, fd: int) -> None:
        number, pid = self.children.pop(fd)
        os.close(fd)
        self.channel.send(("ended", number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))

    def _be_run(self, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]) -> int:
        """Train in this child; returns the exit code."""
        import numpy as np
        import torch

        self._become_child(directories[0], environment)
        # As in a process of its own, from the operating system's noise (Python sees to its own). Nothing of ours draws here.
        torch.default_generator.seed()
        np.random.seed()  # noqa: NPY002
        configure_logging()
        return run(directories, trusted)

    def _be_template(
        self, channel: Connection, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]
    ) -> int:
        """Compile in this child, and fork the runs of that graph."""

        self._become_child(directories[0], environment)
        configure_logging()
        compile_graph(directories[0], trusted)
        Server(channel).serve()
        return 0

    def _become_child(self, directory: Path, environment: dict[str, str]) -> None:
        """Leave everything of the server's behind, as a process of its own would start."""
        os.setsid()
        die_with_parent(self.pid)
        self.channel.close()
        for fd in self.children:
            os.close(fd)
        os.environ.update(environment)
        try:
            file = os.open(directory / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:  # a full disk: the run says so in its status, or not at all
            file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)


def _leave_after(work: Callable[[], int]) -> NoReturn:
    """Do `work` and exit as Python does, threads joined and exit handlers run, but without taking apart a whole interpreter
    of modules."""
    try:
        code = work()
    except SystemExit as left:  # a part of the user's own
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
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
    args = parser.parse_args()
    die_with_parent(args.parent)
    server = Server(Connection(args.fd))
    server.channel.send(("ready", warm_up()))
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
