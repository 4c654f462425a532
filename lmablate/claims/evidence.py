"""Find the runs that bear on a hypothesis by their columns, whichever sweep trained them, and pair them by seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from lmablate.claims.claim import Hypothesis
from lmablate.claims.predicates import Row, clipped, describe, matches, value_of
from lmablate.claims.rows import Table
from lmablate.core.axes import PARTS
from lmablate.results.arms import is_missing, show
from lmablate.results.size_matching import MATCHED, size_text

Pair = tuple[int, int, str]  # init_seed, data_seed, numerics
LR = "optim.lr"
# These may differ between two arms besides their own columns: each arm's best rate, the width that a gate changes, and the
# option that requested equal sizes, which a run of another sweep may have. The sizes themselves are compared.
FOLLOW = (LR, "model.d_ff", "provenance.overrides", "preset", "trunk", "budget")
SHORT = 5.0  # tokens per parameter below which the sign of an effect may still turn
_STAGES = {"own": ("evaluate",), "shared": ("evaluate_shared",)}


class SampleArm(NamedTuple):
    """One arm of a sample: its `name`, its `weight` in the contrast, and its rows by pair (init_seed, data_seed, numerics)."""

    name: str
    weight: float
    rows: dict[Pair, list[Row]]


class Sample(NamedTuple):
    """The arms of a hypothesis in one setting.

    `where`: the columns that tell this setting from others. `notes`: caveats for the reader. `sweeps`: the sweeps that trained
    the runs. `picked`: an arm had several runs of one seed, of which one was chosen. `cells`: the settings of a grid, if the arms are those
    of all of them (``main_effects``)."""

    where: dict[str, str]
    arms: list[SampleArm]
    notes: list[str]
    sweeps: tuple[str, ...]
    picked: bool
    cells: tuple[Sample, ...] = ()

    @property
    def pairs(self) -> list[Pair]:
        """Return the pairs of seeds and numerics that every arm has."""
        return sorted(set.intersection(*(set(arm.rows) for arm in self.arms)))

    @property
    def tokens_per_param(self) -> float | None:
        """Return the fewest training tokens per non-embedding parameter of its runs; None if no row says."""
        rows = (row for arm in self.arms for own in arm.rows.values() for row in own)
        known = [row["tokens_per_param"] for row in rows if not is_missing(row.get("tokens_per_param"))]
        return round(float(min(known)), 2) if known else None

    @property
    def unpaired(self) -> int:
        """Return the number of runs without a partner in every other arm."""
        return sum(len(rows) for arm in self.arms for pair, rows in arm.rows.items() if pair not in set(self.pairs))


class SampleSearch(NamedTuple):
    """The `samples` of a hypothesis, one per setting; without any, `problem` says why. `touched`: some term has runs."""

    samples: list[Sample]
    problem: str
    touched: bool


def is_short(tokens_per_param: float | None) -> bool:
    """Return True for runs too short for a verdict that counts."""
    return tokens_per_param is not None and round(tokens_per_param, 1) < SHORT


def find(runs: Table, test: Hypothesis) -> SampleSearch:
    """Return the samples of `test` among finished `runs`. Runs chosen in a tuning stage or by a search are no evidence."""
    rows = [row for row in runs.rows if _is_evidence(row, test)]
    tuned, searched = (sum(row.get("stage") == stage for row in runs.rows) for stage in ("tune", "search"))
    rows = [row for row in rows if matches(row, test.where or {})]
    by_term = [[row for row in rows if matches(row, term.arms)] for term in test.contrast]
    lacking = [describe(term.arms) for term, own in zip(test.contrast, by_term, strict=True) if not own]
    if lacking:
        aside_of = (("tuning stages", tuned if test.metric != "lr_sensitivity" else 0), ("searches", searched))
        chosen_by = [f"{n} runs of {what}" for what, n in aside_of if n]
        aside = f" ({' and '.join(chosen_by)} are not evidence)" if chosen_by else ""
        where = f" at {describe(test.where)}" if test.where else ""
        return SampleSearch(
            [], f"no finished run with {' and none with '.join(lacking)}{where}{aside}", len(lacking) < len(by_term)
        )
    held = _held(runs, [row for own in by_term for row in own], test)
    settings = [_split(own, held) for own in by_term]
    common = [where for where in settings[0] if all(where in other for other in settings)]
    if not common:
        return SampleSearch([], _never_together(by_term, held, test), True)
    vary = _distinguishing(common)
    samples = []
    for setting in common:
        named = {held[i]: show(setting[i]) for i in vary}
        samples += _samples(test, [own[setting] for own in settings], named)
    if not samples:
        return SampleSearch(
            [], f"no arms with equal {size_text(test.matched or '')} (within {MATCHED:.0%}): see budget=params", True
        )
    return SampleSearch(main_effects(samples), "", True)


def main_effects(samples: Sequence[Sample]) -> list[Sample]:
    """Return `samples` with those of a grid as one: settings that differ in options of axes alone, and have the same pairs.

    Its arms are those of every setting, with an equal share of the weight: a pair's value is its mean over the settings, which is the main
    effect of a factorial design (Fisher 1935, The Design of Experiments, chapter 6)."""
    grids: dict[Hashable, list[Sample]] = {}
    for one in samples:
        fixed = tuple((key, value) for key, value in one.where.items() if key not in PARTS)
        grids.setdefault((fixed, tuple(one.pairs)), []).append(one)
    out: list[Sample] = []
    for cells in grids.values():
        out += [_main_effect(cells)] if len(cells) > 1 and cells[0].pairs else cells
    return out


def _main_effect(cells: list[Sample]) -> Sample:
    arms = []
    for cell in cells:
        option = ", ".join(value for key, value in cell.where.items() if key in PARTS)
        arms += [arm._replace(name=f"{arm.name} ({option})", weight=arm.weight / len(cells)) for arm in cell.arms]
    return Sample(
        where={key: value for key, value in cells[0].where.items() if key not in PARTS},
        arms=arms,
        notes=list(dict.fromkeys(note for cell in cells for note in cell.notes)),
        sweeps=tuple(sorted({sweep for cell in cells for sweep in cell.sweeps})),
        picked=any(cell.picked for cell in cells),
        cells=tuple(cells),
    )


def _distinguishing(settings: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Return a minimal list of held columns that tells the settings apart."""
    chosen: list[int] = []
    for i in range(len(settings[0])):
        distinct = len({tuple(where[j] for j in chosen) for where in settings})
        if len({tuple(where[j] for j in (*chosen, i)) for where in settings}) > distinct:
            chosen.append(i)
    return chosen


def _is_evidence(row: Row, test: Hypothesis) -> bool:
    """Return True if a row may serve as evidence for `test`.

    Rows of no study count in either view. A tuning stage is the whole grid before anything was picked; it only serves to
    measure a sensitivity."""
    stage = row.get("stage")
    stages = ("tune",) if test.metric == "lr_sensitivity" else _STAGES[test.view or "own"]
    return row["status"] != "failed" and (is_missing(stage) or stage in stages)


def _held(runs: Table, rows: list[Row], test: Hypothesis) -> list[str]:
    """Return the columns that vary besides the arms themselves, and must be equal within a setting."""
    own = {*test.columns, *FOLLOW, *(test.follow or ())}
    prefixes = tuple(f"{column.partition('.')[0]}." for column in test.columns if "." not in column)
    free = [c for c in runs.columns if c not in own and not c.startswith(prefixes or ("\0",))]
    return [c for c in free if len({_plain(row.get(c)) for row in rows}) > 1]


def _plain(value: Any) -> Hashable:
    return None if is_missing(value) else tuple(value) if isinstance(value, list) else value


def _split(rows: list[Row], held: Sequence[str]) -> dict[tuple[Hashable, ...], list[Row]]:
    groups: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_plain(row.get(c)) for c in held), []).append(row)
    return groups


def _never_together(by_term: list[list[Row]], held: Sequence[str], test: Hypothesis) -> str:
    first = by_term[0]
    apart = [
        c for c in held for other in by_term[1:]
        if not {_plain(row.get(c)) for row in first} & {_plain(row.get(c)) for row in other}
    ]  # fmt: skip
    what = ", ".join(dict.fromkeys(apart)) or ", ".join(held)
    return f"the arms' runs also differ in {what}, so a difference would not be the arms'"


def _samples(test: Hypothesis, terms: list[list[Row]], where: dict[str, str]) -> list[Sample]:
    """Return one setting as samples, split further by a size that must match and by learning rate."""
    out = []
    for rows, extra in _by_size(test, terms):
        arms = [arm for term, own in zip(test.contrast, rows, strict=True) for arm in _arms(test, term.weight, own)]
        notes: list[str] = []
        if test.metric != "lr_sensitivity":
            arms, notes = _one_rate(arms)
        clash = next(
            (arm for arm in arms for r in arm.rows.values() if len(r) > 1 and test.metric != "lr_sensitivity"), None
        )
        if clash is not None:
            notes.append(
                f"{clash.name} has several runs of one seed, of which the first is used: they differ in {_differ(clash)}"
            )
            # Unused runs are not part of the sample: they are not counted, named or commented on.
            arms = [arm._replace(rows={pair: own[:1] for pair, own in arm.rows.items()}) for arm in arms]
        sweeps = {
            str(row["sweep"]) for arm in arms for r in arm.rows.values() for row in r if not is_missing(row["sweep"])
        }
        out.append(Sample(where | extra, arms, notes, tuple(sorted(sweeps)), clash is not None))
    return out


def _by_size(test: Hypothesis, terms: list[list[Row]]) -> list[tuple[list[list[Row]], dict[str, str]]]:
    """Return the terms' rows in groups of matched size, if the hypothesis matches a size."""
    if test.matched is None:
        return [(terms, {})]
    edges: list[float] = []  # the first size of each group
    for size in sorted({row[test.matched] for own in terms for row in own}):
        if not edges or size > edges[-1] * (1 + MATCHED):
            edges.append(size)
    groups: list[tuple[list[list[Row]], dict[str, str]]] = []
    for edge in edges:
        inside = [[row for row in own if edge <= row[test.matched] <= edge * (1 + MATCHED)] for own in terms]
        if all(inside):
            groups.append((inside, {test.matched: f"{edge:,.0f}"}))
    return groups if len(groups) > 1 else [(inside, {}) for inside, _ in groups]


def _arms(test: Hypothesis, weight: float, rows: list[Row]) -> list[SampleArm]:
    """Return each option of a term with runs as an arm with an equal share of the weight."""
    columns = [c for c in test.columns if any(value_of(row, c) is not None for row in rows)]
    named: dict[str, list[Row]] = {}
    for row in rows:
        label = describe({c: _round(value_of(row, c)) for c in columns if value_of(row, c) is not None})
        named.setdefault(label, []).append(row)
    out = []
    for label, own in sorted(named.items()):
        by_pair: dict[Pair, list[Row]] = {}
        for row in own:
            if not (is_missing(row["init_seed"]) or is_missing(row["data_seed"])):
                pair = (int(row["init_seed"]), int(row["data_seed"]), _numerics(row, test))
                by_pair.setdefault(pair, []).append(row)
        out.append(SampleArm(label, weight / len(named), by_pair))
    return out


def _numerics(row: Row, test: Hypothesis) -> str:
    """Return the numerics that must be equal within a pair, without the precision if the test compares precisions."""
    parts = str(row["numerics"]).split()
    compares_precision = "trainer.precision" in test.columns
    return " ".join(part for part in parts if not (compares_precision and part in ("fp32", "bf16")))


def _round(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _one_rate(arms: list[SampleArm]) -> tuple[list[SampleArm], list[str]]:
    """Return the arms at one learning rate if they have runs of one seed at several, and notes on it.

    That happens in a grid that no study tuned. The rate is the best for the arms together, with diverged runs at the loss
    before training."""
    if not any(len({row.get(LR) for row in rows}) > 1 for arm in arms for rows in arm.rows.values()):
        return arms, []
    rates = sorted(set.intersection(*({row[LR] for rows in arm.rows.values() for row in rows} for arm in arms)))
    if not rates:
        return arms, ["the arms have no learning rate in common"]
    kept = {
        lr: [
            a._replace(rows={p: own for p, r in a.rows.items() if (own := [x for x in r if x[LR] == lr])}) for a in arms
        ]
        for lr in rates
    }

    def mean(lr: float) -> float:
        losses = [[clipped(row) for rows in arm.rows.values() for row in rows] for arm in kept[lr]]
        return sum(sum(own) / len(own) for own in losses)

    best = min(rates, key=mean)
    notes = [
        f"at the learning rate {best:g}, the best of {len(rates)} for these arms together; no tuning seeds of their own"
    ]
    if len(rates) > 1 and best in (rates[0], rates[-1]):
        side = "lowest" if best == rates[0] else "highest"
        notes.append(f"{best:g} is the {side} learning rate tried, so the best may lie beyond")
    return kept[best], notes


def _differ(arm: SampleArm) -> str:
    rows = next(rows for rows in arm.rows.values() if len(rows) > 1)
    differ = [
        k
        for k in rows[0]
        if "." in k and not k.startswith(("provenance.", "numerics.")) and len({_plain(r.get(k)) for r in rows}) > 1
    ]
    return ", ".join(differ[:3]) or "nothing that is recorded"
