"""Send the history of the runs of a command to wandb, as a process (``python -m lmablate.runs.tracking.follower``).

It tails history.jsonl of every run at work, and ends a run at wandb when the run has ended: with the numbers of
result.json, or as failed (exit code 1). client.py starts and ends it. If the process that started it exits, or asks it
to end, it sends the rest and exits. Neither a hang nor a crash of the follower affects the runs.

- The id is the run id, always with ``resume="allow"``. Online, a rerun continues the same wandb run. Offline, each
  attempt leaves a segment (``wandb/offline-run-<time>-<id>``), which `wandb sync` appends in order of time.
- No step is sent twice: a resumed run repeats the steps after its checkpoint, with the same numbers. wandb_sent.json holds
  the last step sent; online the server's value wins. No wandb step is passed; charts run over `tokens`.
- Sent: the flat configuration, the records, the summary. Not sent: code, diffs, requirements, arguments, host, hardware,
  system metrics, terminal output, error reports.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.files import atomic_write, parsed, read_json
from lmablate.core.locks import FileLock, LockHeld, is_held
from lmablate.core.secrets import redacted
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.tracking.client import RUN, SENT, mark_of, read_sent, unsent

if TYPE_CHECKING:
    import wandb

LOCK = ".wandb.lock"  # in a run's folder: only one follower at a time sends it
LOOK_SECONDS = 1.0
FLUSH_SECONDS = 1.0  # between writes of wandb-core to disk; its own default is 15
CONFIRM_SECONDS = 5.0  # after which a record counts as sent if this process is killed
# Columns of result.json in the summary of the wandb run.
SUMMARY = (
    *("status", "val_loss", "val_bpb", "val_accuracy", "train_loss", "diverged_at_step"),
    *("n_params", "n_params_non_embedding", "flops_per_token", "tokens"),
)


class WandbSession:
    """The wandb state that all runs of a follower share: its mode, the failures reported, and the runs not uploaded in time."""

    def __init__(self, mode: str, start_seconds: float, end_seconds: float) -> None:
        self.mode = mode  # online, offline (perhaps after falling back)
        self.start_seconds, self.end_seconds = start_seconds, end_seconds
        self.open: set[Path] = set()  # folders of runs that have begun and not ended
        self.left: list[str] = []  # folders of runs not uploaded in time
        self._reported: set[str] = set()
        self._out = os.fdopen(os.dup(1), "w")

    def warn_once(self, kind: str, text: str) -> None:
        """Print a message once for each kind of failure."""
        if kind not in self._reported:
            self._reported.add(kind)
            with suppress(OSError):  # the reader has gone
                print(f"wandb: {redacted(text)}", file=self._out, flush=True)

    def begin(self, folder: Path, run: dict[str, Any]) -> wandb.Run:
        """Start the wandb run of a folder, offline if online fails. Raises whatever wandb raises."""
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        try:
            return self._init(folder, run)
        except Exception as error:
            if self.mode != "online":
                raise
            self.mode = "offline"
            self.warn_once("online", f"online did not start ({reason(error)}); runs are kept offline")
            if self.open:  # these may still upload; the next command sends this run
                raise
            wandb.teardown()  # frees the run's id
            return self._init(folder, run)

    def _init(self, folder: Path, run: dict[str, Any]) -> wandb.Run:
        import wandb

        settings = wandb.Settings(
            # wandb's own limits lie inside ours, so that it can report what went wrong.
            init_timeout=0.6 * self.start_seconds,
            finish_timeout=0.7 * self.end_seconds,
            finish_timeout_raises=True,
            reinit="create_new",  # several runs at a time in this process
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            console="off",
            silent=True,
            symlink=False,
            use_dot_wandb=False,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            label_disable=True,
            host="",
            program="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        begun = wandb.init(
            mode=self.mode,  # type: ignore[arg-type]
            id=folder.name,
            name=run["name"],
            group=run["group"],
            project=run["project"],
            config=run["config"],
            dir=folder,
            resume="allow",
            settings=settings,
        )
        self.open.add(folder)
        begun.define_metric("tokens")
        begun.define_metric("*", step_metric="tokens")
        return begun


class FollowedRun:
    """One run of the command, and its state at wandb."""

    def __init__(self, folder: Path, service: WandbSession) -> None:
        self.folder, self.service = folder, service
        self.directory = RunDirectory.at(folder)
        self.run: wandb.Run | None = None
        self.last = -1  # step sent
        self.through = False  # nothing more is to be sent
        self._lock: FileLock | None = None
        self._closing: threading.Thread | None = None
        self._read = (0, 0)  # inode of history.jsonl, and the number of its bytes sent
        self._noted = (0.0, -1)  # time of the last confirmation, and the last step sent then

    def look(self, *, over: bool) -> bool:
        """Send new records. Returns False once nothing more will come. `over`: the command has ended, and begins no more runs."""
        try:
            return not self.through and self._look(over)
        except Exception as error:  # wandb and the disk raise all kinds
            self._give_up(error)
            return False

    def _look(self, over: bool) -> bool:
        if self._closing is not None and self._closing.is_alive():
            return True
        held = is_held(self.directory.lock_path)
        done = self.directory.result_path.exists()
        at_work = bool(held) or (held is None and not done and not over)  # None: the file system has no locks
        if self.run is None and not (self._due(at_work, done, over) and self._begin()):
            return not over
        state = mark_of(self.folder)
        self._send()
        if at_work:
            self._confirm()
        else:
            self._closing = threading.Thread(target=self._close, args=(state,))
            self._closing.start()
        return True

    def _due(self, at_work: bool, done: bool, over: bool) -> bool:
        """Return whether the run is to be begun or continued at wandb. A run at work is due once it has written its
        name in this attempt; the file may be an earlier attempt's. A run at work with a result is being rerun, and is
        due when that is done."""
        if not at_work:
            return (done or over) and unsent(self.folder)
        try:
            announced, locked = (path.stat().st_mtime_ns for path in (self.folder / RUN, self.directory.lock_path))
        except OSError:
            return False
        return not done and not over and announced >= locked

    def _begin(self) -> bool:
        """Begin or continue the run at wandb. Returns False if another follower sends it."""
        try:
            self._lock = FileLock.acquire(self.folder / LOCK, patience=0)
        except LockHeld:
            return False
        sent = read_sent(self.folder)
        self.run = self.service.begin(self.folder, read_json(self.folder / RUN))
        self.last = sent.get("step", -1)
        if self.service.mode == "online" and not sent.get("anew"):  # the server knows what has arrived
            self.last = self.run.summary.get("step", -1) if self.run.resumed else -1
        self._read, self._noted = (0, 0), (time.monotonic(), self.last)
        return True

    def _send(self) -> None:
        """Send the records that wandb lacks. After a rewrite, which a resume begins with, the file is read from its start."""
        assert self.run is not None
        try:
            file = self.directory.history_path.open("rb")
        except FileNotFoundError:
            return
        with file:
            now = os.fstat(file.fileno())
            inode, offset = self._read
            if inode != now.st_ino or offset > now.st_size:
                offset = 0
            file.seek(offset)
            lines = file.read().split(b"\n")
        self._read = (now.st_ino, offset + sum(len(line) + 1 for line in lines[:-1]))  # the last line is incomplete
        for line in lines[:-1]:
            with suppress(ValueError):  # a kill tore the line; the resume mends it
                record = parsed(line)
                if record["step"] > self.last:
                    self.run.log({key: math.nan if value is None else value for key, value in record.items()})
                    self.last = record["step"]

    def _confirm(self) -> None:
        """Write down from time to time which step is sent and on disk, in case this process is killed."""
        when, step = self._noted
        if self.last != step and time.monotonic() - when > CONFIRM_SECONDS:
            self._note(step=step)
            self._noted = (time.monotonic(), self.last)

    def _note(self, **sent: Any) -> None:
        with suppress(OSError):
            atomic_write(self.folder / SENT, json.dumps(sent) + "\n")

    def _close(self, state: str) -> None:
        """End the run at wandb with its status, in a thread of its own, since a lost server delays this."""
        assert self.run is not None
        row = self.directory.read_result()
        ended = {"status": "failed"} if row is None else {key: row.get(key) for key in SUMMARY}
        try:
            self.run.summary.update(ended)
            self.run.finish(exit_code=int(ended["status"] == "failed"))
        except TimeoutError:
            self.service.left.append(str(Path(self.run.dir).parent))
            self.through = True
        except Exception as error:
            self._give_up(error)
        else:
            self._note(step=self.last, end=state)
            self.through = row is not None
        self._release()

    def _give_up(self, error: Exception) -> None:
        why = f"stopped at run {self.folder.name} ({reason(error)}); training goes on without it"
        self.service.warn_once("stopped", why)
        self.through = True
        self._release()

    def _release(self) -> None:
        self.run = None
        self.service.open.discard(self.folder)
        if self._lock is not None:
            self._lock.release()


def reason(error: BaseException) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def follow(folders: list[str], service: WandbSession, over: threading.Event) -> None:
    """Send the records of the runs in `folders` until all have ended, or the command is over and the rest is sent."""
    runs = [FollowedRun(Path(folder), service) for folder in folders]
    while runs:
        ended = over.is_set()
        runs = [run for run in runs if run.look(over=ended)]
        if ended:
            time.sleep(0.05)
        else:
            over.wait(LOOK_SECONDS)
    if service.left:
        n, upload = len(service.left), f"`wandb sync --include-online {' '.join(service.left)}`"
        service.warn_once(
            "left", f"the server did not take {n} runs whole in time; {upload} or the same command sends the rest"
        )


def _watch(parent: int, over: threading.Event, seconds: float) -> None:
    """Set `over` when the command's process has gone, and exit `seconds` later even if wandb hangs."""
    while os.getppid() == parent and not over.wait(1):
        pass
    over.set()
    time.sleep(seconds + 1)
    os._exit(1)


def main() -> None:
    """Follow the runs whose folders stdin lists as JSON. Arguments: the mode, and the seconds for wandb to start and to end."""
    mode, start_seconds, end_seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    over = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(os.getppid(), over, end_seconds), daemon=True).start()
    folders = json.load(sys.stdin)
    service = WandbSession(mode, start_seconds, end_seconds)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # wandb-core inherits both, and must not hold the pipe
    os.dup2(null, 1)
    try:
        import wandb

        follow(folders, service, over)
        wandb.teardown()
    except Exception as error:
        service.warn_once("stopped", f"stopped ({reason(error)}); training goes on without it")
    os._exit(0)  # all is written; a wandb-core that hangs on a server exits too


if __name__ == "__main__":
    main()
