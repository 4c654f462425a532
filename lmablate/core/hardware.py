"""What this machine does fast, measured once and remembered in the cache folder."""

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

SIDE = 512  # of the square matrices that are multiplied
TRIALS = 7
PRECISIONS = ("fp32", "bf16")
GAIN = 1.3  # by which bf16 must win: casts and the fp32 parts take their share of it

T = TypeVar("T")


@cache
def matmul_rates(folder: Path | None = None) -> dict[str, float]:
    """FLOP/s of one core multiplying matrices, by precision (``fp32``, ``bf16``).

    Measured in some 50 ms and kept as ``machine.json`` in `folder` (None: the user's cache folder), so that every later
    command on this machine decides the same.
    """
    import torch

    path = (folder or cache_dir()) / "machine.json"
    here = f"{processor()} | torch {torch.__version__}"
    return remembered(path, here, _measure, lambda rates: {name: float(rates[name]) for name in PRECISIONS})


def remembered(path: Path, key: str, measure: Callable[[], T], read: Callable[[Any], T]) -> T:
    """Return the value of `key` in a JSON file; measure it and keep it there if it is missing or `read` refuses it."""
    try:
        return read(_entries(path)[key])
    except (KeyError, TypeError, ValueError):
        found = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(_entries(path) | {key: found}, indent=1))
    except OSError:  # a read-only home: measured again by the next command
        pass
    return found


def _entries(path: Path) -> dict[str, Any]:
    """What earlier commands measured; nothing, if the file is not whole."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_is_faster(folder: Path | None = None) -> bool:
    """Does this processor multiply bf16 matrices clearly faster than fp32 ones? Where it has no instructions for them
    they are emulated, and slower."""
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
    """The processor's model and instructions, which tell machines with one home folder apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor()} {platform.machine()}"
    facts = dict(line.split(":", 1) for line in lines if line.count(":") == 1)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    special = [flag for flag in facts.get("flags", "").split() if flag.startswith(("amx", "avx512_bf16"))]
    return " ".join([facts.get("model name", platform.machine()), *special])
