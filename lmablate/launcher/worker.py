"""One job in a process of its own: ``python -m lmablate.launcher.worker RUN_DIRECTORY [--trust PACKAGE]``."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


def die_with_parent(parent: int) -> None:
    """End when the parent is killed, with a checkpoint, so that no orphan trains on: on Linux the kernel sees to it, elsewhere
    a thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before we asked
        sys.exit(143)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--trust", action="append", default=[])
    words = parser.parse_args()
    from lmablate.core.logging import configure_logging

    die_with_parent(words.parent)
    configure_logging()
    return run_directory(words.directory, words.trust)


def run_directory(path: Path, trusted: list[str]) -> int:
    """Run the job whose configuration stands in `path`; 0 done, 1 failed (status.json says why), 143 stopped, 75 (HELD)
    where another process is training it.

    Whatever starts processes elsewhere calls this one, and the lock that it takes holds between all of them.
    """
    from lmablate.core.locks import Held
    from lmablate.model.components import trust
    from lmablate.runs.config_file import asked_path, read_config
    from lmablate.runs.prepared import prepare_run
    from lmablate.runs.recovery import CONFIG, HELD, failure
    from lmablate.runs.run import execute
    from lmablate.training.trainer import Interrupted

    trust(*trusted)
    cfg = None
    try:
        cfg = read_config(asked_path(path))
        execute(prepare_run(cfg))
    except Held as held:
        print(held, file=sys.stderr)
        return HELD
    except (Interrupted, KeyboardInterrupt):
        leave_word(path, {"state": "stopped"})
        return 143
    except Exception as error:
        said = failure(error, cfg)
        if said["kind"] != CONFIG:
            traceback.print_exc()
        print(said["error"], file=sys.stderr)
        leave_word(path, said)
        return 1
    return 0


def leave_word(path: Path, said: dict[str, Any]) -> None:
    """Say in status.json what became of a run, if that can be written, and keep what is known of its last step."""
    from lmablate.runs.progress_file import now
    from lmablate.runs.run_directory import RunDirectory

    directory = RunDirectory(path.parent, path.name)
    with suppress(OSError):
        directory.write_status({**directory.read_status(), **said, "pid": os.getpid(), **now()})


if __name__ == "__main__":
    sys.exit(main())
