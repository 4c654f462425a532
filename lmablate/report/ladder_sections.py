"""The ladders of a report: one table over all questions, a figure each, and how many forecasts held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.files import file_stem
from lmablate.report.figures import Drawn
from lmablate.scaling.ladder_summary import forecast_text

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def ladder_rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each arm of each ladder (scaling.ladder_summary): its multiple at the ends, its trend, and its forecast."""
    out = []
    for record in records:
        for one in record["effects"]:
            ends = [_multiple(m) for m in (one["multiples"][:1] + one["multiples"][-1:] if one["multiples"] else [])]
            slope = one["slope_per_decade"]
            forecasts = [forecast_text(f) for f in record["forecasts"] if f["arm"] == one["arm"]]
            out.append({
                "study": record["study"], "question": record["question"], "arm": one["arm"], "minus": one["minus"],
                "rungs": len(one["multiples"]), "smallest": ends[0] if ends else "–", "largest": ends[-1] if ends else "–",
                "trend": one["trend"], "slope_per_decade": slope, "words": one["words"], "forecast": "; ".join(forecasts) or "none",
            })  # fmt: skip
        if not record["effects"]:
            out.append({
                "study": record["study"], "question": record["question"], "arm": "–", "minus": record["baseline"], "rungs": 0,
                "smallest": "–", "largest": "–", "trend": "not decided", "slope_per_decade": None,
                "words": record["problem"] or "it has no arm but the baseline", "forecast": "none",
            })  # fmt: skip
    return out


def _multiple(one: Mapping[str, Any]) -> str:
    if one["value"] is None or one["interval"] is None:
        return f"beyond the law at {one['rung']}"
    low, high = one["interval"]
    top = "∞" if high is None else f"{high:.3g}"
    return f"{one['value']:.3g}x ({low:.3g} to {top}) at {one['rung']}"


def draw_ladders(records: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return the figure of each ladder, with the published effects whose size is known."""
    from lmablate.analysis.ladders import PublishedEffect, figure

    out = []
    for record in records:
        published = [
            PublishedEffect(claim["ladder"]["arm"], entry["params"], entry["effect"], entry["source"].partition(",")[0])
            for claim in claims
            if claim["study"] == record["study"] and (claim["ladder"] or {}).get("arm")
            for entry in claim["published"]
            if entry["params"] and entry["effect"] is not None
        ]
        stem = file_stem(f"{record['study']}_ladder")
        out.append(Drawn(stem, "ladder", f"{record['question']} From small to large", figure(record, published)))
    return out


def ladder_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as tables/ladders.csv."""
    import pandas as pd

    return pd.DataFrame(rows)
