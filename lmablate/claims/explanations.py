"""The notes on a verdict: what would decide it, and caveats about the runs behind it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmablate.claims.claim import Claim, Hypothesis
from lmablate.claims.evidence import Sample
from lmablate.claims.measure import Estimate, measure
from lmablate.claims.predicates import describe
from lmablate.results.size_matching import MATCHED
from lmablate.stats import planning

MOST = 200  # no plan needs more seeds than that
CONFIDENT = 0.9


def more_seeds(test: Hypothesis, e: Estimate, n: int, alpha: float) -> tuple[int | None, str]:
    """Return how many more pairs would decide with 90 % power at the current effect and spread, and a sentence.

    The smaller number counts: enough for a difference, or for its absence within the margin."""
    if e.effect is None or e.sd is None or test.metric == "diverged":
        return None, "more seeds would narrow it"
    if any(count for count, _ in e.diverged.values()):
        one_sided = test.direction == "not_higher" and e.effect < test.margin
        signs = math.ceil(math.log2((1 if one_sided else 4) / alpha))  # pairs from which signs that all agree decide
        side = {value > (test.margin if one_sided else 0) for value in e.values if value}
        if len(side) == 1 and signs > n:
            return signs - n, f"{_more(signs - n)} would decide, if they point the same way"
        return None, "more seeds would narrow it, but lost runs make its spread wide"
    if e.sd == 0:
        return 1, "1 more seed may show a spread"
    effect, margin = e.effect / e.sd, test.margin / e.sd
    wanted = [planning.tost_pairs_needed(margin, alpha, CONFIDENT, effect=effect)]
    if test.direction in ("lower", "higher"):
        wanted.append(planning.pairs_needed(effect, alpha, CONFIDENT) if effect else None)
    elif test.direction == "equal" or effect > 0:
        beyond = abs(effect) - margin
        wanted.append(planning.pairs_needed(beyond, alpha, CONFIDENT) if beyond > 0 else None)
    if test.direction == "not_higher" and effect < margin:
        wanted.append(planning.pairs_needed(margin - effect, 2 * alpha, CONFIDENT))
    enough = [pairs for pairs in wanted if pairs is not None]
    if not enough or min(enough) - n > MOST:
        return None, f"more than {MOST} more seeds would be needed at this effect and spread"
    more = max(1, min(enough) - n)
    return more, f"{_more(more)} would decide, if effect and spread are what they look like"


def _more(n: int) -> str:
    return f"{n} more seed{'s' * (n != 1)}"


def diverged_note(e: Estimate) -> str:
    """Return how many runs of either side were lost; empty if none was."""
    (a, n), (b, m) = e.diverged["plus"], e.diverged["minus"]
    if not a + b:
        return ""
    every = "; nothing is known of its loss where it trains" if (a == n or b == m) else ""
    return f"{a} of {n} against {b} of {m} runs {e.lost}{every}"


def no_pair(sample: Sample, e: Estimate) -> str:
    """Return why nothing could be measured: pairs without the metric, no common seed, or common seeds on other numerics."""
    if sample.pairs:
        return "; ".join(e.notes) or "no pair of runs has a value to compare"
    seeds = [{pair[:2] for pair in arm.rows} for arm in sample.arms]
    if not set.intersection(*seeds):
        own = [
            f"{arm.name} has {_seeds_text(sorted(mine))}" for arm, mine in zip(sample.arms, seeds, strict=True) if mine
        ]
        return f"the arms have no seed in common, so no two runs are a pair: {'; '.join(own)}"
    where = [f"{arm.name} on {' and '.join(sorted({pair[2] for pair in arm.rows}))}" for arm in sample.arms]
    return (
        f"no pair of runs shares seeds and numerics in all arms: {'; '.join(where)}. "
        "Other numerics move a loss as a seed does, so train the arms alike (device, precision, runtime.compile)"
    )


def remarks(
    claim: Claim, test: Hypothesis, sample: Sample | None, e: Estimate, studies: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the caveats of a verdict, the most serious first."""
    if sample is None:
        return _tuning({study["sweep"] for study in studies if claim.id in study.get("claims", ())}, studies)
    notes = _by_setting(sample, test) + _lost(sample)
    if test.matched is None:
        notes += _unmatched(sample)
    arms = {row.get("arm") for arm in sample.arms for rows in arm.rows.values() for row in rows}
    notes += _tuning(set(sample.sweeps), studies, arms)
    if e.effect is not None and len(e.values) > 1 and e.sd == 0 and not e.pooled:
        notes.append("all pairs agree to the last bit: do the arms really differ?")
    if e.pooled:
        notes.append(
            f"variance pooled over the arms ({e.pooled.df} degrees of freedom; equal spread: p {e.pooled.p_equal:.2g})"
        )
    return notes


def _by_setting(sample: Sample, test: Hypothesis) -> list[str]:
    """Return a note with the effect in each setting of a grid, which a mean over the settings would hide."""
    unit = "points" if test.metric == "diverged" else "%"
    effects = [(measure(cell, test).effect, describe(cell.where)) for cell in sample.cells]
    said = [f"{effect:+.2f} {unit} at {where}" for effect, where in effects if effect is not None]
    return [f"a mean over settings: {', '.join(said)}"] if said else []


def _lost(sample: Sample) -> list[str]:
    """Return notes on runs that are not paired: unequal seeds, a missing run, other numerics."""
    if not sample.unpaired:
        return []
    seeds = [{pair[:2] for pair in arm.rows} for arm in sample.arms]
    lacking = [
        f"{arm.name} lacks {_seeds_text(missing)}"
        for arm, own in zip(sample.arms, seeds, strict=True)
        if (missing := sorted(set.union(*seeds) - own))
    ]
    numerics = sorted({pair[2] for arm in sample.arms for pair in arm.rows})
    common = set.intersection(*seeds)
    if len(numerics) > 1 and len({pair[:2] for pair in sample.pairs}) < len(common):
        lacking.append(f"runs of the same seed on different numerics ({'; '.join(numerics)}) are not paired")
    return [
        f"{sample.unpaired} run{'s' * (sample.unpaired != 1)} without a partner: {'; '.join(lacking) or 'other numerics'}"
    ]


def _seeds_text(seeds: Sequence[tuple[Any, ...]]) -> str:
    named = ", ".join(str(i) if i == d else f"{i}/{d}" for i, d in seeds[:6])
    return f"seed{'s' * (len(seeds) > 1)} {named}" + (f" and {len(seeds) - 6} more" if len(seeds) > 6 else "")


def _unmatched(sample: Sample) -> list[str]:
    """Return a note if the sizes of the arms differ."""
    sizes = [row["n_params"] for arm in sample.arms for rows in arm.rows.values() for row in rows]
    excess = max(sizes) / max(1, min(sizes)) - 1
    return [f"parameters differ by {excess:.1%} between the arms"] if excess > MATCHED else []


def _tuning(sweeps: set[str], studies: Sequence[Mapping[str, Any]], arms: Collection[Any] | None = None) -> list[str]:
    """Return notes on learning rates that tuning left at an edge or never found, for `arms` alone if given."""
    notes = []
    for study in studies:
        if study.get("sweep") not in sweeps:
            continue
        for name, arm in (study.get("arms") or {}).items():
            fit = arm.get("fit") or {}
            if arms is not None and name not in arms:
                continue
            if fit.get("edge"):
                side = "lowest" if fit["edge"] == "low" else "highest"
                notes.append(
                    f"{name}: its best learning rate, {arm['lr']:g}, is the {side} tried, so its loss may yet fall"
                )
            elif arm.get("grid") and all(point["loss"] is None for point in arm["grid"]):
                rates = sorted(point["lr"] for point in arm["grid"])
                notes.append(f"{name}: every learning rate from {rates[0]:g} to {rates[-1]:g} diverged in tuning")
    return notes
