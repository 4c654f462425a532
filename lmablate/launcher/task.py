"""Run a job on the machine that an engine chose: a child process, from plain strings to an exit code.

The arguments are a command line (engine.task_arguments). Nothing else reaches the engine, and only the exit code comes
back: the outcome is in the run's folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lmablate.launcher.worker import start_worker, thread_environment
from lmablate.runs.config_file import LAUNCHER_VARIABLE
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.tracking.client import following

NO_FOLDER = 72  # exit code if the run's folder is missing on this machine
LOOK_SECONDS = 0.2
KILL_SECONDS = 90.0  # for a run to stop after a signal


class Task:
    """One run (several: branches of one trunk) as a child of the engine's process. It dies with that process."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.args = _parser().parse_args(list(arguments))
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def run(self, beat: Callable[[], None] = lambda: None) -> int:
        """Train the run. Returns 0 for done, 1 for failed, 143 for stopped, negative for the signal that killed it.
        `beat` is called at every check of the child."""
        args = self.args
        if not os.path.isdir(args.folder) or not all((path / "config.yaml").is_file() for path in args.directories):
            return NO_FOLDER
        environment = thread_environment(args.threads, args.compiled)
        if args.cache is not None:
            environment["LMABLATE_CACHE"] = args.cache
        if args.asked is not None:
            environment[LAUNCHER_VARIABLE] = args.asked
        if args.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = args.gpu
        self.child = start_worker(args.directories, args.trust, environment, args.folder)
        first = RunDirectory.at(args.directories[0])
        with following(args.directories, args.wandb, first.log):
            try:
                code = self._wait(beat)
            except KeyboardInterrupt:  # Ray's way to stop a task
                code = self.stop()
        if code < 0 and not self.stopped:
            self._record_kill(code)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the run with a checkpoint, and wait until it has ended. Returns its exit code."""
        self.stopped = True
        assert self.child is not None
        self.send(number)
        try:
            return self.child.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.child.wait()

    def send(self, number: int) -> None:
        """Send a signal to the run and its children."""
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    def _wait(self, beat: Callable[[], None]) -> int:
        assert self.child is not None
        watched = self.args.watch
        while (code := self.child.poll()) is None:
            beat()
            if watched is not None and not os.path.exists(f"/proc/{watched}") and not self.stopped:
                self.stopped = True
                self.send(signal.SIGTERM)
            time.sleep(LOOK_SECONDS)
        return code

    def _record_kill(self, code: int) -> None:
        """Write into the run's folder that it was killed, which its own process cannot."""
        for path in self.args.directories:
            directory = RunDirectory.at(path)
            if not directory.is_done:
                reason = f"killed by {signal.Signals(-code).name}"
                directory.write_status({"state": "failed", "error": reason, "killed": True})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument(
        "--folder", required=True, help="where the sweep was started; paths in a configuration begin there"
    )
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compiled", required=True, help="the compiler's cache")
    parser.add_argument("--cache")
    parser.add_argument("--trust", action="append", default=[])
    parser.add_argument("--asked", help="the launcher, whose configuration the run reads")
    parser.add_argument("--gpu")
    parser.add_argument("--wandb", default="disabled", help="how wandb follows the run: online, offline")
    parser.add_argument("--watch", type=int, help="a process of this machine with which the run ends")
    return parser
