"""One job in a process of its own: ``python -m lmablate.launcher.worker RUN_DIRECTORY [--trust PACKAGE]``."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path


def die_with_parent(parent: int) -> None:
    """Linux: have the kernel end this process when its parent is killed, so that no orphan trains on."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            sys.exit(143)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--trust", action="append", default=[])
    words = parser.parse_args()
    from lmablate.cli import speak

    die_with_parent(words.parent)
    speak()
    return run_directory(words.directory, words.trust)


def run_directory(path: Path, trusted: list[str]) -> int:
    """Run the job whose config.yaml stands in `path`; 0 done, 1 failed (status.json says why), 143 stopped."""
    from lmablate.errors import ConfigError
    from lmablate.model.parts import trust
    from lmablate.run import execute, load_data, read_config
    from lmablate.run_directory import RunDirectory
    from lmablate.trainer import Interrupted

    trust(*trusted)
    directory = RunDirectory(path.parent, path.name)
    try:
        cfg = read_config(path / "config.yaml")
        execute(cfg, load_data(cfg))
    except (Interrupted, KeyboardInterrupt):
        directory.write_status({"state": "stopped", "pid": os.getpid()})
        return 143
    except Exception as error:
        if not isinstance(error, ConfigError):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(reason, file=sys.stderr)
        directory.write_status({"state": "failed", "pid": os.getpid(), "error": reason})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
