"""Clocks, the machine's matmul peak, interleaved steps, and the interval of a ratio."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

DRIFT = 0.10  # of the matmul peak over a run, above which a report says so


def clock(device: str) -> float:
    """Seconds: the process's own processor time on a CPU, which a busy machine does not move; on a GPU the wall's."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def timed(step: Callable[[int], object], device: str) -> Callable[[int], float]:
    """`step`, returning its seconds."""

    def run(number: int) -> float:
        began = clock(device)
        step(number)
        return clock(device) - began

    return run


def interleave(steps: Mapping[str, Callable[[int], float]], *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every step, by contender: one timed step of each in turn, A, B, C, A, B, C, ...

    The order turns by one each round, so that nobody always runs in the wake of the same neighbour.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = steps[name](turn)
            if turn >= warmup:
                times[name].append(seconds)
    return times


def ratio(numerator: Sequence[float], denominator: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """median(numerator) / median(denominator), and its 95 % percentile bootstrap interval.

    Both lists come from the same rounds, so rounds are drawn, not steps: what disturbed a round disturbed both.
    """
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if len(a) != len(b) or not len(a):
        raise ValueError("a ratio needs as many steps of one as of the other")
    picks = np.random.default_rng(0).integers(0, len(a), (draws, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.median(a) / np.median(b)), float(low), float(high)


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """The median of `values` and its 95 % bootstrap interval."""
    return ratio(values, [1.0] * len(values), draws=draws)


def matmul_peak(device: str, seconds: float = 0.6) -> dict[str, float]:
    """FLOP/s of ``torch.matmul`` in each precision, the best of many: 1024^3 on a CPU, 8192^3 on a GPU."""
    import torch

    size = 1024 if device == "cpu" else 8192
    peak = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, device=device, dtype=dtype)
        torch.matmul(a, b, out=out)
        best, end = float("inf"), clock(device) + seconds
        while clock(device) < end:
            began = clock(device)
            torch.matmul(a, b, out=out)
            best = min(best, clock(device) - began)
        peak[name] = 2 * size**3 / best
    return peak


def drift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The largest relative change of a matmul peak over the run."""
    return max(abs(after[name] / before[name] - 1) for name in before)


def machine(device: str) -> dict[str, object]:
    """What a figure needs beside it: processor, versions, date, load."""
    import torch

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    packages = ("lmablate", "torch", "transformers", "accelerate", "x-transformers", "litgpt", "hydra-core")
    return {
        "processor": cpu_name() if device == "cpu" else torch.cuda.get_device_name(0),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := version(name))},
    }


def cpu_name() -> str:
    """The processor's name and the instructions that decide between fp32 and bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(part.split(":", 1) for part in ("".join(line.split("\t")) for line in lines) if ":" in part)
    words = {"avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
    flags = [word for flag, word in words.items() if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine()).strip()} ({', '.join(flags) or 'no AVX-512'})"


def peak_bytes() -> int:
    """The largest resident set of this process so far.

    Linux's ru_maxrss outlives exec: a child reports its parent's memory where that was larger. VmHWM starts anew.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
