"""What the chaos scenarios share: a small real sweep, runs in forked children, and what must hold of a results directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus import write_corpus

# Two layers, dropout so that its noise must survive, a checkpoint after every step so that most instants are inside a write.
BASE = (
    "data=files", "tokenizer=bytes", "model.d_model=32", "model.n_layers=2", "model.context_length=32", "model.dropout=0.1",
    "trainer.batch_size=4", "trainer.precision=fp32", "data.val_bytes=400", "runtime.evaluations=3", "runtime.log_every=1",
    "runtime.checkpoint_seconds=0", "runtime.wandb=disabled", "runtime.device=cpu", "runtime.compile=false",
)  # fmt: skip
NUMBERS = ("step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb")


@dataclass
class Outcome:
    """A line of the table."""

    scenario: str
    times: int = 0
    faults: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float = 0.0

    def expect(self, condition: object, what: str) -> None:
        if not condition:
            self.faults.append(what)


@contextmanager
def scenario(name: str, outcomes: list[Outcome]) -> Iterator[Outcome]:
    """One line of the table; an exception is a fault like any other."""
    outcome = Outcome(name)
    began = time.monotonic()
    print(f"{name} ...", flush=True)
    try:
        yield outcome
    except Exception as error:
        traceback.print_exc()
        outcome.faults.append(f"{type(error).__name__}: {error}".splitlines()[0])
    outcome.seconds = time.monotonic() - began
    outcomes.append(outcome)
    for fault in outcome.faults[:5]:
        print(f"    FAULT: {fault}", flush=True)


def corpus(folder: Path) -> Path:
    return write_corpus(folder / "text") if not (folder / "text").exists() else folder / "text"


def words(folder: Path, results: Path, *more: str, steps: int = 30) -> list[str]:
    """The command line of the sweep."""
    return [*BASE, f"trainer.steps={steps}", f"data.paths={corpus(folder)}/*.txt", f"results_dir={results}", *more]


def start(*line: str, **more: Any) -> subprocess.Popen[bytes]:
    """``lmablate train``, as a user would."""
    return subprocess.Popen([sys.executable, "-m", "lmablate.train", *line], **{**quiet(), **more})


def run(
    *line: str, module: str = "lmablate.train", timeout: float = 600, **more: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *line]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(), check=False, **more
    )


def quiet() -> dict[str, Any]:
    return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment()}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def rows(results: Path) -> dict[str, dict[str, Any]]:
    """Result rows by run id, of the files that can be read."""
    from lmablate.runs.run_directory import RunDirectory

    found = {path.name: RunDirectory(results, path.name).read_result() for path in results.iterdir() if path.is_dir()}
    return {run_id: row.model_dump(exclude_unset=True) for run_id, row in found.items() if row is not None}


def history(results: Path, run_id: str) -> list[tuple[Any, ...]]:
    """The numbers of a history, without times."""
    lines = (results / run_id / "history.jsonl").read_bytes().splitlines()
    return [tuple(record.get(name) for name in NUMBERS) for record in map(json.loads, lines)]


def check_against(outcome: Outcome, results: Path, reference: Path) -> None:
    """Every run has to the bit the numbers of the unbroken one, every file can be read, and nothing is left lying about."""
    mine, theirs = rows(results), rows(reference)
    outcome.expect(set(mine) == set(theirs), f"{len(mine)} of {len(theirs)} runs have a result")
    for run_id in set(mine) & set(theirs):
        for name in ("status", "val_loss", "val_bpb", "train_loss", "init_val_loss", "tokens", "diverged_at_step"):
            outcome.expect(mine[run_id][name] == theirs[run_id][name], f"{run_id}: another {name}")
        outcome.expect(history(results, run_id) == history(reference, run_id), f"{run_id}: another history")
        check_files(outcome, results / run_id)


def check_files(outcome: Outcome, folder: Path) -> None:
    """The files of a finished run are whole, and no more than they should be."""
    from lmablate.runs.config_file import read_config
    from lmablate.training.checkpoint import checkpoints, read_checkpoint

    read_config(folder / "config.yaml")
    for path in checkpoints(folder / "checkpoint"):
        read_checkpoint(path)
    for line in (folder / "attempts.jsonl").read_bytes().splitlines():
        try:
            json.loads(line)
        except ValueError:  # of an attempt that was killed while it signed in
            continue
    kept = [path.name for path in (folder / "checkpoint").iterdir()]
    outcome.expect(1 <= len(kept) <= 2, f"{folder.name}: checkpoint/ holds {', '.join(sorted(kept)) or 'nothing'}")
    # The last heartbeat comes after the result; a kill inside of it leaves a hidden file of a few bytes, which nobody reads.
    left = [path.name for path in folder.glob(".*.tmp") if not path.name.startswith(".status.json.")]
    outcome.expect(not left, f"{folder.name}: {', '.join(left)} left over")


def attempts(results: Path, run_id: str) -> int:
    path = results / run_id / "attempts.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Children:
    """Forks children of a process that has imported everything and has no threads, so that a run costs a tenth of a second."""

    def __init__(self) -> None:
        from lmablate.launcher.forkserver import warm_up

        threads = warm_up(["lmablate.config", "lmablate.launcher.jobs"])
        if threads != 1:
            raise RuntimeError(f"{threads} threads: children cannot be forked safely")

    def call(self, work: Callable[[], object], log: Path | None = None) -> int:
        """Do `work` in a child; its exit code (0: it returned), negative for the signal that killed it."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with open(log or os.devnull, "ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train_here(line: Sequence[str]) -> None:
    """One run in this process."""
    from lmablate.config import compose
    from lmablate.runs.prepared import prepare_run
    from lmablate.runs.run import execute

    cfg = compose(list(line))
    execute(prepare_run(cfg))


def descendants(pid: int) -> dict[int, int]:
    """Process ids below `pid`, with their parents."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found: dict[int, int] = {}
    grew = True
    while grew:
        more = {one: up for one, up in parents.items() if one not in found and (up == pid or up in found)}
        found |= more
        grew = bool(more)
    return found


def kill(pid: int, below: int) -> bool:
    """SIGKILL to a process that is still `below` or below it: by a handle, so that no other can be meant."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if pid != below and pid not in descendants(below):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
