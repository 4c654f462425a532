"""A step of the laptop rung, eager and compiled, in turns in one process: ``python -m benchmarks.rung [--widths 64,128] [--gangs 2,4]``.

Prints milliseconds of processor time a step, tokens a second, the ratio to compiled blocks, the share of the matmul peak, the seconds of
compiling, the losses of the first steps, and where the time of a compiled step goes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.measure import cpu_name, interleave, matmul_peak, ratio, timed
from benchmarks.ours import Ours, flops_per_step
from benchmarks.shapes import Shape, Tokens
from lmablate.training.compile import compile_model
from lmablate.training.gang import MemberStack

BLOCKS = "compiled, by block"
LOSSES = 20  # steps


def rung(width: int) -> Shape:
    """The laptop tier's shape: 4 layers, 4 heads, 16 texts of 128 tokens, BPE of 1,024."""
    return Shape(f"rung {width}", width, 4, 4, 128, 16, 1024, "laptop tier")


def trained(shape: Shape, how: str) -> tuple[Ours, float]:
    """A run that is eager, compiled by block or in one graph, and the processor seconds that compiling took."""
    run = Ours(shape, Tokens(shape.vocab), precision="bf16", compiled=False)
    trainer, began = run.trainer, time.process_time()
    if how == BLOCKS:
        rows = trainer.rows(0)
        compile_model(trainer.model, run.cfg, lambda: trainer.backward(rows))
    elif how != "eager":
        trainer.compile()
    return run, time.process_time() - began


def gang(shape: Shape, size: int) -> Callable[[int], None]:
    """A step of `size` compiled members."""
    members = [Ours(shape, Tokens(shape.vocab), precision="bf16", compiled=False).trainer for _ in range(size)]
    stack = MemberStack(members, compiled=True)

    def step(number: int) -> None:
        nats = stack.backward([member.rows(number) for member in members])
        for member, loss in zip(members, nats, strict=True):
            member.apply(loss)
            member.drain_pending()

    return step


def profile(run: Ours, steps: int = 10) -> list[tuple[str, float]]:
    """Milliseconds a step of the largest operations, from the faster half of their calls: a busy machine only adds."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(steps):
            run.step(number)
    calls: dict[str, list[float]] = {}
    for event in found.events():
        name = "compiled kernels and their calls" if "CompiledFx" in event.name else event.name
        calls.setdefault(name, []).append(event.self_cpu_time_total / 1e3)
    sums = {name: statistics.mean(sorted(ms)[: max(1, len(ms) // 2)]) * len(ms) / steps for name, ms in calls.items()}
    return sorted(sums.items(), key=lambda item: -item[1])[:8]


def losses(run: Ours) -> list[float]:
    """The losses of the first steps."""
    found = []
    for number in range(LOSSES):
        run.trainer._step(number)
        found += [loss for loss, _ in run.trainer.drain_pending()]
    return found


def report(width: int, rounds: int, gangs: list[int], peak: dict[str, float]) -> None:
    shape = rung(width)
    runs, seconds, curves = {}, {}, {}
    for how in (BLOCKS, "compiled, one graph", "eager"):
        runs[how], seconds[how] = trained(shape, how)
        curves[how] = losses(runs[how])
    steps: dict[str, Callable[[int], Any]] = {how: run.step for how, run in runs.items()}
    steps |= {f"compiled gang of {size}": gang(shape, size) for size in gangs}
    times = interleave({how: timed(step, "cpu") for how, step in steps.items()}, rounds=rounds, warmup=3)
    print(f"\n{shape.name}: {shape.tokens_per_step} tokens a step")
    print(
        "| | ms a step and member | tokens/s | speed over blocks [95 %] | share of bf16 peak | compiling, s | loss after 20 steps |"
    )
    print("|---|---|---|---|---|---|---|")
    for how, values in times.items():
        size = int(how.split()[-1]) if "gang" in how else 1
        own = [value / size for value in values]
        at, low, high = ratio(times[BLOCKS], own)
        ms = statistics.median(own)
        share = flops_per_step(shape) / ms / peak["bf16"]
        more = f"{seconds[how]:.1f} | {curves[how][-1]:.4f}" if how in runs else " | "
        print(
            f"| {how} | {1e3 * ms:.1f} | {shape.tokens_per_step / ms:,.0f} | {at:.2f} [{low:.2f}, {high:.2f}] | {share:.0%} | {more} |"
        )
    print("\nms of a step in one graph, from the faster half of the calls:")
    for name, ms in profile(runs["compiled, one graph"]):
        print(f"{ms:7.2f}  {name[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="64,128")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--gangs", default="", help="sizes of compiled gangs to time too, such as 2,4,8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    peak = matmul_peak("cpu")
    print(
        f"{cpu_name()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; bf16 peak {peak['bf16'] / 1e9:.0f} GFLOP/s"
    )
    for width in map(int, args.widths.split(",")):
        report(width, args.rounds, [int(size) for size in args.gangs.split(",") if size], peak)


if __name__ == "__main__":
    main()
