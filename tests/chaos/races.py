"""Two sweeps of one grid on one results directory at the same time."""

from __future__ import annotations

from pathlib import Path

from chaos.common import Outcome, attempts, check_against, rows, start, words

GRID = ("-m", "norm=rms,layer,none", "activation=swiglu,gelu", "seed=0,1")


def two_sweeps(outcome: Outcome, folder: Path, *, rounds: int) -> None:
    reference = folder / "race-reference"
    base = ("runtime.workers=4", "runtime.progress=off")
    outcome.expect(start(*GRID, *words(folder, reference, *base)).wait() == 0, "the single sweep failed")
    for i in range(rounds):
        results = folder / f"race-{i}"
        both = [start(*GRID, *words(folder, results, *base)) for _ in range(2)]
        codes = [process.wait(600) for process in both]
        outcome.times += 1
        outcome.expect(codes == [0, 0], f"exit codes {codes}")
        check_against(outcome, results, reference)
        for run_id in rows(results):
            n = attempts(results, run_id)
            outcome.expect(n == 1, f"{run_id} was begun {n} times")
    outcome.note = "12 runs, four processes each; every run begun once"
