"""Disks that are full, read-only or gone. File systems are mounted where nobody else sees them (a mount namespace)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is a command, too: see the end

from chaos.common import Children, Outcome, check_against, environment, run, start, train_here, words

ALONE = ["unshare", "--map-root-user", "--mount"]


def can_mount() -> bool:
    """May we mount file systems in a namespace of our own?"""
    if shutil.which("unshare") is None:
        return False
    test = [*ALONE, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def full_disk(outcome: Outcome, folder: Path, children: Children, *, full: bool) -> None:
    """A run on disks of many sizes, each too small at another moment; then there is room, and it goes on."""
    line = lambda results: words(folder, results, steps=12)  # noqa: E731
    reference = folder / "disk-reference"
    outcome.expect(children.call(lambda: train_here(line(reference))) == 0, "the unbroken run failed")
    if not can_mount():
        return _size_limit(outcome, folder, children, full=full)
    place = folder / "disk"
    place.mkdir()
    size = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    checkpoint = max(path.stat().st_size for path in reference.rglob("*.safetensors"))
    sizes = [4096 * n for n in (1, 2, 4, 6)] + [int(checkpoint * share) for share in (0.5, 1.02, 1.5, 2.1, 2.5, 2.9)]
    for limit in sizes if full else sizes[1::3]:
        code = subprocess.run(
            [*ALONE, sys.executable, __file__, str(place), str(limit), *line(place / "results")],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said = code.stdout + code.stderr
        outcome.times += 1
        outcome.expect(code.returncode == 0, f"{limit} bytes: {said.strip().splitlines()[-1:]}")
        kept = folder / f"disk-{limit}"
        shutil.move(place / "kept", kept)
        check_against(outcome, kept, reference)
    outcome.note = f"tmpfs of {len(sizes) if full else len(sizes[1::3])} sizes, for {size:,} bytes of results"
    return None


def _size_limit(outcome: Outcome, folder: Path, children: Children, *, full: bool) -> None:
    """Where nothing can be mounted: a limit on the size of files, whose error is another and whose effect is the same."""
    reference = folder / "disk-reference"
    line = lambda results: words(folder, results, steps=12)  # noqa: E731
    size = max(path.stat().st_size for path in reference.rglob("*.safetensors"))
    limits = [400, 1500, 3000, size // 2, size - 1]

    def limited(results: Path, limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        train_here(line(results))

    for limit in limits if full else limits[1::2]:
        results = folder / f"limit-{limit}"
        code = children.call(lambda results=results, limit=limit: limited(results, limit))
        outcome.times += 1
        outcome.expect(code == 1, f"{limit} bytes a file: exit code {code}")
        outcome.expect(children.call(lambda results=results: train_here(line(results))) == 0, f"{limit}: cannot go on")
        check_against(outcome, results, reference)
    outcome.note = "no right to mount: a limit on the size of files instead"


def inside(place: Path, limit: int, line: list[str]) -> int:
    """In a namespace of our own: train on a disk of `limit` bytes until it is full, and on when it is not."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "tmpfs", str(place)], check=True)
    first = run(*line)
    if first.returncode not in (1, 2):
        print(f"on the full disk: exit code {first.returncode}, and not 1 or 2")
        return 1
    if "no space left" not in (first.stdout + first.stderr).lower():
        print(f"on the full disk: it does not say so: {first.stderr[-300:]}")
        return 1
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    second = run(*line)
    if second.returncode != 0:
        print(f"with room again: exit code {second.returncode}: {second.stderr[-300:]}")
        return 1
    kept = place.parent / "kept-aside"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(place / "results", kept)
    subprocess.run(["umount", str(place)], check=True)
    shutil.move(kept, place / "kept")
    return 0


def full_sweep(outcome: Outcome, folder: Path) -> None:
    """A sweep whose disk fills up: every job fails in words, and the scheduler lives to tell."""
    if not can_mount():
        outcome.note = "skipped: no right to mount"
        return
    place = folder / "sweep-disk"
    place.mkdir()
    line = ["-m", "norm=rms,layer", "seed=0,1", *words(folder, place / "results", "runtime.workers=2", steps=12)]
    script = f"mount -t tmpfs -o size=150k tmpfs {place} && exec {sys.executable} -m lmablate.train {' '.join(line)}"
    done = subprocess.run(
        [*ALONE, "sh", "-c", script], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    outcome.times = 1
    outcome.expect(done.returncode == 1, f"exit code {done.returncode}")
    outcome.expect("no space left" in done.stderr.lower(), f"no word of it: {done.stderr[-300:]}")
    outcome.expect("Traceback" not in done.stderr, "the scheduler shows a trace")


def read_only(outcome: Outcome, folder: Path) -> None:
    """A results directory that cannot be written: exit code 2, in words, before anything is computed."""
    there = folder / "ro"
    line = words(folder, there / "results", steps=4)
    outcome.expect(start(*line).wait() == 0, "the first run failed")
    more = words(folder, there / "results", "seed=5", steps=4)
    if can_mount():
        status = f"{sys.executable} -m lmablate.status {there / 'results'}"
        script = f"mount --bind {there} {there} && mount -o remount,ro,bind {there} && {status} && "
        script += f"{sys.executable} -m lmablate.train {' '.join(more)}"
        done = subprocess.run(
            [*ALONE, "sh", "-c", script], env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        outcome.times += 1
        outcome.expect(done.returncode == 2, f"read-only mount: exit code {done.returncode}")
        outcome.expect("read-only file system" in done.stderr.lower(), f"no word of it: {done.stderr[-300:]}")
        outcome.expect("1 done" in done.stdout, "lmablate.status cannot look at a read-only directory")
        outcome.expect("Traceback" not in done.stderr, "a trace")
    file = folder / "a-file"
    file.write_text("no folder")
    done = run(*words(folder, file / "results", steps=4))
    outcome.times += 1
    outcome.expect(
        done.returncode == 2 and "not a directory" in done.stderr.lower(), f"under a file: {done.stderr[-300:]}"
    )
    outcome.expect("Traceback" not in done.stderr, "a trace")


def vanished(outcome: Outcome, folder: Path) -> None:
    """The results directory is removed while runs are at work: they fail in words, and leave no half of a run behind."""
    reference = folder / "vanish-reference"
    grid = ("-m", "seed=0,1")
    outcome.expect(start(*grid, *words(folder, reference, steps=80)).wait() == 0, "the unbroken sweep failed")
    results = folder / "vanish"
    for line in (grid, ()):  # a sweep, and a single run
        errors = folder / "vanish.err"
        with errors.open("wb") as file:
            process = start(*line, *words(folder, results, "runtime.workers=2", steps=80), stderr=file)
        deadline = time.monotonic() + 60
        while not list(results.glob("*/checkpoint/step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.rename(results, folder / "vanish-gone")
        code = process.wait(120)
        outcome.times += 1
        outcome.expect(code == 1, f"exit code {code}")
        outcome.expect("removed or replaced" in errors.read_text(), f"no word of it: {errors.read_text()[-300:]}")
        outcome.expect(not list(results.glob("*/history.jsonl")), "half a history was begun anew")
        shutil.rmtree(folder / "vanish-gone")
        shutil.rmtree(results, ignore_errors=True)
    outcome.expect(start(*grid, *words(folder, results, steps=80)).wait() == 0, "it cannot be run again")
    check_against(outcome, results, reference)


if __name__ == "__main__":
    sys.exit(inside(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
