"""The warm process that starts runs by fork: ``python -m lmablate.launcher.forkserver --fd N --parent PID``.

It imports torch and all that a run needs, starts no thread, and forks one child for each job it is asked for, so that a
run begins in a fraction of a second. The sweep's own process may have threads, and must not fork itself. What is said
over the socket `N` stands in server.py. When the sweep's process dies, this one ends, and the kernel stops its children.

A child's peak memory (``ru_maxrss``) counts the pages it shares with this process, as that of a process of its own counts
those of the libraries it loads: it is what the run would need alone, and the sum over a sweep is more than it takes.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lmablate.launcher.server import Request, Server
from lmablate.launcher.worker import die_with_parent, run_directory

TRAINING = """yaml lmablate.runs.run lmablate.training.trainer lmablate.model lmablate.model.attention lmablate.model.posemb
lmablate.model.activation lmablate.data.build lmablate.schema.run_config""".split()


def warm_up(modules: Sequence[str]) -> int:
    """Import what a run needs; returns how many threads this process has, which must be 1 for a fork to be safe."""
    for name in (*modules, *TRAINING):
        importlib.import_module(name)
    import torch

    from lmablate.core.source_code import snapshot

    snapshot()  # runs of this sweep are of the code that is imported now
    torch.set_num_threads(1)
    # The first optimizer of a process imports hundreds of modules of torch. One number starts no thread.
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    torch.optim.AdamW([one], fused=True).step()
    gc.collect()
    gc.freeze()  # the collector of a child then leaves these objects alone, and their pages stay shared
    return _threads()


_compiled: list[object] = []  # kept, since torch forgets a compiled graph with the model that it was compiled for


def compile_graph(directory: Path, trusted: list[str]) -> None:
    """Do all that the first step of a run does, so that children find its code compiled. Exits where a fork is unsafe."""
    from lmablate.model import build_model
    from lmablate.model.components import trust
    from lmablate.runs.config_file import asked_path, read_config
    from lmablate.training.trainer import Trainer

    with suppress(ImportError):  # the compiler shows progress by it, and it would start a thread to watch itself
        import tqdm

        tqdm.tqdm.monitor_interval = 0
    trust(*trusted)
    cfg = read_config(asked_path(directory))
    no_text: Any = None  # reading it may start threads, and none is needed
    trainer = Trainer(build_model(cfg), no_text, cfg, folder=None)
    trainer.compile()
    _compiled.append(trainer)
    gc.collect()
    gc.freeze()
    if (threads := _threads()) != 1:
        sys.exit(f"compiling has left {threads} threads, so the runs of this graph compile for themselves")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def run_child(request: Request) -> int:
    """The job of a child; returns the exit code."""
    import numpy as np
    import torch

    from lmablate.core.logging import configure_logging

    os.environ.update(request["environment"])
    if "template" in request:
        configure_logging()
        compile_graph(Path(request["directories"][0]), request["trust"])
        mine = Server(request["template"]).serve()
        return 0 if mine is None else run_child(mine)
    # As in a process of its own, from the operating system's noise (Python sees to its own). Nothing of ours draws here.
    torch.default_generator.seed()
    np.random.seed()  # noqa: NPY002
    configure_logging()
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
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    _leave(code)


if __name__ == "__main__":
    sys.exit(main())
