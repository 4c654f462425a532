"""Freed memory stays in the process, and no number changes with it."""

import platform
import subprocess
import sys

import pytest

STEP = """
import sys, torch
if {keep}:
    from lmablate.training.memory import keep_freed_memory
    assert keep_freed_memory()
torch.set_num_threads(1)
torch.manual_seed(0)
import resource
def step():
    x = torch.randn(4_000_000)
    return float((x * 2).exp().mean())
first = step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
values = [step() for _ in range(20)]
print(first, values[-1], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_blocks_are_reused_and_values_stay_the_same():
    out = {}
    for keep in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", STEP.format(keep=keep)], capture_output=True, text=True, check=True
        )
        out[keep] = done.stdout.split()
    assert out[True][:2] == out[False][:2]
    assert int(out[True][2]) * 1.5 < int(out[False][2]), "page faults of twenty steps, with and without"
