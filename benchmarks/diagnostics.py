"""What ``diagnostics=standard`` costs: ``python benchmarks/diagnostics.py [--configs C1] [--rounds 60]``.

Two runs of one shape take turns of one step each; one of them measures after every step. What a step with a measurement takes
over one without, less 1, is a measurement's price in steps; at the option's own cadence it is spread over that many. Processor
seconds. Writes benchmarks/out/diagnostics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import measure  # noqa: E402
from benchmarks.shapes import SHAPES, Shape, Tokens  # noqa: E402

OPTION = "diagnostics=standard"


def stepper(shape: Shape, *words: str) -> Callable[[int], Any]:
    """A run that takes one step of training a call, with the record of it."""
    from benchmarks.ours import config
    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    cfg = config(shape, "runtime.compile=false", "runtime.evaluations=1", "runtime.log_every=1", *words)
    tokens: Any = Tokens(shape.vocab)
    records = Trainer(build_model(cfg), tokens, cfg, folder=None).records()
    next(records)  # before training
    return lambda _: next(records)


def run(shape: Shape, rounds: int) -> dict[str, Any]:
    """Seconds of each step, a measurement's price in steps, and what training costs with it over without."""
    import torch

    from lmablate.config import compose

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    asked = compose([OPTION]).diagnostics
    assert asked is not None
    assert asked.every is not None
    steps = {
        "without": measure.timed(stepper(shape), "cpu"),
        "with": measure.timed(stepper(shape, OPTION, "diagnostics.every=1"), "cpu"),
    }
    about = measure.machine("cpu")
    times = measure.interleave(steps, rounds=rounds, warmup=3)
    price = [value - 1 for value in measure.ratio(times["with"], times["without"])]
    cost = [1 + value / asked.every for value in price]
    plain = shape.tokens_per_step / sorted(times["without"])[rounds // 2]
    return {
        "config": shape.name,
        "option": OPTION,
        "every": asked.every,
        "machine": about,
        "times": times,
        "steps_per_measurement": price,
        "tokens_per_second": {"with": plain / cost[0], "without": plain},
        "cost": cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="C1")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    words = parser.parse_args()
    rounds = max(5, words.rounds // (3 if words.quick else 1))
    results = [run(SHAPES[name], rounds) for name in words.configs.split(",")]
    for result in results:
        value, low, high = result["cost"]
        speed = result["tokens_per_second"]
        print(
            f"{result['config']}: {speed['with']:,.0f} tokens/s with {OPTION}, {speed['without']:,.0f} without: "
            f"{value:.3f} times the processor time [{low:.3f}, {high:.3f}], a measurement every {result['every']} steps"
        )
    OUT.mkdir(exist_ok=True)
    (OUT / "diagnostics.json").write_text(json.dumps({"results": results}, indent=1))


if __name__ == "__main__":
    main()
