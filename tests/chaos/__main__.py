"""Breaks real sweeps in every way we could think of, and checks that no number, no file and no run suffers.

python tests/chaos                 a few minutes
python tests/chaos --full          200 random SIGKILLs, every file operation, 1,000 mutations
python tests/chaos --full --write docs/guides/reliability.md      and renew the table there
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

from chaos import corruption, crash_points, disks, kills, races, trouble  # noqa: E402
from chaos.common import Children, Outcome, corpus, scenario  # noqa: E402

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
Scenario = tuple[str, str, Callable[[Outcome], None]]


def scenarios(folder: Path, children: Children, *, full: bool, seed: int) -> list[Scenario]:
    """A word, a sentence and the work of each."""
    n_kills, n_mutations = (200, 1000) if full else (12, 300)
    return [
        ("points", "SIGKILL at every file operation of a run, before, within and after it" if full else
         "SIGKILL at every fifth file operation of a run, before, within and after it",
         lambda o: crash_points.crash_points(o, folder, children, full=full)),
        ("kills", "SIGKILL at random instants of a sweep", lambda o: kills.random_kills(o, folder, kills=n_kills, seed=seed)),
        ("race", "two sweeps of one grid, one results directory", lambda o: races.two_sweeps(o, folder, rounds=5 if full else 1)),
        ("signals", "SIGTERM, SIGINT once, SIGINT twice to a sweep", lambda o: trouble.signals(o, folder)),
        ("full", "a disk that is full, then has room", lambda o: disks.full_disk(o, folder, children, full=full)),
        ("fullsweep", "a disk that a sweep fills", lambda o: disks.full_sweep(o, folder)),
        ("readonly", "a results directory that cannot be written", lambda o: disks.read_only(o, folder)),
        ("vanished", "a results directory removed under a sweep, and a run", lambda o: disks.vanished(o, folder)),
        ("history", "a history torn at its end", lambda o: corruption.torn_histories(o, folder, children)),
        ("checkpoint", "a damaged newest checkpoint", lambda o: corruption.damaged_checkpoints(o, folder, children)),
        ("mutations", "mutated results and configurations",
         lambda o: corruption.mutated_files(o, folder, times=n_mutations, seed=seed)),
        ("hung", "a run that hangs, deaf to signals or not", lambda o: trouble.hung(o, folder)),
        ("memory", "memory that a batch does not fit", lambda o: trouble.memory(o, folder, children)),
        ("nan", "a loss that is not finite, once and always", lambda o: trouble.not_finite(o, folder, children)),
        ("clock", "a wall clock that jumps by years", lambda o: trouble.clocks(o, folder, children)),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", action="append", metavar="WORD", help="one scenario (several times)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave everything there")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="lmablate-chaos-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LMABLATE_CACHE", str(folder / "cache"))
    corpus(folder)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    every = scenarios(folder, Children(), full=given.full, seed=given.seed)
    if unknown := set(given.only or ()) - {word for word, _, _ in every}:
        parser.error(f"--only {' '.join(unknown)}: there are {', '.join(word for word, _, _ in every)}")
    for word, sentence, work in every:
        if not given.only or word in given.only:
            with scenario(sentence, outcomes) as outcome:
                work(outcome)
    text = table(outcomes, full=given.full, seed=given.seed, seconds=time.monotonic() - began)
    print(f"\n{text}")
    if given.write is not None:
        renew(given.write, text)
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(outcome.faults for outcome in outcomes))


def table(outcomes: list[Outcome], *, full: bool, seed: int, seconds: float) -> str:
    import torch

    cores = len(os.sched_getaffinity(0))
    lines = ["| what was done | times | what went wrong | seconds | |", "|---|--:|---|--:|---|"]
    for one in outcomes:
        faults = "nothing" if not one.faults else f"{len(one.faults)}: {one.faults[0]}".replace("|", "/")
        lines.append(f"| {one.scenario} | {one.times} | {faults} | {one.seconds:.0f} | {one.note} |")
    words = f"{'--full ' if full else ''}--seed {seed}"
    lines += ["", f"`python tests/chaos {words}`, {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.1f} minutes on {cores} cores, "
              f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}."]  # fmt: skip
    return "\n".join(lines)


def renew(path: Path, text: str) -> None:
    """Put the table between the marks."""
    whole = path.read_text()
    head, _, rest = whole.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
