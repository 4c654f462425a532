"""Start runs by fork from a warm process: ``python -m lmablate.launcher.forkserver --fd N --parent PID``.

The process imports torch and all that a run needs, starts no thread, and forks a child for each request, so that a run
begins in a fraction of a second. The sweep's own process may have threads, and must not fork itself. When the sweep's
process dies, this one ends, and the kernel stops its children.

Messages are tuples over a socket. In: ``("start", id, directories, trusted packages, environment)``, where several
directories are runs that share a process; ``("template", ...)`` with the same, for a child that compiles the graph of
the first directory and then serves as this process does, over the file descriptor that follows; ``("import",
modules)``. Out: ``("ready", threads)`` after imports, ``("started", id, pid)``, ``("refused", id, error)`` where a fork
failed, and ``("ended", id, exit code)``, negative for a signal.

A child's peak memory (``ru_maxrss``) includes the pages it shares with this process, as that of a separate process
includes the libraries it loads. It is what the run would need alone; the sum over a sweep exceeds the memory in use.
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
_compiled: list[object] = []  # kept alive, since torch drops a compiled graph together with its model


def warm_up(modules: Sequence[str] = ()) -> int:
    """Import what a run needs. Returns the number of threads of this process, which must be 1 for a fork to be safe."""
    for name in (*modules, *TRAINING):
        importlib.import_module(name)
    import torch

    snapshot()  # runs of this sweep use the code that is imported now
    torch.set_num_threads(1)
    # The first optimizer of a process imports hundreds of modules of torch. One number starts no thread.
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    torch.optim.AdamW([one], fused=True).step()
    return _freeze()


def compile_graph(directory: Path, trusted: Sequence[str]) -> None:
    """Compile the graph of a run as its first step does, for children to find. Exits if a fork would be unsafe afterwards."""
    from lmablate.model import build_model
    from lmablate.model.components import trust
    from lmablate.training.trainer import Trainer

    with suppress(ImportError):  # the compiler shows progress with it, and its monitor would start a thread
        import tqdm

        tqdm.tqdm.monitor_interval = 0
    trust(*trusted)
    cfg = read_config(request_path(directory))
    no_text: Any = None  # reading text may start threads, and compiling needs none
    trainer = Trainer(build_model(cfg), no_text, cfg, folder=None)
    trainer.compile()
    _compiled.append(trainer)
    if (threads := _freeze()) != 1:
        sys.exit(f"compiling has left {threads} threads, so the runs of this graph compile for themselves")


def _freeze() -> int:
    """Freeze the garbage collector's objects, so that a child's pages stay shared. Returns the number of threads."""
    gc.collect()
    gc.freeze()
    return len(os.listdir("/proc/self/task"))


class Server:
    """A server that forks children on request and reports their ends."""

    def __init__(self, channel: Connection) -> None:
        self.channel, self.pid = channel, os.getpid()
        self.children: dict[int, tuple[int, int]] = {}  # by process file descriptor: request id, process id

    def serve(self) -> None:
        """Serve requests until the other side hangs up."""
        with suppress(EOFError, ConnectionError):
            while True:
                for ready in wait([self.channel, *self.children]):
                    if isinstance(ready, int):
                        self._reap(ready)
                    else:
                        self._handle(self.channel.recv())

    def _handle(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("import", modules):
                self.channel.send(("ready", warm_up(modules)))
            case ("start", number, *request):
                self._fork(number, lambda: self._run_child(*request))
            case ("template", number, *request):
                fd = recv_handle(self.channel)
                self._fork(number, lambda: self._run_template(Connection(fd), *request))
                os.close(fd)

    def _fork(self, number: int, work: Callable[[], int]) -> None:
        """Fork a child that does `work`."""
        try:
            pid = os.fork()
        except OSError as error:
            self.channel.send(("refused", number, str(error)))
            return
        if pid == 0:
            _exit_after(work)
        self.children[os.pidfd_open(pid)] = (number, pid)
        self.channel.send(("started", number, pid))

    def _reap(self, fd: int) -> None:
        number, pid = self.children.pop(fd)
        os.close(fd)
        self.channel.send(("ended", number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))

    def _run_child(self, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]) -> int:
        """Train in this child. Returns the exit code."""
        import numpy as np
        import torch

        self._become_child(directories[0], environment)
        # Seed from the operating system as a fresh process does (Python reseeds its own). Nothing of ours draws from these.
        torch.default_generator.seed()
        np.random.seed()  # noqa: NPY002
        configure_logging()
        return run(directories, trusted)

    def _run_template(
        self, channel: Connection, directories: Sequence[Path], trusted: Sequence[str], environment: dict[str, str]
    ) -> int:
        """Compile in this child, and fork the runs of that graph."""
        self._become_child(directories[0], environment)
        configure_logging()
        compile_graph(directories[0], trusted)
        Server(channel).serve()
        return 0

    def _become_child(self, directory: Path, environment: dict[str, str]) -> None:
        """Close everything of the server's, so that the child starts like a separate process."""
        os.setsid()
        die_with_parent(self.pid)
        self.channel.close()
        for fd in self.children:
            os.close(fd)
        os.environ.update(environment)
        try:
            file = os.open(directory / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:  # a full disk: the run reports it in its status if it can
            file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)


def _exit_after(work: Callable[[], int]) -> NoReturn:
    """Do `work` and exit as Python does, with threads joined and exit handlers run, but without tearing down all
    modules."""
    try:
        code = work()
    except SystemExit as exited:  # raised by a component of the user's own
        code = exited.code if isinstance(exited.code, int) else int(exited.code is not None)
        if isinstance(exited.code, str):
            print(exited.code, file=sys.stderr)
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
