"""The training process's side of the wandb mirror: a thread that feeds a process of wandb's own (see tracking.py)."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmablate.core.files import read_jsonl

Message = dict[str, Any]
log = logging.getLogger(__name__)


class Tracker:
    """One run's mirror; see tracking.open_tracker. As a context manager it finishes by itself: an exception means failed."""

    def __init__(self, mode: str, run: Message, *, resume: bool, start_timeout: float, finish_timeout: float) -> None:
        self.mode = mode  # what it is now: online, offline (perhaps after falling back) or disabled
        self._run, self._resume = run, resume
        self._start_timeout, self._finish_timeout = start_timeout, finish_timeout
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over mode, _worker and the moment it starts
        self._worker: Worker | None = None
        self._started = threading.Event()  # wandb runs, or was given up
        self._finished = mode == "disabled"
        self._thread = threading.Thread(target=self._mirror, name="lmablate-tracker", daemon=True)
        if mode != "disabled":
            try:
                self._thread.start()
            except RuntimeError as error:  # the machine has no thread left for us
                self._finished = True
                self._off(str(error))

    def log(self, record: Mapping[str, Any]) -> None:
        """Mirror one record of history.jsonl under its own names; what is None is left out. Returns at once."""
        if self.mode != "disabled" and not self._finished:
            self._queue.put({"log": _said(record)})

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Write the last numbers and end the run: exit code 0 if `status` is completed or diverged, else 1.

        Waits for the rest to be written or uploaded, but no longer than the timeout. More than once is harmless.
        """
        if self._finished:
            return
        self._finished = True
        deadline = time.monotonic() + self._finish_timeout
        code = 0 if status in ("completed", "diverged") else 1
        self._queue.put({"finish": {"exit_code": code, "summary": {**summary, "status": status}}})
        if not self._started.wait(self._finish_timeout / 2):
            self._end_worker(only_if_connecting=True)  # leaves time to write it all offline
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._off(f"not done {self._finish_timeout:g} s after the end of the run, and ended")
            self._end_worker()
            self._thread.join(1)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.finish("failed" if kind else "completed", {})

    def _mirror(self) -> None:
        """The thread: start wandb, hand it every record, see it off."""
        try:
            if (ready := self._start()) is not None and self._worker is not None:
                self._feed(self._worker, ready)
        except Exception as error:  # whatever it is, the run must not suffer
            self._off(f"stopped ({type(error).__name__}: {error})")
        finally:
            self._started.set()
            if self._worker is not None:
                self._worker.close()

    def _start(self) -> Message | None:
        """What the worker said when it was ready; None when neither online nor offline would start."""
        problems: list[str] = []
        for mode in ("online", "offline") if self.mode == "online" else ("offline",):
            with self._lock:
                self._worker = worker = Worker()
                self.mode = mode
            with suppress(OSError):  # it has ended already: the answer says why
                worker.send({**self._run, "mode": mode, "timeouts": [self._start_timeout, self._finish_timeout]})
            answer = worker.answer(self._start_timeout)
            with self._lock:
                if started := "folder" in answer and not worker.killed:
                    self._started.set()
            if started and problems:
                log.warning(
                    "wandb: %s; this run is kept offline, and `wandb sync %s` uploads it", problems[0], answer["folder"]
                )
            if started:
                return answer
            worker.close()
            problems.append(f"{mode} did not start ({answer.get('error') or worker.last_words()})")
        self._off("; ".join(problems))
        return None

    def _feed(self, worker: Worker, ready: Message) -> None:
        """Hand over what is logged until the end, then wait for the worker's farewell."""
        message: Message = {}
        missing = self._resume
        try:
            while "finish" not in message:
                message = self._queue.get()
                if missing:
                    for record in self._unsent(ready["last_step"], message):
                        worker.send({"log": record})
                missing = False
                worker.send(message)
        except OSError:
            pass  # it ended before us, and may have said why
        answer = worker.answer(self._finish_timeout)
        if "uploaded" not in answer:
            worker.close()
            self._off(f"stopped ({answer.get('error') or worker.last_words()})")
        elif not answer["uploaded"]:
            mend = f"wandb sync --include-online {ready['folder']}"
            log.warning("wandb: the server did not take the whole run in time; `%s` uploads it", mend)

    def _unsent(self, last_step: int | None, message: Message) -> list[Message]:
        """The records of earlier attempts that the mirror lacks: after its last step, before the first new record."""
        try:
            history = read_jsonl(Path(self._run["directory"]) / "history.jsonl")
        except (OSError, ValueError):
            return []
        after = -1 if last_step is None else last_step
        before = message["log"].get("step", -1) if "log" in message else math.inf
        return [_said(record) for record in history if after < record.get("step", -1) < before]

    def _off(self, why: str) -> None:
        """Go on without wandb. One warning, however often it happens."""
        with self._lock:
            before, self.mode = self.mode, "disabled"
        if before != "disabled":
            log.warning("wandb: %s; this run goes on without it", why)

    def _end_worker(self, *, only_if_connecting: bool = False) -> None:
        """Kill wandb's process; with `only_if_connecting` only one that might still become online."""
        with self._lock:
            connecting = self.mode == "online" and not self._started.is_set()
            if self._worker is not None and (connecting or not only_if_connecting):
                self._worker.kill()


class Worker:
    """wandb's process, as the training process sees it."""

    def __init__(self) -> None:
        self.killed, self.born = False, time.monotonic()
        package_parent = str(Path(__file__).resolve().parents[3])
        # The mode is decided, and a wandb service of the user's own runs is not for this one.
        environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SERVICE")}
        environment |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # the latter: to wandb's makers
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmablate.runs.tracking.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training process, which then says how the run ended
        )

    def send(self, message: Message) -> None:
        """Hand over one message. Raises OSError when the process has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message, default=plain).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, timeout: float) -> Message:
        """Its next message; empty if it ends without one, as it must after `timeout` seconds."""
        assert self.process.stdout is not None
        timer = threading.Timer(timeout, self.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self.process.stdout.readline()
            return json.loads(line) if line.endswith(b"\n") else {}
        finally:
            timer.cancel()

    def last_words(self) -> str:
        """Why a process that has ended said nothing."""
        if self.killed:
            return f"no answer within {time.monotonic() - self.born:.0f} s"
        return f"its process ended with code {self.process.returncode}"

    def kill(self) -> None:
        """End it now; wandb-core, its child, notices and goes within two seconds."""
        self.killed = True
        self.process.kill()

    def close(self) -> None:
        """Let it go, and see that it does. More than once is harmless."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self.process.stdout.close()


def plain(value: Any) -> Any:
    """JSON for what json does not know: a scalar tensor or array as its number, anything else as text."""
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)


def _said(record: Mapping[str, Any]) -> Message:
    return {key: value for key, value in record.items() if value is not None}
