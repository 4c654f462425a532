"""Assign jobs to numbered slots of this machine: on cores, or on GPUs, which several jobs may share by memory.

The list of GPUs is an argument, so that the assignment itself needs none.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmablate.core.errors import ConfigError
from lmablate.core.hardware import cores

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job

log = logging.getLogger(__name__)
GIB = 1 << 30
CONTEXT_GIB = 0.6  # CUDA's own memory on a GPU for each process, besides torch's allocations


@dataclass(frozen=True)
class Device:
    """A GPU: its name in CUDA_VISIBLE_DEVICES, and its memory in bytes (0: not known)."""

    name: str
    memory: int = 0


@dataclass
class Slots:
    """`count` slots, numbered from 0. Slot i is on device i modulo their number, unless jobs state their memory
    (`runtime.gpu_memory`, GiB): then on the device with the most left."""

    count: int
    devices: Sequence[Device] = ()
    taken: dict[int, tuple[str | None, float]] = field(default_factory=dict)  # device and GiB, by slot

    def acquire(self, job: Job) -> int | None:
        """Return a free slot for a job and mark it as taken, or return None while nothing fits."""
        slot = next((i for i in range(self.count) if i not in self.taken), None)
        if slot is None:
            return None
        if not self.devices:
            self.taken[slot] = (None, 0.0)
            return slot
        need = job.cfg.runtime.gpu_memory
        if need is None:
            whole = self._whole(slot)
            if whole is None:
                return None
            self.taken[slot] = (whole.name, whole.memory / GIB)
            return slot
        device = max(self.devices, key=self.left)
        if self.left(device) < need + CONTEXT_GIB:
            return None
        self.taken[slot] = (device.name, need + CONTEXT_GIB)
        return slot

    def device(self, slot: int) -> str | None:
        """Return the GPU of a taken slot."""
        return self.taken[slot][0] if slot in self.taken else None

    def release(self, slot: int) -> None:
        """Mark a slot as free."""
        self.taken.pop(slot, None)

    def left(self, device: Device) -> float:
        """Return the GiB of a device that no job has been given."""
        return device.memory / GIB - sum(gib for name, gib in self.taken.values() if name == device.name)

    def _whole(self, slot: int) -> Device | None:
        """Return a GPU for a job that states no memory: one without jobs, or else in turn one that only such jobs use.
        GPUs are shared in turn only if runtime.workers exceeds their number."""
        users = [name for name, _ in self.taken.values()]
        if free := [device for device in self.devices if device.name not in users]:
            return free[0]
        turn = self.devices[slot % len(self.devices)]
        shared = any(name == turn.name and gib != turn.memory / GIB for name, gib in self.taken.values())
        return turn if self.count > len(self.devices) and not shared else None


def slots_for(jobs: Sequence[Job], count: int) -> Slots:
    """Return the slots of this machine for `jobs`, `count` at a time. Raises ConfigError for a job that fits no GPU."""
    if not jobs or jobs[0].cfg.runtime.device != "cuda":
        _warn_of_oversubscription(jobs, count)
        return Slots(count)
    needs = [job.cfg.runtime.gpu_memory for job in jobs]
    devices = gpus(measured=any(need is not None for need in needs))
    check_fit(devices, needs)
    return Slots(count, devices)


def check_fit(devices: Sequence[Device], needs: Sequence[float | None]) -> None:
    """Raise ConfigError for a need that no device meets, even when empty."""
    most = max((device.memory / GIB for device in devices), default=0.0) - CONTEXT_GIB
    for need in needs:
        if need is not None and need > most:
            raise ConfigError(
                f"runtime.gpu_memory={need:g} GiB: the largest GPU here has {most:.1f} for a run, beside CUDA's own "
                f"{CONTEXT_GIB} GiB; give less, or null for a whole GPU"
            )


def parallel_jobs(devices: Sequence[Device], needs: Sequence[float | None]) -> int:
    """Return the jobs that run at a time: one a GPU, or, if all state their memory, as many of the largest as fit."""
    if not devices or any(need is None for need in needs) or not needs:
        return len(devices)
    largest = max(need for need in needs if need is not None) + CONTEXT_GIB
    return max(1, sum(int(device.memory / GIB / largest) for device in devices))


@cache
def gpus(measured: bool = False) -> tuple[Device, ...]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES, with their memory if `measured`. A separate process measures it, so that
    this one takes no memory on any GPU."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not measured:
        return tuple(map(Device, names))
    code = "import json, torch; n = torch.cuda.device_count(); "
    code += "print(json.dumps([torch.cuda.get_device_properties(i).total_memory for i in range(n)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    try:
        sizes = json.loads(done.stdout)
        return tuple(Device(name, int(size)) for name, size in zip(names, sizes, strict=True))
    except (ValueError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ConfigError(f"runtime.gpu_memory: the memory of the GPUs cannot be read ({reason})") from None


def _warn_of_oversubscription(jobs: Sequence[Job], count: int) -> None:
    """Warn of more threads than cores, which slow every run and change no number."""
    there = cores()
    threads = jobs[0].cfg.runtime.threads if jobs else 1
    if count > 1 and count * threads > there:
        log.warning(
            "%d runs at a time with %d thread%s each on %d cores: they take turns; runtime.workers=%d has a core for each thread",
            *(count, threads, "s" * (threads > 1), there, max(1, there // threads)),
        )
