"""K runs as one program against K runs one after the other.

``python benchmarks/gang.py [--configs C0,C1] [--sizes 1,2,4,8] [--quick]`` writes benchmarks/out/gang_<config>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import measure  # noqa: E402
from benchmarks.ours import compile_word, config  # noqa: E402
from benchmarks.shapes import SHAPES, Shape, Tokens  # noqa: E402

SIZES = (1, 2, 4, 8, 16, 32)
COMPILED = (8,)  # sizes whose compiled gangs are timed too
LONG = 50  # steps after which members are compared with solo runs once more
ROUNDS = {"C0": 60, "C1": 20, "C2": 8, "C3": 6}


def members(shape: Shape, tokens: Tokens, size: int, *, compiled: bool = False) -> list[Any]:
    """Trainers that differ in seed and learning rate."""
    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    out = []
    for k in range(size):
        words = [f"seed={k}", f"optim.lr={1e-3 * (1 + k)}", f"runtime.compile={compile_word(compiled)}"]
        cfg = config(shape, *words)
        out.append(Trainer(build_model(cfg), tokens, cfg, folder=None))  # type: ignore[arg-type]
    return out


class Ganged:
    """`size` members in one program; a step is one optimizer step of each."""

    def __init__(self, shape: Shape, tokens: Tokens, size: int, *, compiled: bool = False) -> None:
        from lmablate.training.gang import MemberStack

        self.trainers = members(shape, tokens, size, compiled=compiled)
        self.stack = MemberStack(list(self.trainers), compiled=compiled)

    def step(self, number: int) -> None:
        rows = []
        for trainer in self.trainers:
            trainer._set_lr(number)
            rows.append(trainer.rows(number))
        for trainer, nats in zip(self.trainers, self.stack.backward(rows), strict=True):
            trainer.apply(nats)
        for trainer in self.trainers:
            trainer.drain_pending()


class Solo:
    """One run alone."""

    def __init__(self, shape: Shape, tokens: Tokens, *, compiled: bool) -> None:
        (self.trainer,) = members(shape, tokens, 1, compiled=compiled)
        if compiled:
            self.trainer.compile()

    def step(self, number: int) -> None:
        self.trainer._step(number)
        self.trainer.drain_pending()


def equality(shape: Shape, tokens: Tokens, steps: int, size: int = 3) -> dict[str, Any]:
    """Are the weights of members those of solo runs after `steps` steps? The largest difference, relative and in ulp."""
    import torch

    gang = Ganged(shape, tokens, size)
    alone = members(shape, tokens, size)
    for number in range(steps):
        gang.step(number)
        for trainer in alone:
            trainer._step(number)
            trainer.drain_pending()
    worst, ulps = 0.0, 0.0
    for mine, theirs in zip(gang.trainers, alone, strict=True):
        for a, b in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
            a, b = a.detach(), b.detach()
            if not torch.equal(a, b):
                gap = (a - b).abs()
                worst = max(worst, float(gap.max() / b.abs().max()))
                spacing = (torch.nextafter(b, b.new_tensor(float("inf"))) - b).abs()
                ulps = max(ulps, float((gap / spacing).max()))
    return {"steps": steps, "bitwise": worst == 0.0, "relative": worst, "ulp": ulps}


def memory(name: str, size: int) -> int:
    """Peak bytes of a fresh process that trains `size` members for three steps (0: of one that imports all it needs)."""
    command = [sys.executable, __file__, "--memory", f"{name}:{size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def memory_here(name: str, size: int) -> None:
    """The child of `memory`."""
    shape = SHAPES[name]
    tokens = Tokens(shape.vocab)
    if size:
        runner = Ganged(shape, tokens, size) if size > 1 else Solo(shape, tokens, compiled=False)
        for number in range(3):
            runner.step(number)
    else:
        members(shape, tokens, 1)
    print(measure.peak_bytes())


def run(shape: Shape, sizes: list[int], *, quick: bool) -> dict[str, Any]:
    """Speed, memory and equality over K at one shape."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tokens = Tokens(shape.vocab)
    solo: dict[str, Any] = {"solo eager": Solo(shape, tokens, compiled=False)}
    if not quick:
        solo["solo compiled"] = Solo(shape, tokens, compiled=True)
    gangs = {f"K={size}": Ganged(shape, tokens, size) for size in sizes if size > 1}
    if not quick:
        gangs |= {
            f"K={size} compiled": Ganged(shape, tokens, size, compiled=True) for size in sizes if size in COMPILED
        }
    steps = {name: measure.timed(runner.step, shape.device) for name, runner in (solo | gangs).items()}
    rounds = max(5, ROUNDS.get(shape.name, 6) // (3 if quick else 1))
    times = measure.interleave(steps, rounds=rounds, warmup=2)
    baseline = memory(shape.name, 0)
    rows = []
    for name in steps:
        size = int(name.split()[0][2:]) if name.startswith("K=") else 1
        row: dict[str, Any] = {"name": name, "size": size, "times": times[name]}
        if size in (1, 8) and not name.endswith("compiled"):
            row["bytes_per_member"] = (memory(shape.name, size) - baseline) / size
        rows.append(row)
    checks = [equality(shape, tokens, steps) for steps in ((1,) if quick else (1, LONG))]
    return {
        "config": shape.name,
        "tokens_per_step": shape.tokens_per_step,
        "rows": rows,
        "equality": checks,
        "plans": [
            plan(shape, tokens, max(sizes), rounds, compiled=compiled)
            for compiled in ((False,) if quick else (False, True))
        ],
        "base_bytes": baseline,
    }


def plan(shape: Shape, tokens: Tokens, runs: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """What the planner chooses for `runs` eager or compiled runs, and how fast that is beside such runs one by one."""
    from lmablate.runs.gang_run import plan_size

    jobs = [(trainer.cfg, tokens) for trainer in members(shape, tokens, runs, compiled=compiled)]
    size, why = plan_size(jobs)  # type: ignore[arg-type]
    speed = (1.0, 1.0, 1.0)  # K = 1 is the solo path itself
    if size > 1:
        alone, together = Solo(shape, tokens, compiled=compiled), Ganged(shape, tokens, size, compiled=compiled)
        steps = {
            name: measure.timed(runner.step, shape.device)
            for name, runner in (("alone", alone), ("together", together))
        }
        times = measure.interleave(steps, rounds=rounds, warmup=2)
        speed = measure.ratio([t * size for t in times["alone"]], times["together"])
    return {"compiled": compiled, "size": size, "why": why, "over_solo": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="C0,C1,C2,C3")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--quick", action="store_true", help="K up to 8, a third of the rounds, C0 and C1 only")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.memory:
        name, size = words.memory.split(":")
        memory_here(name, int(size))
        return
    names = words.configs.split(",")
    sizes = [int(size) for size in words.sizes.split(",")]
    if words.quick:
        names, sizes = [n for n in names if n in ("C0", "C1")], [s for s in sizes if s <= 8]
    OUT.mkdir(exist_ok=True)
    about = measure.machine("cpu")
    from benchmarks.tables import gang_table

    for name in names:
        one = run(SHAPES[name], sizes, quick=words.quick)
        print(name, gang_table(one), one["equality"], one["plans"], sep="\n", flush=True)
        (OUT / f"gang_{name}.json").write_text(json.dumps({"machine": about, "results": [one]}, indent=1))


if __name__ == "__main__":
    main()
