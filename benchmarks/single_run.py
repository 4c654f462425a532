"""One run against other libraries, step by step in one process on one thread.

``python benchmarks/single_run.py [--configs C1,C3] [--quick] [--nanogpt PATH]`` writes benchmarks/out/single_<config>.json.
With ``--apart`` each contender steps in a process of its own, still in turn; that goes to apart_<config>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import measure  # noqa: E402
from benchmarks.contenders import Contender, contenders  # noqa: E402
from benchmarks.one import Worker, cold_and_warm  # noqa: E402
from benchmarks.shapes import SHAPES, Shape, Tokens  # noqa: E402

ROUNDS = {"C0": 200, "C1": 60, "C2": 20, "C3": 15, "C4": 15, "W512": 15, "G1": 30, "G2": 30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default=",".join(SHAPES))
    parser.add_argument(
        "--quick", action="store_true", help="a third of the rounds, and start-up of the eager rows only"
    )
    parser.add_argument("--eager", action="store_true", help="leave the compiled rows out")
    parser.add_argument("--steps-only", action="store_true", help="leave start-up and memory out")
    parser.add_argument("--apart", action="store_true", help="a process for each contender")
    parser.add_argument("--only", default="", help="rows whose names hold one of these words, comma-separated")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for its model.py")
    words = parser.parse_args()
    if words.nanogpt:
        from benchmarks.peers import NanoGPT

        NanoGPT.load(words.nanogpt)
    OUT.mkdir(exist_ok=True)
    for name in words.configs.split(","):
        if name not in SHAPES:
            parser.error(f"--configs {name}: there are {', '.join(SHAPES)}")
        result = run(SHAPES[name], words)
        path = OUT / f"{'apart' if words.apart else 'single'}_{name}.json"
        if "rows" not in result and path.exists():
            continue  # measured on another machine: what is there is worth more than "not measured"
        path.write_text(json.dumps(result, indent=1))


def run(shape: Shape, words: argparse.Namespace) -> dict[str, Any]:
    """Everything about one shape."""
    import torch

    if shape.device == "cuda" and not torch.cuda.is_available():
        print(f"{shape.name}: not measured: no GPU")
        return {"config": shape.name, "not_measured": "no GPU"}
    from benchmarks.ours import flops_per_step, n_params

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    target, tokens = n_params(shape), Tokens(shape.vocab)
    chosen = contenders(compiled=not words.eager)
    if words.only:
        chosen = [c for c in chosen if any(word in c.name for word in ["lmablate, default", *words.only.split(",")])]
    if words.apart:
        runners, missing = start(chosen, shape, target, words.nanogpt)
        steps = {name: runner.seconds for name, runner in runners.items()}
    else:
        runners, missing = build(chosen, shape, tokens, target)
        steps = {name: measure.timed(runner.step, shape.device) for name, runner in runners.items()}
    rounds = max(5, ROUNDS[shape.name] // (3 if words.quick else 1))
    about = measure.machine(shape.device)
    before = measure.matmul_peak(shape.device)
    times = measure.interleave(steps, rounds=rounds, warmup=3)
    after = measure.matmul_peak(shape.device)
    rows = []
    for contender in chosen:
        if contender.name not in runners:
            continue
        runner = runners[contender.name]
        rows.append(
            {
                "name": contender.name,
                "library": contender.library,
                "precision": runner.precision,
                "compiled": contender.compiled,
                "best": contender.best,
                "n_params": runner.n_params,
                "times": times[contender.name],
            }
        )
    result = {
        "config": shape.name,
        "note": shape.note,
        "apart": words.apart,
        "tokens_per_step": shape.tokens_per_step,
        "n_params": target,
        "flops_per_step": flops_per_step(shape),
        "machine": about,
        "peak": {"before": before, "after": after},
        "rows": rows,
        "missing": missing,
    }
    show(result)
    if words.apart:
        for runner in runners.values():
            runner.end()
    elif not words.steps_only:
        runners.clear()
        for row in rows:
            if not (words.quick and row["compiled"]):
                row["alone"] = cold_and_warm(
                    shape.name, row["name"], target, compiled=row["compiled"], nanogpt=words.nanogpt
                )
    return result


def build(chosen: list[Contender], shape: Shape, tokens: Tokens, target: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders that work here, each after its first step, and why the others do not."""
    from benchmarks.peers import NotInstalled

    runners, missing = {}, {}
    for contender in chosen:
        try:
            runner = contender.make(shape, tokens, target)
            runner.step(0)
        except NotInstalled as absent:
            missing[contender.name] = f"{absent} is not installed"
        except Exception as error:
            missing[contender.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        else:
            runners[contender.name] = runner
        if contender.name in missing:
            print(f"{shape.name} {contender.name}: not measured: {missing[contender.name]}", file=sys.stderr)
    return runners, missing


def start(
    chosen: list[Contender], shape: Shape, target: int, nanogpt: Path | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The same, each in a process of its own, started one after the other."""
    runners, missing = {}, {}
    for contender in chosen:
        worker = Worker(shape.name, contender.name, target, nanogpt)
        try:
            runners[contender.name] = worker.wait()
        except RuntimeError as error:
            missing[contender.name] = str(error)
    return runners, missing


def show(result: dict[str, Any]) -> None:
    """The table on the terminal; docs/benchmarks.md is report.py's."""
    from benchmarks.tables import single_table

    print(single_table(result), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # Trainers wait in their threads for steps that do not come
