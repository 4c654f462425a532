"""Precision and host waits on a GPU, held without one: fake tensors on a device that does not exist (tests/fake_cuda)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_precision import MORE, OPTIONS, RULE

HERE = Path(__file__).parent / "fake_cuda"
TESTED = "2.13"  # the stand-in leans on names that torch may change
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in for a device is compiled with g++"),
    pytest.mark.skipif(not torch.__version__.startswith(TESTED), reason=f"the stand-in was tried with torch {TESTED}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is here"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    library = tmp_path_factory.mktemp("stand_in") / "stand_in.so"
    torch_folder = Path(torch.__file__).parent
    words = [
        "g++",
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-shared",
        f"-I{torch_folder / 'include'}",
        str(HERE / "stand_in.cpp"),
    ]
    subprocess.run([*words, f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)], check=True)
    run = subprocess.run([sys.executable, str(HERE), str(library)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_the_table_of_dtypes_is_that_of_a_cpu_for_every_option(found):
    assert len(found["table"]) == len(OPTIONS) + len(MORE)
    for words, places in found["table"].items():
        for place, dtypes in places.items():
            assert dtypes == [str(RULE[place])], (words, place)


def test_a_training_step_does_not_wait_for_the_device(found):
    assert found["waits"] == {}
