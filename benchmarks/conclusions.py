"""Conclusions an hour: how long until the difference of two arms is known to a stated width, ours against plain practice.

Ours: both arms with the same seeds, differences of pairs, the default command on all cores. Plain practice: every run with a
seed of its own, one after the other in fp32 with all threads, and the difference of two means. Three questions about RoPE and
no positions: at 200,000 tokens (the shape of C1), at the 819,200 tokens of ``sweeps=sanity scale=laptop``, and at four budgets
up to 200,000 tokens, where ours trains one trunk with four decays and plain practice a run for each budget.
``python benchmarks/conclusions.py [--quick] [--questions short,sweep,budgets]`` writes benchmarks/out/conclusions.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Question:
    """What is asked: the difference of the two arms after each of `budgets` tokens."""

    name: str
    what: str
    budgets: tuple[int, ...]
    words: tuple[str, ...] = ()


QUESTIONS = {
    one.name: one
    for one in (
        Question("short", "200,000 tokens, the shape of C1", (TOKENS,), ("tokenizer=bytes",)),
        Question("sweep", "819,200 tokens, a run of `sweeps=sanity scale=laptop`", (819_200,), ("tokenizer=bpe",)),
        Question(
            "budgets",
            "80,000, 120,000, 160,000 and 200,000 tokens, each decayed to its end",
            tuple(round(share * TOKENS) for share in (0.4, 0.6, 0.8, 1.0)),
            ("tokenizer=bytes",),
        ),
    )
}


def ours(question: Question, seeds: int, folder: Path) -> str:
    """One command: both arms, the same seeds, one trunk for all budgets."""
    program = [sys.executable, "-m", "lmablate.train", "-m"]
    words = [*run_words(max(question.budgets), folder), *question.words]
    if len(question.budgets) > 1:
        shares = ",".join(f"{budget / max(question.budgets):g}" for budget in question.budgets)
        words += ["schedule=wsd_branches", f"schedule.branches=[{shares}]"]
    return quoted([*program, f"posemb={','.join(ARMS)}", f"seed=range({seeds})", *words])


def plain(question: Question, seeds: int, folder: Path, threads: int) -> str:
    """One command an arm and budget under Hydra's basic launcher; no seed is used twice."""
    program = [sys.executable, f"{ROOT}/benchmarks/hydra_basic.py", "-m", "hydra/launcher=basic"]
    same = ["trainer.precision=fp32", "runtime.compile=false", f"runtime.threads={threads}", *question.words]
    same += ["schedule=wsd"] if len(question.budgets) > 1 else []
    cells = [(arm, budget) for budget in question.budgets for arm in ARMS]
    return "\n".join(
        quoted(
            [
                *program,
                f"posemb={arm}",
                f"seed=range({i * seeds},{(i + 1) * seeds})",
                *run_words(budget, folder),
                *same,
            ]
        )
        for i, (arm, budget) in enumerate(cells)
    )


def losses(folder: Path) -> dict[int, dict[str, dict[int, float]]]:
    """The final validation losses of a results folder, by tokens."""
    out: dict[int, dict[str, dict[int, float]]] = {}
    for path in folder.glob("*/result.json"):
        row = json.loads(path.read_text())
        cell = out.setdefault(row["tokens"], {arm: {} for arm in ARMS})
        cell[row["choices"]["posemb"]][row["seed"]] = row["val_loss"]
    return dict(sorted(out.items()))


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
    """What one way needs for one conclusion at one budget, if its runs took `wall_seconds` together."""
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


def answer(found: Mapping[int, Losses], wall_seconds: float, *, paired: bool) -> dict[str, Any]:
    """What one way needs to answer a question: at every budget, so the budget that needs most seeds decides.

    `wall_seconds` is of everything trained; a seed's runs of all budgets count as one.
    """
    worst = max(
        (conclude(cell, wall_seconds, paired=paired) for cell in found.values()), key=lambda one: one["runs_an_arm"]
    )
    return {**worst, "losses": found}


RATES = 5  # learning rates that an arm is tuned over, as in sweeps/sanity.yaml


def tuned_hour(way: Mapping[str, Any]) -> float:
    """Conclusions an hour where each arm's learning rate has to be chosen among RATES too, reckoned from what was measured:
    ours trains one run a rate on a seed of its own and then the seeds it needs; a grid trains every seed at every rate."""
    n = way["runs_an_arm"]
    runs = RATES + n if way["paired"] else RATES * n
    return 3600 / (2 * runs * way["wall_seconds_a_run"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 seeds an arm, a quarter of the tokens")
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the plain way")
    given = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    about = measure.machine("cpu")
    asked: dict[str, Any] = {}
    for name in given.questions.split(","):
        question = QUESTIONS[name]
        if given.quick:
            question = replace(question, budgets=tuple(budget // 4 for budget in question.budgets))
        asked[name] = {"what": question.what, "ways": ask(name, question, 3 if given.quick else 8, given.threads)}
    result = {"machine": about, "threads": given.threads, "width": WIDTH, "questions": asked}
    (OUT / "conclusions.json").write_text(json.dumps(result, indent=1))


def ask(name: str, question: Question, seeds: int, threads: int) -> dict[str, Any]:
    """Both ways, measured one after the other."""
    ways: dict[str, Any] = {}
    for way in ("ours", "plain"):
        with tempfile.TemporaryDirectory() as temporary:
            results = Path(temporary) / "results"
            script = ours(question, seeds, results) if way == "ours" else plain(question, seeds, results, threads)
            spent = shell(script, Path(temporary), threads if way == "plain" else 1)
            ways[way] = answer(losses(results), spent["wall_seconds"], paired=way == "ours")
        print(name, way, {key: value for key, value in ways[way].items() if key != "losses"}, flush=True)
    return ways


if __name__ == "__main__":
    main()
