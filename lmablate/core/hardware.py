"""Measure the speed of this machine once, and keep it in the cache folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lmablate.core.files import atomic_write
from lmablate.core.paths import cache_dir

SIDE = 512  # of the square matrices
TRIALS = 7
PRECISIONS = ("fp32", "bf16")
GAIN = 1.3  # required advantage of bf16, since casts and fp32 parts use up some of it

T = TypeVar("T")


@cache
def matmul_rates(folder: Path | None = None) -> dict[str, float]:
    """Return the speed of one core multiplying matrices in FLOP/s, by precision (``fp32``, ``bf16``).

    Measured in some 50 ms and kept as ``machine.json`` in `folder` (None: the user's cache folder), so that every later
    command on this machine decides the same.
    """
    import torch

    path = (folder or cache_dir()) / "machine.json"
    here = f"{processor()} | torch {torch.__version__}"
    return remembered(path, here, _measure, lambda rates: {name: float(rates[name]) for name in PRECISIONS})


def remembered(path: Path, key: str, measure: Callable[[], T], read: Callable[[Any], T]) -> T:
    """Return the value of `key` in a JSON file. Measure and store it if it is missing or `read` refuses it."""
    try:
        return read(_entries(path)[key])
    except (KeyError, TypeError, ValueError):
        value = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(_entries(path) | {key: value}, indent=1))
    except OSError:  # a read-only home: the next command measures again
        pass
    return value


def _entries(path: Path) -> dict[str, Any]:
    """Return the stored measurements; empty if the file is damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_is_faster(folder: Path | None = None) -> bool:
    """Return whether this processor multiplies bf16 matrices clearly faster than fp32 ones. Without instructions for
    bf16 it emulates them, which is slower."""
    rates = matmul_rates(folder)
    return rates["bf16"] > GAIN * rates["fp32"]


def _measure() -> dict[str, float]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a = torch.ones(SIDE, SIDE, dtype=dtype)
            seconds = []
            for _ in range(TRIALS):
                began = time.perf_counter()
                a @ a
                seconds.append(time.perf_counter() - began)
            best[name] = 2 * SIDE**3 / min(seconds)
        return best
    finally:
        torch.set_num_threads(threads)


def processor() -> str:
    """Return the processor's model and instructions, to tell machines that share a home folder apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor()} {platform.machine()}"
    fields = dict(line.split(":", 1) for line in lines if line.count(":") == 1)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    special = [flag for flag in fields.get("flags", "").split() if flag.startswith(("amx", "avx512_bf16"))]
    return " ".join([fields.get("model name", platform.machine()), *special])
