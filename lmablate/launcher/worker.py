"""Train a job in a process of its own: ``python -m lmablate.launcher.worker RUN_DIRECTORY ... [--trust PACKAGE]``.

Several directories are runs that share the process: those of one graph, or the branches of one trunk.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmablate.core.locks import LockHeld
from lmablate.core.logging import configure_logging
from lmablate.runs.config_file import read_config, request_path
from lmablate.runs.recovery import CONFIG, HELD, failure
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.state import state_of

log = logging.getLogger(__name__)


def die_with_parent(parent: int) -> None:
    """End with a checkpoint when the parent is killed, so that no orphan trains on. On Linux the kernel does this,
    elsewhere a thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before this was set up
        sys.exit(143)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def start_worker(
    directories: Sequence[Path], trusted: Sequence[str], environment: Mapping[str, str], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker for the runs in `directories`, with `environment` added to ours, in `folder` (None: the current
    one). It writes to the log of the first run, and leads a session of its own, so that a signal reaches its children
    too."""
    command = [sys.executable, "-m", "lmablate.launcher.worker", *map(str, directories), "--parent", str(os.getpid())]
    for package in trusted:
        command += ["--trust", package]
    with open(RunDirectory.at(directories[0]).log_path, "ab") as log_file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=folder,
            start_new_session=True,
        )


def thread_environment(threads: int, compile_cache: str) -> dict[str, str]:
    """Return the environment variables of a run on `threads` cores. Runs share compiled code through `compile_cache`."""
    # Two OpenMP teams on one core wait for each other; with one thread a run none waits.
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return {**environment, "TORCHINDUCTOR_CACHE_DIR": compile_cache}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--trust", action="append", default=[])
    args = parser.parse_args()

    die_with_parent(args.parent)
    configure_logging()
    return run(args.directories, args.trust)


def run(directories: Sequence[Path], trusted: Sequence[str]) -> int:
    """Train the runs in `directories`. Returns the exit code of `run_directory` or `run_group`."""
    from lmablate.model.components import trust

    trust(*trusted)
    return run_directory(directories[0]) if len(directories) == 1 else run_group(directories)


def run_directory(path: Path) -> int:
    """Train the run in `path`. Returns 0 for done, 1 for failed (status.json holds the error), 143 for stopped, 75
    (HELD) if another process is training it.

    All processes that train a run call this function, and its lock holds between them.
    """
    from lmablate.runs.prepared import prepare_run
    from lmablate.runs.run import execute
    from lmablate.training.progress import Interrupted

    cfg = None
    try:
        cfg = read_config(request_path(path))
        execute(prepare_run(cfg))
    except LockHeld as held:
        print(held, file=sys.stderr)
        return HELD
    except (Interrupted, KeyboardInterrupt):
        merge_status(path, {"state": "stopped"})
        return 143
    except Exception as error:
        status = failure(error, cfg)
        if status["kind"] != CONFIG:
            traceback.print_exc()
        print(status["error"], file=sys.stderr)
        merge_status(path, status)
        return 1
    return 0


def run_group(paths: Sequence[Path]) -> int:
    """Train the runs in `paths` together. Returns 0 if all ended, 1 if one failed, 143 for stopped. Runs that cannot
    train in a gang train one by one, so that one bad run affects no other."""
    from lmablate.runs.gang_run import train_group
    from lmablate.runs.prepared import prepare_run
    from lmablate.training.progress import Interrupted

    directories = [RunDirectory.at(path) for path in paths]
    try:
        configs = [read_config(request_path(path)) for path in paths]
        if all(cfg.branches for cfg in configs):
            return _run_branches(directories)
        first = directories[0].path  # its status shows the trials of all
        train_group([prepare_run(cfg) for cfg in configs], on_trial=lambda what: merge_status(first, {"doing": what}))
        return 0
    except (Interrupted, KeyboardInterrupt):
        for directory in directories:
            if not state_of(read_config(request_path(directory.path)), directory).done:
                merge_status(directory.path, {"state": "stopped"})
        return 143
    except LockHeld as held:
        print(held, file=sys.stderr)
        return HELD
    except Exception:
        log.exception("these runs could not train together; they go on one by one")
    left = [one for one in directories if not state_of(read_config(request_path(one.path)), one).done]
    codes = [run_directory(directory.path) for directory in left]
    return max(codes, default=0)


def _run_branches(directories: Sequence[RunDirectory]) -> int:
    """Train the branches of one trunk one after the other, the longest first. Each starts from a checkpoint of the trunk."""
    worst = 0
    for i, directory in enumerate(directories):
        code = run_directory(directory.path)
        if code == 143:
            for waiting in directories[i + 1 :]:
                merge_status(waiting.path, {"state": "stopped"})
            return code
        worst = max(worst, code)
    return worst


def merge_status(path: Path, status: dict[str, Any]) -> None:
    """Merge `status` into status.json, which keeps the last step, and ignore a failed write."""
    directory = RunDirectory.at(path)
    with suppress(OSError):
        directory.write_status({**directory.read_status(), **status, "pid": os.getpid()})


if __name__ == "__main__":
    sys.exit(main())
