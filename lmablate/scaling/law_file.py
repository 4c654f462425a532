"""What is written and printed of a fitted law."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmablate.scaling.isoflop import IsoFlop
from lmablate.scaling.law import LEVEL, Law
from lmablate.scaling.optimum import exponent, optimum

FORMAT = "{:.4g}"
WIDE = 0.5  # an interval wider than this share of an exponent determines little


def content(law: Law, budgets: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return the content of law.json: `values` and `intervals` (90 %) by name, residuals, notes, and optima of `budgets`."""
    out: dict[str, Any] = {
        "schema_version": 1,
        "form": law.form.name,
        "formula": law.form.formula,
        "points": len(law.residuals),
        "level": LEVEL,
        "values": law.values,
        "intervals": {name: list(bounds) for name, bounds in law.intervals().items()},
        "standard_errors": {name: float(np.std([_named(law, t)[name] for t in law.draws])) for name in law.form.names},
        "residuals": {
            "of": "log of the loss",
            "sd": float(np.std(law.residuals)),
            "largest": float(np.abs(law.residuals).max()),
            "df": law.df,
        },
        "notes": notes(law),
    }
    if law.form.name == "chinchilla":
        out["values"]["a"], out["intervals"]["a"] = exponent(law.values), list(law.interval(exponent))
        out["optimum"] = [optimum(law, flops)._asdict() for flops in budgets]
    return out


def _named(law: Law, theta: np.ndarray) -> dict[str, float]:
    return law._replace(theta=theta).values


def notes(law: Law) -> list[str]:
    """Return what a reader of a law must know: a floor or an exponent that the points do not determine."""
    out = []
    if law.saturated:
        out.append("as many sizes as parameters: the law goes through every size, and nothing checks its form")
    for name, (low, high) in law.intervals().items():
        value = law.values[name]
        if name in (term.exponent for term in law.form.terms) and high - low > WIDE * value:
            out.append(
                f"the points hardly determine {name}: {value:.3g}, from {low:.3g} to {high:.3g}; give a wider range of sizes"
            )
    if law.form.floor and law.values["E"] < 0.01 * law.lowest:
        out.append("E is at its lower end: these points show no floor of the loss")
    return out


def lines(record: dict[str, Any]) -> list[str]:
    """Return the lines that a command prints of law.json."""
    out = [f"{record['formula']}, {record['points']} points"]
    for name, value in record["values"].items():
        low, high = record["intervals"][name]
        what = "a of N_opt ~ C^a" if name == "a" else name
        out.append(f"  {what:<18}{FORMAT.format(value):>10}   {FORMAT.format(low)} to {FORMAT.format(high)} (90 %)")
    spread = record["residuals"]
    out.append(f"  residuals: sd {spread['sd']:.2%} of the loss, the largest {spread['largest']:.2%}")
    for one in record.get("optimum", ()):
        (n_low, n_high), (d_low, d_high) = one["params_interval"], one["tokens_interval"]
        out.append(
            f"  at {one['flops']:.3g} FLOPs the best is {one['params']:.3g} params ({n_low:.3g} to {n_high:.3g}) and "
            f"{one['tokens']:.3g} tokens ({d_low:.3g} to {d_high:.3g}), with a loss of {one['loss']:.3f}"
        )
    return out + [f"  note: {note}" for note in record["notes"]]


def isoflop_content(found: IsoFlop) -> dict[str, Any]:
    """Return the content of law.json for IsoFLOP parabolas."""
    return {
        "schema_version": 1,
        "form": "isoflop",
        "formula": "params at the lowest loss ~ flops^a",
        "points": len(found.residuals),
        "level": LEVEL,
        "values": {"a": found.a},
        "intervals": {"a": list(found.interval)},
        "residuals": {
            "of": "loss",
            "sd": float(np.std(found.residuals)),
            "largest": float(np.abs(found.residuals).max()),
        },
        "budgets": [one._asdict() for one in found.budgets],
        "notes": [],
    }


def isoflop_lines(record: dict[str, Any]) -> list[str]:
    """Return the lines that a command prints of IsoFLOP parabolas."""
    low, high = record["intervals"]["a"]
    out = [
        f"{record['formula']}, {record['points']} points",
        f"  a  {record['values']['a']:.4g}   {low:.4g} to {high:.4g} (90 %)",
    ]
    return out + [
        f"  {one['flops']:.3g} FLOPs: lowest loss {one['loss']:.4f} at {one['params']:.3g} params, by {one['sizes']} sizes"
        for one in record["budgets"]
    ]
