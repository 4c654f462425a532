"""`make setup`: what it says beforehand and while pip works, and which torch it takes."""

import importlib.util
import sys

import pytest

from lmablate.core.paths import ROOT

PATH = ROOT / "tools" / "set_up.py"
if not PATH.is_file():
    pytest.skip("only a checkout is set up", allow_module_level=True)
spec = importlib.util.spec_from_file_location("set_up", PATH)
set_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(set_up)

SAID = [
    "Collecting torch==2.13.0\n",
    "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (180.0 MB)\n",
    "Processing ./wheels/numpy-2.4.6-cp311.whl (from lmablate==0.2.0)\n",
    "  Using cached wandb-0.31.0-py3-none-manylinux_2_28_x86_64.whl (20.3 MB)\n",
    "Collecting rich>=13\n",
]


def test_pips_output_becomes_one_line_that_says_how_far_it_is():
    assert set_up.state([], 0) == set_up.state(SAID[:1], 0) == "  looking for packages"
    assert set_up.state(SAID[:2], 0) == "  downloading: 1 so far, now torch (180.0 MB)"
    assert set_up.state(SAID, 0) == "  downloading: 3 so far, now wandb (20.3 MB)"
    assert set_up.state([*SAID, "Installing collected packages: a, b, c\n"], 2) == "  installing: 2 of 3 packages"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_or_one_line_on_a_terminal(terminal, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(set_up, "TERMINAL", 0.0)
    monkeypatch.setattr(set_up, "LINES", 0.0)
    monkeypatch.setattr(set_up.time, "sleep", lambda seconds: None)
    steps, installed, said = (
        iter([True] * 3 + [False]),
        iter([10, 10, 11, 11]),
        [*SAID, "Installing collected packages: a, b\n"],
    )
    shown = list(set_up.progress(said, lambda: next(steps), lambda: next(installed)))
    lines = ["  installing: 0 of 2 packages", "  installing: 1 of 2 packages"]
    assert shown == (
        [*(f"\r\x1b[2K{line}" for line in lines), "\r\x1b[2K"] if terminal else [f"{line}\n" for line in lines]
    )


def test_cuda_is_left_out_on_linux_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(set_up.shutil, "which", lambda name: None)
    monkeypatch.setattr(set_up, "Path", lambda path: ROOT / "nothing here")
    monkeypatch.setattr(sys, "platform", "linux")
    assert set_up.wants_cpu_build("") and set_up.wants_cpu_build("cpu") and not set_up.wants_cpu_build("index")
    assert set_up.announcement("use", cpu=True).startswith(
        "Installing some 80 packages, torch for the processor among them"
    )
    assert "torch with CUDA" in set_up.announcement("dev", cpu=False)
    monkeypatch.setattr(set_up.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert not set_up.wants_cpu_build("")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not set_up.wants_cpu_build("")
    assert "CUDA" not in set_up.announcement("use", cpu=False)
