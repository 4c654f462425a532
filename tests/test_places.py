"""Slots on cores and on GPUs, from a table of devices that stands in for them."""

from types import SimpleNamespace

import pytest

from lmablate.core.errors import ConfigError
from lmablate.launcher.slots import CONTEXT_GIB, GIB, Device, Places, check_fit, how_many

TWO = [Device("0", 80 * GIB), Device("1", 40 * GIB)]


def job(gib=None):
    return SimpleNamespace(cfg=SimpleNamespace(runtime=SimpleNamespace(gpu_memory=gib, device="cuda")))


def test_cores_are_numbered_slots():
    places = Places(2)
    assert [places.take(job()) for _ in range(3)] == [0, 1, None]
    assert places.device(0) is None
    places.give_back(0)
    assert places.take(job()) == 0


def test_one_gpu_a_job():
    places = Places(2, TWO)
    assert [places.device(places.take(job())) for _ in range(2)] == ["0", "1"]
    assert places.take(job()) is None
    places.give_back(1)
    assert places.device(places.take(job())) == "1"


def test_more_workers_than_gpus_take_turns():
    places = Places(4, TWO)
    assert sorted(places.device(places.take(job())) for _ in range(4)) == ["0", "0", "1", "1"]


def test_several_jobs_share_a_gpu_by_their_memory():
    places = Places(99, TWO)
    taken = []
    while (slot := places.take(job(18.0))) is not None:
        taken.append(places.device(slot))
    each = 18.0 + CONTEXT_GIB
    assert (taken.count("0"), taken.count("1")) == (80 // each, 40 // each)
    assert how_many(TWO, [18.0] * 50) == len(taken)
    assert all(places.left(device) < each for device in TWO)
    assert places.take(job(1.0)) is not None  # a small one still fits
    assert places.take(job()) is None  # a whole GPU is not there
    for slot in list(places.taken):
        places.give_back(slot)
    assert places.device(places.take(job())) == "0"
    assert places.device(places.take(job(18.0))) == "1"  # the other is given whole


def test_a_job_that_fits_no_gpu_is_refused():
    check_fit(TWO, [None, 79.0])
    with pytest.raises(ConfigError, match=r"runtime.gpu_memory=80 GiB: the largest GPU here has 79.4"):
        check_fit(TWO, [80.0])


def test_jobs_that_say_nothing_have_a_gpu_each():
    assert how_many(TWO, [None] * 5) == 2
    assert how_many(TWO, [None, 4.0]) == 2
    assert how_many([], []) == 0
