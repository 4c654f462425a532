"""The follower: a process that sends what the runs of a command write to wandb (``python -m lmablate.runs.tracking.follower``).

It tails history.jsonl of every run that is at work, and ends a run at wandb when the run has ended: with the numbers of
result.json, or as failed (exit code 1). It is started and ended by mirror.py. When the process that started it is gone, or asks
it to end, it sends the rest and goes. However it hangs, and however it ends, the runs do not notice.

- The id is the run id, with ``resume="allow"``, always. Online, a rerun continues the same wandb run. Offline, each
  attempt leaves a segment (``wandb/offline-run-<time>-<id>``), which `wandb sync` appends in order of time.
- No step is sent twice: a resumed run repeats the steps after its checkpoint, with the same numbers. The last step that
  was sent stands in wandb_sent.json; online the server knows it better. No wandb step is passed; charts run over `tokens`.
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
from lmablate.core.locks import FileLock, Held, is_held
from lmablate.core.secrets import redacted
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.tracking.client import RUN, SENT, mark_of, read_sent, unsent

if TYPE_CHECKING:
    import wandb

LOCK = ".wandb.lock"  # in a run's folder: one follower at a time sends it
LOOK_SECONDS = 1.0
FLUSH_SECONDS = 1.0  # in which wandb-core has on disk what it was given; its own default is 15
CONFIRM_SECONDS = 5.0  # after which a record counts as sent, should this process be killed
# Of result.json, in the summary of the wandb run.
SUMMARY = (
    *("status", "val_loss", "val_bpb", "val_accuracy", "train_loss", "diverged_at_step"),
    *("n_params", "n_params_non_embedding", "flops_per_token", "tokens"),
)


class Wandb:
    """wandb, as all runs of a follower share it: its mode, what was said of its failures, and what it did not take."""

    def __init__(self, mode: str, start_seconds: float, end_seconds: float) -> None:
        self.mode = mode  # online, offline (perhaps after falling back)
        self.start_seconds, self.end_seconds = start_seconds, end_seconds
        self.open: set[Path] = set()  # folders whose runs are begun and not ended
        self.left: list[str] = []  # folders of runs that the server did not take in time
        self._said: set[str] = set()
        self._words = os.fdopen(os.dup(1), "w")

    def say(self, kind: str, text: str) -> None:
        """Say something in words, once for each kind of failure."""
        if kind not in self._said:
            self._said.add(kind)
            with suppress(OSError):  # nobody listens any more
                print(f"wandb: {redacted(text)}", file=self._words, flush=True)

    def begin(self, folder: Path, run: dict[str, Any]) -> wandb.Run:
        """Start the wandb run of a folder, offline if online will not do. Raises whatever wandb raises."""
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        try:
            return self._init(folder, run)
        except Exception as error:
            if self.mode != "online":
                raise
            self.mode = "offline"
            self.say("online", f"online did not start ({reason(error)}); runs are kept offline")
            if self.open:  # they may still get through; this one is for the next command
                raise
            wandb.teardown()  # which still has the run's id in use
            return self._init(folder, run)

    def _init(self, folder: Path, run: dict[str, Any]) -> wandb.Run:
        import wandb

        settings = wandb.Settings(
            # wandb's own limits lie inside ours, so that it can say what went wrong.
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


class Followed:
    """One run of the command, and what wandb has of it."""

    def __init__(self, folder: Path, service: Wandb) -> None:
        self.folder, self.service = folder, service
        self.directory = RunDirectory(folder.parent, folder.name)
        self.run: wandb.Run | None = None
        self.last = -1  # step sent
        self.through = False  # nothing more is to come of it, or can be sent
        self._lock: FileLock | None = None
        self._closing: threading.Thread | None = None
        self._read = (0, 0)  # of history.jsonl: its inode, and how many of its bytes were sent
        self._noted = (0.0, -1)  # when, and the last step then

    def look(self, *, over: bool) -> bool:
        """Send what is new; False once there is nothing more to come. `over`: the command has ended, and begins no more runs."""
        try:
            return not self.through and self._look(over)
        except Exception as error:  # whatever wandb or the disk does
            self._give_up(error)
            return False

    def _look(self, over: bool) -> bool:
        if self._closing is not None and self._closing.is_alive():
            return True
        held = is_held(self.directory.lock_path)
        done = self.directory.result_path.exists()
        at_work = bool(held) or (held is None and not done and not over)  # None: no locks here
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
        """Is the run to be begun or continued at wandb? One at work is, once it has said what it is called (what stands there may
        be an earlier attempt's); with a result it is made again, and due when that is done."""
        if not at_work:
            return (done or over) and unsent(self.folder)
        try:
            said, locked = (path.stat().st_mtime_ns for path in (self.folder / RUN, self.directory.lock_path))
        except OSError:
            return False
        return not done and not over and said >= locked

    def _begin(self) -> bool:
        """Begin or continue the run at wandb; False where another follower is at it."""
        try:
            self._lock = FileLock.take(self.folder / LOCK, patience=0)
        except Held:
            return False
        sent = read_sent(self.folder)
        self.run = self.service.begin(self.folder, read_json(self.folder / RUN))
        self.last = sent.get("step", -1)
        if self.service.mode == "online" and not sent.get("anew"):  # the server knows what has arrived there
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
        self._read = (now.st_ino, offset + sum(len(line) + 1 for line in lines[:-1]))  # the last has no end yet
        for line in lines[:-1]:
            with suppress(ValueError):  # torn by a kill; the resume mends it
                record = parsed(line)
                if record["step"] > self.last:
                    self.run.log({key: math.nan if value is None else value for key, value in record.items()})
                    self.last = record["step"]

    def _confirm(self) -> None:
        """Note now and then what is sent and on disk by now, in case this process is killed."""
        when, step = self._noted
        if self.last != step and time.monotonic() - when > CONFIRM_SECONDS:
            self._note(step=step)
            self._noted = (time.monotonic(), self.last)

    def _note(self, **sent: Any) -> None:
        with suppress(OSError):
            atomic_write(self.folder / SENT, json.dumps(sent) + "\n")

    def _close(self, state: str) -> None:
        """End the run at wandb as it has ended here; in a thread of its own, since a lost server takes its time."""
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
        self.service.say("stopped", why)
        self.through = True
        self._release()

    def _release(self) -> None:
        self.run = None
        self.service.open.discard(self.folder)
        if self._lock is not None:
            self._lock.release()


def reason(error: BaseException) -> str:
    """Return an error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def follow(folders: list[str], service: Wandb, over: threading.Event) -> None:
    """Send what the runs in `folders` write, until all have ended or the command is over and the rest is sent."""
    runs = [Followed(Path(folder), service) for folder in folders]
    while runs:
        ended = over.is_set()
        runs = [run for run in runs if run.look(over=ended)]
        if ended:
            time.sleep(0.05)
        else:
            over.wait(LOOK_SECONDS)
    if service.left:
        n, upload = len(service.left), f"`wandb sync --include-online {' '.join(service.left)}`"
        service.say(
            "left", f"the server did not take {n} runs whole in time; {upload} or the same command sends the rest"
        )


def _watch(parent: int, over: threading.Event, seconds: float) -> None:
    """End the command's part when the command has gone, and this process a while later, however wandb hangs."""
    while os.getppid() == parent and not over.wait(1):
        pass
    over.set()
    time.sleep(seconds + 1)
    os._exit(1)


def main() -> None:
    """Follow the runs whose folders come in as JSON; arguments: the mode, and seconds for wandb to start and to end."""
    mode, start_seconds, end_seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    over = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(os.getppid(), over, end_seconds), daemon=True).start()
    folders = json.load(sys.stdin)
    service = Wandb(mode, start_seconds, end_seconds)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # wandb-core inherits these, and must not hold the pipe
    os.dup2(null, 1)
    try:
        import wandb

        follow(folders, service, over)
        wandb.teardown()
    except Exception as error:
        service.say("stopped", f"stopped ({reason(error)}); training goes on without it")
    os._exit(0)  # all is written; wandb-core, if it still hangs on a server, goes with us


if __name__ == "__main__":
    main()
