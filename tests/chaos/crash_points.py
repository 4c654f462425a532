"""A run killed at every single file operation of its own, and in full mode its recovery killed too."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.common import Children, Outcome, check_against, rows, words

AFTER = ("replace", "unlink", "fsync", "ftruncate")


class Assassin:
    """Counts the moments around file operations, and kills the process at one of them."""

    def __init__(self, at: int, note: Path | None = None) -> None:
        self.at, self.note, self.count = at, note, 0

    def moment(self, what: str) -> None:
        self.count += 1
        if self.note is not None:
            with open(self.note, "a") as file:
                file.write(what + "\n")
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Stand before and after everything that changes a file, and in the middle of what is written."""
        for name in ("replace", "unlink", "fsync", "ftruncate", "rename"):
            self._wrap(name)
        real_write, real_fdopen = os.write, os.fdopen

        def write(fd: int, data: Any) -> int:
            raw = bytes(data)
            self.moment(f"write of {len(raw)}: before")
            done = real_write(fd, raw[: len(raw) // 2])
            self.moment(f"write of {len(raw)}: half")
            return done + real_write(fd, raw[len(raw) // 2 :])

        def fdopen(fd: int, *args: Any, **more: Any) -> Any:
            file = real_fdopen(fd, *args, **more)
            assassin = self

            class Slow:
                def write(self, data: bytes) -> None:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    assassin.moment(f"file of {len(data)}: half")
                    file.write(data[len(data) // 2 :])

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

            return Slow()

        os.write, os.fdopen = write, fdopen  # type: ignore[assignment]

    def _wrap(self, name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            target = next(
                (os.path.basename(os.fspath(a)) for a in reversed(args) if isinstance(a, str | os.PathLike)), ""
            )
            self.moment(f"{name} {target}: before")
            done = real(*args, **more)
            if name in AFTER:
                self.moment(f"{name} {target}: after")
            return done

        setattr(os, name, call)


def crash_points(outcome: Outcome, folder: Path, children: Children, *, full: bool) -> None:
    from lmablate.config import compose
    from lmablate.runs.prepared import prepare_run
    from lmablate.runs.run import execute

    cfg = compose(words(folder, folder, steps=6))
    outcome.expect(
        len(os.listdir("/proc/self/task")) == 1, "this process has threads, so that its children are not safe"
    )

    def train(results: Path) -> None:
        execute(prepare_run(cfg.model_copy(update={"results_dir": str(results)})))

    reference = folder / "points-reference"
    outcome.expect(children.call(lambda: train(reference)) == 0, "the unbroken run failed")
    moments = folder / "moments.txt"

    def counted() -> None:
        Assassin(0, moments).watch()
        train(folder / "points-counted")

    children.call(counted)
    total = len(moments.read_text().splitlines())
    outcome.expect(total > 80, f"only {total} moments were found")
    results, log = folder / "points", folder / "points.log"
    for at in range(1, total + 1, 1 if full else 5):
        shutil.rmtree(results, ignore_errors=True)

        def victim(at: int) -> None:
            Assassin(at).watch()
            train(results)

        code = children.call(lambda at=at: victim(at), log)
        outcome.expect(code == -signal.SIGKILL, f"moment {at}: not killed ({code})")
        outcome.times += 1
        was_done = rows(results)
        if full and not was_done and at % 2:
            outcome.times += children.call(lambda at=at: victim(max(1, at // 2)), log) == -signal.SIGKILL
        outcome.expect(children.call(lambda: train(results), log) == 0, f"moment {at}: cannot be continued")
        before = len(outcome.faults)
        check_against(outcome, results, reference)
        outcome.faults[before:] = [f"moment {at}: {fault}" for fault in outcome.faults[before:]]
        if was_done:
            (run_id,) = was_done
            outcome.expect(rows(results)[run_id] == was_done[run_id], f"moment {at}: a finished run was made again")
    outcome.note = f"{total} moments in a run of 6 steps"
