"""Slots on cores and on GPUs, from a table of devices that stands in for them."""

from types import SimpleNamespace

import pytest

from lmablate.core.errors import ConfigError
from lmablate.launcher.slots import CONTEXT_GIB, GIB, Device, Slots, check_fit, parallel_jobs

TWO = [Device("0", 80 * GIB), Device("1", 40 * GIB)]


def job(gib=None):
    return SimpleNamespace(cfg=SimpleNamespace(runtime=SimpleNamespace(gpu_memory=gib, device="cuda")))


def test_cores_are_numbered_slots():
    slots = Slots(2)
    assert [slots.acquire(job()) for _ in range(3)] == [0, 1, None]
    assert slots.device(0) is None
    slots.release(0)
    assert slots.acquire(job()) == 0


def test_one_gpu_a_job():
    slots = Slots(2, TWO)
    assert [slots.device(slots.acquire(job())) for _ in range(2)] == ["0", "1"]
    assert slots.acquire(job()) is None
    slots.release(1)
    assert slots.device(slots.acquire(job())) == "1"


def test_more_workers_than_gpus_take_turns():
    slots = Slots(4, TWO)
    assert sorted(slots.device(slots.acquire(job())) for _ in range(4)) == ["0", "0", "1", "1"]


def test_several_jobs_share_a_gpu_by_their_memory():
    slots = Slots(99, TWO)
    taken = []
    while (slot := slots.acquire(job(18.0))) is not None:
        taken.append(slots.device(slot))
    each = 18.0 + CONTEXT_GIB
    assert (taken.count("0"), taken.count("1")) == (80 // each, 40 // each)
    assert parallel_jobs(TWO, [18.0] * 50) == len(taken)
    assert all(slots.left(device) < each for device in TWO)
    assert slots.acquire(job(1.0)) is not None  # a small one still fits
    assert slots.acquire(job()) is None  # a whole GPU is not there
    for slot in list(slots.taken):
        slots.release(slot)
    assert slots.device(slots.acquire(job())) == "0"
    assert slots.device(slots.acquire(job(18.0))) == "1"  # the other is given whole


def test_a_job_that_fits_no_gpu_is_refused():
    check_fit(TWO, [None, 79.0])
    with pytest.raises(ConfigError, match=r"runtime.gpu_memory=80 GiB: the largest GPU here has 79.4"):
        check_fit(TWO, [80.0])


def test_jobs_that_say_nothing_have_a_gpu_each():
    assert parallel_jobs(TWO, [None] * 5) == 2
    assert parallel_jobs(TWO, [None, 4.0]) == 2
    assert parallel_jobs([], []) == 0
