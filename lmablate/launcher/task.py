"""What an engine runs on the machine that it chose: a run in a process of its own, from plain strings to an exit code.

The words are those of a command line (engine.words_of). Nothing else crosses to the engine, and nothing comes back but the
exit code: what became of the run stands in its folder.
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
from lmablate.runs.config_file import ASKED
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.tracking.client import following

NO_FOLDER = 72  # the run's folder is not there on this machine
LOOK_SECONDS = 0.2
KILL_SECONDS = 90.0  # for a run that was asked to stop


class Task:
    """One run (several: branches of one trunk) as a child of the engine's process, with which it dies."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = _parser().parse_args(list(words))
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def run(self, beat: Callable[[], None] = lambda: None) -> int:
        """The exit code of the run: 0 done, 1 failed, 143 stopped, negative for the signal that killed it."""
        words = self.words
        if not os.path.isdir(words.folder) or not all((path / "config.yaml").is_file() for path in words.directories):
            return NO_FOLDER
        environment = thread_environment(words.threads, words.compiled)
        if words.cache is not None:
            environment["LMABLATE_CACHE"] = words.cache
        if words.asked is not None:
            environment[ASKED] = words.asked
        if words.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = words.gpu
        self.child = start_worker(words.directories, words.trust, environment, words.folder)
        first = RunDirectory(words.directories[0].parent, words.directories[0].name)
        with following(words.directories, words.wandb, first.log):
            try:
                code = self._wait(beat)
            except KeyboardInterrupt:  # how Ray asks a task to stop
                code = self.stop()
        if code < 0 and not self.stopped:
            self._note(code)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the run to write its checkpoint and end, and wait until it has; its exit code."""
        self.stopped = True
        assert self.child is not None
        self.send(number)
        try:
            return self.child.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self.child.wait()

    def send(self, number: int) -> None:
        """Hand a signal to the run and whatever it has started."""
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    def _wait(self, beat: Callable[[], None]) -> int:
        assert self.child is not None
        watched = self.words.watch
        while (code := self.child.poll()) is None:
            beat()
            if watched is not None and not os.path.exists(f"/proc/{watched}") and not self.stopped:
                self.stopped = True
                self.send(signal.SIGTERM)
            time.sleep(LOOK_SECONDS)
        return code

    def _note(self, code: int) -> None:
        """Say in the run's folder that it was killed, which its own process cannot."""
        for path in self.words.directories:
            directory = RunDirectory(path.parent, path.name)
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
