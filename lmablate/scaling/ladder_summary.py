"""What a ladder study shows: its law, the worth of each arm, forecasts with their outcome, and what small rungs predict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmablate.core.errors import ConfigError
from lmablate.scaling import law_file
from lmablate.scaling.forecast import calibration, outcomes
from lmablate.scaling.ladder import Ladder, ladders
from lmablate.scaling.law import Law
from lmablate.scaling.multiples import ALPHA, Effect, Multiple, effect
from lmablate.scaling.ranks import agreements

DECADE = math.log(10)
LAWS = ("compute", "kaplan_n", "kaplan_c", "chinchilla")


def summaries(runs: Any, studies: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the summary of each ladder among `studies`, JSON values only; `runs` is a frame of load_runs."""
    by_name = {study["sweep"]: study for study in studies}
    return [summary(one, by_name[one.study].get("forecasts") or ()) for one in ladders(runs, by_name.values())]


def summary(ladder: Ladder, forecasts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what one ladder shows; `forecasts` are those of its study's file."""
    laws, problems = laws_of(ladder)
    base = laws.get("compute")
    effects = [effect(ladder, arm, base) for arm in ladder.arms[1:]] if base is not None else []
    rows = outcomes(ladder, forecasts)
    return {
        "study": ladder.study,
        "question": ladder.question,
        "baseline": ladder.baseline,
        "rungs": [
            {
                "name": rung,
                "held_out": rung in ladder.held_out,
                **{field: _number(ladder.size(rung, field)) for field in ("params", "tokens", "flops")},
                "losses": {arm: [run.loss for _, run in sorted(ladder.at(arm, rung).items())] for arm in ladder.arms},
            }
            for rung in ladder.rungs
        ],
        "laws": {name: law_file.content(law) for name, law in laws.items()},
        "problem": problems.get("compute", ""),
        "effects": [_effect(one) for one in effects],
        "forecasts": rows,
        "agreements": [_listed(one._asdict()) for one in agreements(ladder)],
    }


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def laws_of(ladder: Ladder) -> tuple[dict[str, Law], dict[str, str]]:
    """Return the laws of the baseline over all rungs by form, and why others are none."""
    laws, problems = {}, {}
    for name in LAWS:
        try:
            laws[name] = ladder.law(name, held_out=True)
        except ConfigError as error:
            problems[name] = str(error)
    return laws, problems


def _effect(one: Effect) -> dict[str, Any]:
    slope = None if one.slope is None else one.slope * DECADE
    bounds = None if one.slope_interval is None else [end * DECADE for end in one.slope_interval]
    return {
        "arm": one.arm,
        "minus": one.minus,
        "trend": one.trend,
        "misfit": one.misfit,
        "gone_at": one.gone_at,
        "problem": one.problem,
        "slope_per_decade": slope,
        "slope_per_decade_95": bounds,
        "multiples": [_multiple(m) for m in one.multiples],
        "words": trend_words(one),
    }


def _multiple(one: Multiple) -> dict[str, Any]:
    bounds = None if one.interval is None else [_number(end) for end in one.interval]
    return {**one._asdict(), "value": _number(one.value), "interval": bounds}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def trend_words(one: Effect) -> str:
    """Return an effect over a ladder as a sentence."""
    if one.problem:
        return one.problem
    last = one.multiples[-1]
    worth = f"{multiple_words(last)} at {last.rung}"
    change = "" if one.slope is None else f", times {math.exp(one.slope * DECADE):.3g} for ten times the compute"
    gone = f"; from {one.gone_at} on the interval holds 1" if one.gone_at else ""
    if one.misfit is not None and one.misfit < ALPHA:
        change = f"; the rungs do not lie on a line (p {one.misfit:.2g})"
    harm = "the harm " if (last.value or 1.0) < 1 and one.trend in ("grows", "steady", "fades") else ""
    trend = one.trend if not harm or one.trend != "steady" else "is steady"
    return f"{harm}{trend}: {worth}{change}{gone}"


def multiple_words(one: Multiple) -> str:
    """Return a compute multiple as text: ``1.21x (1.1 to 1.33)``."""
    if one.value is None or one.interval is None:
        return "beyond the law of the baseline"
    low, high = one.interval
    return f"{one.value:.3g}x ({low:.3g} to {high:.3g})" if high < 1e6 else f"{one.value:.3g}x ({low:.3g} or more)"


def lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines that the command prints of one ladder."""
    out = [f"{record['study']}: {record['question']}", f"baseline {record['baseline']}"]
    if record["problem"]:
        out.append(f"  no law: {record['problem']}")
    for law in record["laws"].values():
        out += [f"  {line}" for line in law_file.lines(law)]
    for one in record["effects"]:
        out.append(f"{one['arm']}: {one['words']}")
        for m in one["multiples"]:
            low, high = m["interval"] or (math.nan, math.nan)
            value = "beyond the law" if m["value"] is None else f"{m['value']:.3g}x compute ({low:.3g} to {high:.3g})"
            timed = "" if m["seconds"] is None else f", {m['seconds']:.3g}x time"
            nats = f"{m['difference']:+.4f} nats ({m['low']:+.4f} to {m['high']:+.4f})"
            shown = "differs" if m["differs"] else ""
            out.append(f"  {m['rung']:>8}  {nats}, {value}{timed} {shown}".rstrip())
    for one in record["forecasts"]:
        out.append(f"  forecast of {one['arm']} at {one['rung']}: {forecast_text(one)}")
    for one in record["agreements"]:
        low, high = one["accuracy_interval"]
        rho = "" if one["spearman"] is None else f", Spearman {one['spearman']:.2f}"
        out.append(
            f"  {one['rung']} orders {one['accuracy']:.0%} ({low:.0%} to {high:.0%}) of pairs of arms as {one['target']} does{rho}"
        )
    return out


def forecast_text(one: Mapping[str, Any]) -> str:
    """Return a forecast and its outcome as text."""
    if one["interval"] is None:
        return f"none, {one['problem']}"
    low, high = one["interval"]
    said = f"{one['difference']:+.4f} nats ({low:+.4f} to {high:+.4f}, 90 %), written on {one['date'][:10]}"
    came = (
        one["problem"] or "not trained yet"
        if one["outcome"] is None
        else f"came out {one['outcome']:+.4f}, {'held' if one['held'] else 'missed'}"
    )
    late = "" if one["blind"] else " (its rung was trained before, so it does not count)"
    return f"{said}; {came}{late}"


def calibration_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many forecasts of all ladders held."""
    return calibration(row for record in records for row in record["forecasts"])
