"""Signals, hangs, lack of memory, numbers that are not finite, clocks that jump."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

from chaos.common import Children, Outcome, check_against, descendants, rows, run, start, train_here, words

PART = """
import os, time
from pathlib import Path
import torch

class Hangs(torch.nn.RMSNorm):
    def __init__(self, d_model):
        super().__init__(d_model, eps=1e-6)
        self.calls = 0

    @staticmethod
    def n_params(d_model, settings):
        return d_model

    def forward(self, x):
        self.calls += torch.is_grad_enabled()
        mark = Path("hung-once")
        if self.calls > 20 and not mark.exists():
            mark.touch()
            if os.environ.get("DEAF"):
                import signal
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            time.sleep(1000)
        return super().forward(x)
"""


def signals(outcome: Outcome, folder: Path) -> None:
    """SIGTERM and SIGINT to the command: checkpoints, the right exit code, and nobody left; then the same numbers."""
    grid = ("-m", "seed=0,1")
    reference = folder / "signal-reference"
    line = lambda results: [*grid, *words(folder, results, "runtime.workers=2", steps=150)]  # noqa: E731
    outcome.expect(start(*line(reference)).wait() == 0, "the unbroken sweep failed")
    for name, numbers, code in (
        ("SIGTERM", [signal.SIGTERM], 143),
        ("SIGINT once", [signal.SIGINT], 130),
        ("SIGINT twice", [signal.SIGINT, signal.SIGINT], 130),
    ):
        results = folder / f"signal-{name.replace(' ', '-')}"
        process = start(*line(results))
        deadline = time.monotonic() + 60
        while len(list(results.glob("*/checkpoint/step-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        below = descendants(process.pid)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        got = process.wait(120)
        outcome.times += 1
        outcome.expect(got == code, f"{name}: exit code {got}")
        left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
        outcome.expect(not left, f"{name}: {len(left)} processes are left")
        checkpoints = {path.parent.parent.name for path in results.glob("*/checkpoint/step-*")}
        outcome.expect(len(checkpoints) == 2, f"{name}: {len(checkpoints)} runs have a checkpoint")
        outcome.expect(start(*line(results)).wait() == 0, f"{name}: it cannot be continued")
        check_against(outcome, results, reference)


def hung(outcome: Outcome, folder: Path) -> None:
    """A run that hangs, once such that it hears signals and once deaf: stopped at its time limit, tried again, done."""
    home = folder / "hung"
    (home / "own").mkdir(parents=True)
    (home / "own" / "__init__.py").write_text(PART)
    (home / "conf" / "norm").mkdir(parents=True)
    (home / "conf" / "norm" / "hangs.yaml").write_text("# norm=hangs\n_target_: own.Hangs\n")
    more = ("runtime.workers=2", "runtime.time_limit=15", "--trust", "own")
    for deaf in ("", "1"):
        (home / "hung-once").unlink(missing_ok=True)
        os.environ["DEAF"] = deaf
        results = home / f"results{deaf}"
        line = ["-m", "norm=hangs,rms", *words(folder, results, *more, steps=40)]
        first = run(*line, cwd=home)
        outcome.times += 1
        outcome.expect(first.returncode == 1, f"exit code {first.returncode}")
        outcome.expect("runtime.time_limit=15" in first.stderr, f"no word of it: {first.stderr[-300:]}")
        outcome.expect(len(rows(results)) == 1, "the other run was harmed")
        (home / "hung-once").unlink(missing_ok=True)
        again = run(*line, "runtime.retries=1", cwd=home)
        outcome.expect(again.returncode == 0 and len(rows(results)) == 2, f"with a retry: {again.stderr[-300:]}")
    del os.environ["DEAF"]


def memory(outcome: Outcome, folder: Path, children: Children) -> None:
    """A limit on memory that the whole batch does not fit: failed, with the size; with halve_microbatch it goes on."""
    sizes = ("model.context_length=256", "trainer.batch_size=512", "model.d_model=64", "model.dropout=0")
    line = lambda results, *more: words(folder, results, *sizes, *more, steps=2)  # noqa: E731

    def limited(*line: str) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        room = used + (700 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        from lmablate.config import compose
        from lmablate.launcher.jobs import prepare_jobs
        from lmablate.launcher.worker import run_directory
        from lmablate.runs.config_file import write_config

        (job,), _ = prepare_jobs([compose(list(line))])
        write_config(job.cfg, job.directory.config_path)
        os._exit(run_directory(job.directory.path))

    reference, failed, halved = folder / "memory-reference", folder / "memory-failed", folder / "memory-halved"
    outcome.expect(children.call(lambda: train_here(line(reference))) == 0, "the unlimited run failed")
    code = children.call(lambda: limited(*line(failed)))
    outcome.expect(code == 1, f"exit code {code}")
    (status,) = (json.loads(path.read_text()) for path in failed.glob("*/status.json"))
    outcome.expect(status.get("kind") == "out_of_memory", f"recorded as {status}")
    outcome.expect(
        status.get("tried", {}).get("microbatch_size") == 512, f"the size that was tried: {status.get('tried')}"
    )
    log = folder / "memory.log"
    code = children.call(lambda: limited(*line(halved, "runtime.on_oom=halve_microbatch")), log)
    outcome.expect(code == 0, f"halving: exit code {code}: {log.read_text()[-300:]}")
    outcome.times = 2
    ((run_id, row),) = rows(halved).items()
    wanted = rows(reference)[run_id]["val_loss"]
    gap = abs(row["val_loss"] - wanted) / wanted
    size = row["numerics"]["microbatch_size"]
    outcome.expect(size is not None and size < 512, f"microbatch_size {size}")
    outcome.expect(gap < 1e-5, f"another loss: {gap:.1g} away")
    outcome.note = f"512 sequences in a pass became {size}; the loss differs by {gap:.1g}, relative"


def not_finite(outcome: Outcome, folder: Path, children: Children) -> None:
    """A NaN that comes once is repeated away and said in the row; one that comes again is diverged."""
    reference = folder / "nan-reference"
    line = lambda results, *more: words(folder, results, *more, steps=12)  # noqa: E731
    outcome.expect(children.call(lambda: train_here(line(reference))) == 0, "the unbroken run failed")

    def poisoned(line: list[str], times: int) -> None:
        from lmablate.training.trainer import Trainer

        real, left = Trainer.backward, [times]

        def backward(self, rows):  # type: ignore[no-untyped-def]
            nats = real(self, rows)
            if self.progress.step == 6 and left[0]:
                left[0] -= 1
                return nats * float("nan")
            return nats

        Trainer.backward = backward  # type: ignore[method-assign]
        train_here(line)

    once, always = folder / "nan-once", folder / "nan-always"
    outcome.expect(children.call(lambda: poisoned(line(once, "runtime.nan_restarts=2"), 1)) == 0, "once: failed")
    check_against(outcome, once, reference)
    ((_, row),) = rows(once).items()
    outcome.expect(row["provenance"].get("faults", {}).get("not_finite_at") == [7], "once: the row does not say so")
    outcome.expect(children.call(lambda: poisoned(line(always, "runtime.nan_restarts=2"), 99)) == 0, "always: failed")
    ((_, row),) = rows(always).items()
    outcome.expect((row["status"], row["diverged_at_step"]) == ("diverged", 7), "always: not diverged at its step")
    outcome.expect(row["provenance"]["faults"]["not_finite_at"] == [7, 7, 7], "always: not tried again twice")
    outcome.times = 2


def clocks(outcome: Outcome, folder: Path, children: Children) -> None:
    """The wall clock of a run jumps by years, at every reading: the same run, and heartbeats of the right age."""
    from lmablate.launcher.sweep_manifest import run_status

    reference, jumped = folder / "clock-reference", folder / "clock"
    outcome.expect(children.call(lambda: train_here(words(folder, reference, steps=12))) == 0, "the run failed")

    def jumping() -> None:
        import random

        real = time.time
        time.time = lambda: real() + random.uniform(-1e9, 1e9)  # type: ignore[assignment]
        train_here(words(folder, jumped, "runtime.checkpoint_seconds=0.01", steps=12))

    outcome.expect(children.call(jumping, folder / "clock.log") == 0, f"{(folder / 'clock.log').read_text()[-300:]}")
    for run_id in rows(jumped):
        age = run_status(jumped, run_id)["age"]
        outcome.expect(age is not None and age < 60, f"a heartbeat of {age} seconds")
    check_against(outcome, jumped, reference)
    outcome.times = 1
