"""Install lmablate into .venv, and say beforehand what that takes: ``python tools/set_up.py [use|dev]`` (make setup, make dev).

``use`` has what training and reports need; ``dev`` adds what tests, linters, notebooks and the optional engines need.
On Linux, PyPI's torch brings CUDA's libraries (2.7 GB to download). Where there is no NVIDIA GPU, the processor's build
comes from pytorch.org instead. ``TORCH=cpu`` or ``TORCH=index`` (your package index) chooses one, and a torch that is
installed already stays.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Packages, gigabytes on the disk with torch's CPU build, and minutes, with room for a slower network than the one measured
# (dev: 1 minute on two quiet cores beside a fast mirror).
TAKES = {"use": (80, 1.5, 2), "dev": (160, 2.0, 4)}
CUDA_GIGABYTES = 2.7  # more to download
LINES, TERMINAL = 10.0, 0.5  # seconds between two lines of progress


def main() -> int:
    """Set up .venv. Return 0, or pip's exit code."""
    kind = sys.argv[1] if len(sys.argv) > 1 else "use"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print("lmablate needs Python 3.11 to 3.13; choose one with: make setup PY=python3.12")
        return 1
    cpu = wants_cpu_build(os.environ.get("TORCH", ""))
    print(announcement(kind, cpu=cpu), flush=True)
    if not (VENV / "bin" / "python").exists():
        try:
            venv.create(VENV, with_pip=True, symlinks=os.name != "nt")
        except (subprocess.CalledProcessError, OSError):
            print("Python's venv does not work. On Debian and Ubuntu, first: apt install python3-venv")
            return 1
    began = time.monotonic()
    if cpu and not list(VENV.glob("lib/*/site-packages/torch-*.dist-info")):
        pin = next(
            line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
        )
        if pip("--no-deps", "--retries", "1", "--timeout", "15", "--index-url", CPU_INDEX, pin, shows_errors=False):
            print(
                "pytorch.org cannot be reached, so torch comes from your package index, with CUDA if that is PyPI.",
                flush=True,
            )
    if code := pip("--no-compile", "-c", "constraints.txt", "-e", ".[dev]" if kind == "dev" else "."):
        return code
    print(f"installed in {time.monotonic() - began:.0f} s. Next: make demo, or source .venv/bin/activate and lmablate")
    return 0


def wants_cpu_build(choice: str) -> bool:
    """Return whether torch should come as the processor's build. `choice` is ``cpu``, ``index`` or empty."""
    gpu = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    return choice == "cpu" or (choice != "index" and sys.platform == "linux" and not gpu)


def announcement(kind: str, *, cpu: bool) -> str:
    """Return what will be installed, how large it is and about how long it takes."""
    packages, gigabytes, minutes = TAKES[kind]
    cuda = sys.platform == "linux" and not cpu
    build = "torch with CUDA" if cuda else "torch for the processor"
    more = f", and {CUDA_GIGABYTES} GB to download for CUDA" if cuda else ""
    return f"Installing some {packages} packages, {build} among them, into .venv: {gigabytes} GB, about {minutes} minutes{more}."


def pip(*words: str, shows_errors: bool = True) -> int:
    """Run pip's install, and show its progress. Return its exit code."""
    command = [
        VENV / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        *words,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    reader = Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    for line in progress(said, reader.is_alive, lambda: len(list(VENV.glob("lib/*/site-packages/*.dist-info")))):
        print(line, end="", flush=True)
    code = process.wait()
    if code and shows_errors:
        print("".join(line for line in said if re.match(r"ERROR|error", line)) or "".join(said[-20:]), end="")
    return code


def progress(said: list[str], alive: Callable[[], bool], installed: Callable[[], int]) -> Iterator[str]:
    """Yield text to print while pip works: one line that is replaced on a terminal, new lines elsewhere.

    `said` grows with pip's output, and `installed` counts the packages that are there."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    before, due, last, shown = installed(), 0.0, time.monotonic(), ""
    while alive():
        time.sleep(0.1)
        if (now := time.monotonic()) - last < due:
            continue
        due, last = TERMINAL if terminal else LINES, now
        if (line := state(said, installed() - before)) != shown:
            shown = line
            yield f"\r\x1b[2K{line}" if terminal else f"{line}\n"
    if terminal and shown:
        yield "\r\x1b[2K"


def state(said: list[str], added: int) -> str:
    """Return what pip is doing, from its output and the number of packages `added`."""
    for line in said[::-1]:
        if line.startswith("Installing collected packages:"):
            return f"  installing: {max(0, added)} of {line.count(',') + 1} packages"
        if found := re.match(r"\s*(?:Downloading|Using cached) (?:\S*/)?([\w.]+?)-\d\S*(.*)", line):
            ready = sum("Downloading" in one or "Using cached" in one or "Processing" in one for one in said)
            return f"  downloading: {ready} so far, now {found[1]}{found[2].rstrip()}"
    return "  looking for packages"


if __name__ == "__main__":
    sys.exit(main())
