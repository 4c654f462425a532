"""One contender alone in a fresh process: start-up, compilation, peak memory. Prints one line of JSON.

``python benchmarks/one.py CONFIG NAME TARGET [--steps N] [--nanogpt PATH]``; single_run.py calls it. With ``--serve`` it
takes the steps whose numbers come in on its input, and answers each with its seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def processor_seconds() -> float:
    """Of this process since it began and of the children it has waited for: compilers."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("name")
    parser.add_argument("target", type=int)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--serve", action="store_true")
    words = parser.parse_args()

    import torch

    from benchmarks.contenders import contenders
    from benchmarks.measure import peak_bytes
    from benchmarks.shapes import SHAPES, Tokens

    torch.set_num_threads(1)
    if words.nanogpt:
        from benchmarks.peers import NanoGPT

        NanoGPT.load(words.nanogpt)
    shape = SHAPES[words.config]
    contender = next(c for c in contenders() if c.name == words.name)
    runner = contender.make(shape, Tokens(shape.vocab), words.target)
    runner.step(0)
    first = processor_seconds()
    if words.serve:
        serve(runner, shape.device)
    for number in range(1, words.steps):
        runner.step(number)
    peak = peak_bytes()
    if shape.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"first_step_seconds": first, "peak_bytes": peak}), flush=True)
    os._exit(0)  # a Trainer waits in its thread for steps that do not come


def serve(runner: Any, device: str) -> None:
    """Step as told, until there is nobody to tell."""
    from benchmarks.measure import timed

    step = timed(runner.step, device)
    print(json.dumps({"n_params": runner.n_params, "precision": runner.precision}), flush=True)
    for line in sys.stdin:
        print(step(int(line)), flush=True)
    os._exit(0)


class Worker:
    """A contender in a process of its own that takes its steps when told: no contender sees another's memory allocator."""

    def __init__(self, config: str, name: str, target: int, nanogpt: Path | None) -> None:
        command = _command(config, name, target, nanogpt)
        self.process = subprocess.Popen(
            [*command, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait(self) -> Worker:
        """Once it has taken its first step."""
        facts = json.loads(self._answer())
        self.n_params, self.precision = facts["n_params"], facts["precision"]
        return self

    def seconds(self, number: int) -> float:
        """The processor seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(("{", *"0123456789")):  # libraries greet on the standard output
                return line
        raise RuntimeError(f"its process ended with code {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _command(config: str, name: str, target: int, nanogpt: Path | None) -> list[str]:
    command = [sys.executable, __file__, config, name, str(target)]
    return [*command, "--nanogpt", str(nanogpt)] if nanogpt else command


def alone(config: str, name: str, target: int, *, cache: str, nanogpt: Path | None = None) -> dict[str, Any] | None:
    """What `main` measures, from a process of its own with `cache` for compiled code; None if it failed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in this process and its children, where they are counted
    }
    command = _command(config, name, target, nanogpt)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{config} {name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def cold_and_warm(
    config: str, name: str, target: int, *, compiled: bool, nanogpt: Path | None
) -> dict[str, Any] | None:
    """`alone`, and for a compiled contender once more with the cache that the first one filled."""
    with tempfile.TemporaryDirectory() as cache:
        cold = alone(config, name, target, cache=cache, nanogpt=nanogpt)
        if cold is None or not compiled:
            return cold
        warm = alone(config, name, target, cache=cache, nanogpt=nanogpt) or {}
        return {**cold, "warm_first_step_seconds": warm.get("first_step_seconds")}


if __name__ == "__main__":
    main()
