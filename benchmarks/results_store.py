"""``python benchmarks/results_store.py``: what commands cost on large results directories, in processor time of this process.

Made-up runs, as tests/fake_results.py writes them: one frame of the live display with 1,000 jobs of which 900 are done, then
`load_runs` and `status` of 5,000 runs, and the report of 100 arms. ``--quick`` takes a tenth of each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fake_results  # noqa: E402

from lmablate import status  # noqa: E402
from lmablate.config import compose  # noqa: E402
from lmablate.launcher.jobs import Job  # noqa: E402
from lmablate.launcher.progress import Board  # noqa: E402
from lmablate.report import command as report  # noqa: E402
from lmablate.results import load_runs  # noqa: E402

OUT = ROOT / "benchmarks" / "out"
FRAMES = 40  # at four a second


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def frame(folder: Path, n: int) -> float:
    """Seconds of one frame of the live display: of `n` jobs nine tenths are done, and four are training."""
    rows = fake_results.write_fake_results(folder, {"norm": ["rms"]}, seeds=range(9 * n // 10), steps=40)
    cfg = compose([f"results_dir={folder}", "runtime.progress=live", "trainer.steps=1000"])
    ids = [row["run_id"] for row in rows] + [f"{i:012x}" for i in range(n - len(rows))]
    jobs = [Job(cfg, run_id, label=f"rms · seed {i}") for i, run_id in enumerate(ids)]
    board = Board(jobs, jobs)
    screen = board.console
    screen.file = io.StringIO()
    for job in jobs[: len(rows)]:
        board.update(job, {"step": 1000, "steps": 1000, "seconds": 50.0})
        board.status.pop(job.run_id)
    for job in jobs[len(rows) : len(rows) + 4]:
        board.started(job)
        board.update(job, {"step": 300, "steps": 1000, "seconds": 15.0, "train_loss": 3.2, "tokens_per_second": 9e3})
    screen.print(board._render())  # looks at every job once
    began, used = time.monotonic(), time.process_time()
    for i in range(FRAMES):
        screen.print(board._render())
        time.sleep(max(0.0, began + (i + 1) / 4 - time.monotonic()))
    return (time.process_time() - used) / FRAMES


def store(folder: Path, n: int) -> dict[str, float]:
    """Seconds of the commands that read `n` runs."""
    fake_results.write_fake_results(folder, seeds=range(n // 4), steps=40)
    found = {"load_runs": seconds(lambda: load_runs(folder))}
    with silent():
        found["status"] = seconds(lambda: status.main([str(folder)]))
    return found


def reported(folder: Path, out: Path, arms: int) -> float:
    """Seconds of the report of `arms` arms of four seeds."""
    rates = [1e-4 * (i + 1) for i in range(arms)]
    fake_results.write_fake_results(folder, {"optim.lr": rates}, seeds=range(4), steps=400, sweep=None)
    with silent():
        return seconds(lambda: report.main([str(folder), "--out", str(out)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    share = 10 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        found = {"jobs": 1000 // share, "runs": 5000 // share, "arms": 100 // share}
        found["frame_seconds"] = frame(place / "jobs", 1000 // share)
        found |= {f"{key}_seconds": value for key, value in store(place / "runs", 5000 // share).items()}
        found["report_seconds"] = reported(place / "arms", place / "page", 100 // share)
    OUT.mkdir(exist_ok=True)
    (OUT / "results_store.json").write_text(json.dumps(found, indent=1) + "\n")
    for key, value in found.items():
        print(f"{key:18} {value:,.4f}" if isinstance(value, float) else f"{key:18} {value:,}")


if __name__ == "__main__":
    main()
