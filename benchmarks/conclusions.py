"""Conclusions an hour: how long until the difference of two arms is known to a stated width, ours against plain practice.

Ours: both arms with the same seeds, differences of pairs, the default command on all cores. Plain practice: every run with a
seed of its own, one after the other in fp32 with all threads, and the difference of two means. Both answer one question
(RoPE against no positions, the shape of C1). ``python benchmarks/conclusions.py [--quick]`` writes
benchmarks/out/conclusions.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import measure  # noqa: E402
from benchmarks.sweep import TOKENS, quoted, run_words, shell  # noqa: E402

ARMS = ("rope", "none")
WIDTH = 0.005  # half the 95 % interval, as a share of the loss
Losses = Mapping[str, Mapping[int, float]]  # by arm and seed


def ours(seeds: int, tokens: int, folder: Path) -> str:
    """One command: both arms, the same seeds."""
    program = [sys.executable, "-m", "lmablate.train", "-m"]
    return quoted([*program, f"posemb={','.join(ARMS)}", f"seed=range({seeds})", *run_words(tokens, folder)])


def plain(seeds: int, tokens: int, folder: Path, threads: int) -> str:
    """One command an arm under Hydra's basic launcher; no seed is used twice."""
    program = [sys.executable, f"{ROOT}/benchmarks/hydra_basic.py", "-m", "hydra/launcher=basic"]
    same = [*run_words(tokens, folder), "trainer.precision=fp32", "runtime.compile=false", f"runtime.threads={threads}"]
    return "\n".join(
        quoted([*program, f"posemb={arm}", f"seed=range({i * seeds},{(i + 1) * seeds})", *same])
        for i, arm in enumerate(ARMS)
    )


def losses(folder: Path) -> dict[str, dict[int, float]]:
    """The final validation losses of a results folder."""
    out: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    for path in folder.glob("*/result.json"):
        row = json.loads(path.read_text())
        out[row["choices"]["posemb"]][row["seed"]] = row["val_loss"]
    return out


def variance(found: Losses, *, paired: bool) -> tuple[float, int]:
    """Of the difference of two runs, one of each arm, and its degrees of freedom: of pairs, or of runs that share nothing."""
    from statistics import variance as of

    first, second = (found[arm] for arm in ARMS)
    if paired:
        return of([first[seed] - second[seed] for seed in first]), len(first) - 1
    return of(first.values()) + of(second.values()), len(first) + len(second) - 2


def runs_needed(variance_of_one: float, half_width: float, *, paired: bool) -> int:
    """Fewest runs an arm whose 95 % interval (Student's t) is no wider than `half_width` to either side."""
    from scipy import stats

    n = 2
    while stats.t.ppf(0.975, n - 1 if paired else 2 * n - 2) * math.sqrt(variance_of_one / n) > half_width:
        n += 1
    return n


def conclude(found: Losses, wall_seconds: float, *, paired: bool) -> dict[str, Any]:
    """What one way needs for one conclusion."""
    runs = [loss for arm in found.values() for loss in arm.values()]
    half_width = WIDTH * sum(runs) / len(runs)
    var, df = variance(found, paired=paired)
    n = runs_needed(var, half_width, paired=paired)
    a_run = wall_seconds / len(runs)
    return {
        "paired": paired,
        "runs": len(runs),
        "wall_seconds_a_run": a_run,
        "sd": math.sqrt(var),
        "df": df,
        "half_width": half_width,
        "runs_an_arm": n,
        "conclusions_an_hour": 3600 / (2 * n * a_run),
        "losses": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 seeds an arm, 50k tokens a run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the plain way")
    given = parser.parse_args()
    seeds, tokens = (3, 50_000) if given.quick else (8, TOKENS)
    OUT.mkdir(exist_ok=True)
    about = measure.machine("cpu")
    ways: dict[str, Any] = {}
    for way in ("ours", "plain"):
        with tempfile.TemporaryDirectory() as temporary:
            results = Path(temporary) / "results"
            script = ours(seeds, tokens, results) if way == "ours" else plain(seeds, tokens, results, given.threads)
            spent = shell(script, Path(temporary), given.threads if way == "plain" else 1)
            ways[way] = conclude(losses(results), spent["wall_seconds"], paired=way == "ours")
        print(way, {key: value for key, value in ways[way].items() if key != "losses"}, flush=True)
    result = {"machine": about, "tokens": tokens, "threads": given.threads, "width": WIDTH, "ways": ways}
    (OUT / "conclusions.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
