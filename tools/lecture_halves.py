"""Half of a comparison's seeds against the other half: an A/A test with the published runs, since seeds are exchangeable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from published import EVALUATED, Study
from scipy.stats import binomtest

from lmablate.stats.estimates import t_test

LEVEL = 0.05
FEWEST = 4  # seeds, for two differences between halves
Row = dict[str, Any]
Runs = dict[tuple[int, int], Row]  # of an arm, by seeds


class HalvesRate(NamedTuple):
    """How many of `n` comparisons claim a difference between the halves of their seeds, and the exact 95 % interval of the rate."""

    hits: int
    n: int
    low: float
    high: float


def halves_rate(studies: Sequence[Study]) -> HalvesRate | None:
    """Return how often a t test at 5 % tells two halves of a comparison's seeds apart; None without four seeds anywhere.

    A comparison is of two arms of a study. No run is in two comparisons, and a paired difference is free of what a seed
    does to both arms, so that comparisons are independent.
    """
    found = [t_test(between) for between in _between_halves(studies)]
    if not found:
        return None
    hits = sum(p < LEVEL for p in found)
    low, high = binomtest(hits, len(found)).proportion_ci(method="exact")
    return HalvesRate(hits, len(found), float(low), float(high))


def halves_sentence(rate: HalvesRate | None) -> str:
    """Return the rate as a sentence of the page; empty without one."""
    if rate is None:
        return ""
    return (
        f"A/A: one half of a comparison's seeds against the other half gives a difference at 5 % in {rate.hits} of {rate.n} "
        f"comparisons, which share no run ({100 * rate.hits / rate.n:.1f} %, 95 % interval {100 * rate.low:.1f} to "
        f"{100 * rate.high:.1f} %); 5 % of them should by chance."
    )


def _between_halves(studies: Sequence[Study]) -> Iterator[list[float]]:
    """Yield, for each comparison, the paired differences of its first half of seeds minus those of its second half."""
    seen: set[str] = set()
    for study in studies:
        free = [runs for runs in _arms(study) if not seen & {row["run_id"] for row in runs.values()}]
        for a, b in zip(free[::2], free[1::2], strict=False):
            seeds = sorted(a.keys() & b.keys())
            half = len(seeds) // 2
            if len(seeds) < FEWEST or a[seeds[0]]["choices"]["data"] != b[seeds[0]]["choices"]["data"]:
                continue
            seen |= {row["run_id"] for runs in (a, b) for row in runs.values()}
            differences = [b[seed]["val_loss"] - a[seed]["val_loss"] for seed in seeds]
            yield [x - y for x, y in zip(differences[:half], differences[half:], strict=False)]


def _arms(study: Study) -> list[Runs]:
    """Return the completed evaluation runs of each arm on each text. Of crossed seeds those with seeds of their own count."""
    arms: dict[tuple[str, str], Runs] = {}
    for row in sorted(study.archive.rows, key=lambda row: (row["init_seed"], row["data_seed"])):
        if row.get("stage") not in EVALUATED or row["status"] != "completed" or row.get("arm") is None:
            continue
        runs = arms.setdefault((row["choices"]["data"], row["arm"]), {})
        init, order = row["init_seed"], row["data_seed"]
        if math.isfinite(row["val_loss"]) and all(init != other[0] and order != other[1] for other in runs):
            runs[init, order] = row
    return list(arms.values())
