"""Command lines as people mistype them, over all commands: tests/fuzz says what must hold of each."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.__main__ import faults
from fuzz.breaking import Line
from fuzz.child import Outcome
from fuzz.valid import GENERATORS, commands, valid

SEED = "LMABLATE_FUZZ_SEED"  # of the lines; LMABLATE_FUZZ_LINES: how many


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each line runs in a fork")
def test_broken_lines_are_refused_in_words_and_leave_nothing():
    words = ["--lines", os.environ.get("LMABLATE_FUZZ_LINES", "2000")]
    if seed := os.environ.get(SEED):
        words += ["--seed", seed]
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "fuzz"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def test_every_command_has_valid_lines():
    """A command that is new has to say what a user would give it; figures of analysis/ all take the same."""
    own = [name.removesuffix(".__main__") for name in commands() if not name.startswith("lmablate.analysis.")]
    assert set(own) == {name for name in GENERATORS if ".analysis." not in name}
    r = random.Random(0)
    assert {valid(r, ["0" * 12, "1" * 12])[0] for _ in range(2000)} >= set(GENERATORS)


@pytest.mark.parametrize(
    ("outcome", "after", "fault"),
    [
        (Outcome(2, "", "error: no such key", 0.1), {}, ""),
        (Outcome(2, "", "error: no such key", 0.1), {"work/results": "folder"}, "refused, and yet written"),
        (Outcome(0, "", "", 0.1), {"work/results": "folder"}, ""),
        (Outcome(0, "", "", 0.1), {"work/else": "folder"}, "not asked for"),
        (Outcome(1, "", "Traceback (most recent call last):", 0.1), {}, "a stack trace"),
        (Outcome(2, "", "", 0.1), {}, "without a word"),
        (Outcome(-6, "", "", 0.1), {}, "exit code -6"),
        (Outcome(None, "", "", 60.0), {}, "no end"),
    ],
)
def test_what_the_fuzz_calls_a_fault(outcome, after, fault):
    found = faults(Line("lmablate.train", ["norm=rms"], broken=1), outcome, {}, after)
    assert fault in "; ".join(found) if fault else not found
