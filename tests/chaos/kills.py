"""SIGKILLs at random instants over a real sweep: of runs, of the warm process, of the scheduler, of all at once."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

from chaos.common import Outcome, attempts, check_against, descendants, kill, rows, start, words

GRID = ("-m", "norm=rms,layer", "activation=swiglu,gelu", "seed=0,1")
TARGETS = {"a run": 14, "the warm process": 2, "the scheduler": 2, "everything": 2}  # how often, of 20


class Sweep:
    """A sweep under fire, and what was seen of its results."""

    def __init__(self, line: list[str], results: Path) -> None:
        self.line, self.results = line, results
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: dict[str, tuple[int, int, int]] = {}  # of a result: inode, time, attempts

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ensure(self) -> None:
        if not self.alive():
            self.process = start(*self.line)

    def runs(self) -> list[int]:
        """The processes at work on a run: grandchildren, of the warm process."""
        assert self.process is not None
        below = descendants(self.process.pid)
        return [pid for pid, parent in below.items() if parent != self.process.pid]

    def note(self) -> list[str]:
        """Results that are there now; those whose file is another than when it was first seen."""
        changed = []
        for path in self.results.glob("*/result.json"):
            try:
                stat = path.stat()
            except OSError:
                continue
            run_id = path.parent.name
            now = (stat.st_ino, stat.st_mtime_ns, attempts(self.results, run_id))
            if self.seen.setdefault(run_id, now) != now:
                changed.append(run_id)
        return changed

    def strike(self, target: str) -> bool:
        """Kill; False if there was nothing to kill."""
        assert self.process is not None
        main = self.process.pid
        below = descendants(main)
        runs = self.runs()
        if target == "a run":
            return bool(runs) and kill(random.choice(runs), main)
        if target == "the warm process":
            warm = [pid for pid, parent in below.items() if parent == main]
            return bool(warm) and kill(random.choice(warm), main)
        hit = False
        if target == "everything":
            hit = sum(kill(pid, main) for pid in below) > 0
        hit = kill(main, main) or hit
        self.process.wait()
        if target == "the scheduler":  # its children end by themselves
            deadline = time.monotonic() + 60
            while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
                time.sleep(0.02)
        return hit


def random_kills(outcome: Outcome, folder: Path, *, kills: int, seed: int) -> None:
    random.seed(seed)
    reference = folder / "kills-reference"
    steps = 60
    plain = [*GRID, *words(folder, reference, "runtime.workers=2", "runtime.progress=off", steps=steps)]
    outcome.expect(start(*plain).wait() == 0, "the unbroken sweep failed")
    counts = dict.fromkeys(TARGETS, 0)
    rounds = 0
    while outcome.times < kills:
        rounds += 1
        results = folder / f"kills-{rounds}"
        line = [
            *GRID,
            *words(folder, results, "runtime.workers=2", "runtime.progress=off", "runtime.retries=1000", steps=steps),
        ]
        sweep = Sweep(line, results)
        sweep.ensure()
        while outcome.times < kills and len(rows(results) if results.exists() else ()) < 8:
            sweep.ensure()
            deadline = time.monotonic() + 60
            while sweep.alive() and not sweep.runs() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random.random() * 0.4)
            target = random.choices(list(TARGETS), weights=list(TARGETS.values()))[0]
            if sweep.alive() and sweep.strike(target):
                counts[target] += 1
                outcome.times += 1
            outcome.faults += [f"{run_id}: trained again after it was done" for run_id in sweep.note()]
        if sweep.alive():
            assert sweep.process is not None
            outcome.expect(sweep.process.wait(300) == 0, "the sweep did not end well after the last kill")
        outcome.expect(start(*line).wait() == 0, "the last command failed")
        outcome.faults += [f"{run_id}: trained again after it was done" for run_id in sweep.note()]
        check_against(outcome, results, reference)
    said = ", ".join(f"{n} of {target}" for target, n in counts.items() if n)
    outcome.note = f"8 runs of {steps} steps, {rounds} sweep{'s' * (rounds > 1)}; {said}"
