"""The effect of each arm of a ladder study over the sizes, with forecasts, their outcome, and published effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lmablate.analysis._style import INK, MUTED, PAPER, Arm, arm_styles, count, entitle, message, new_figure, style
from lmablate.analysis.scaling_law import predicted


class PublishedEffect(NamedTuple):
    """A published effect on the loss, in per cent, of an `arm` at so many `params`."""

    arm: str
    params: float
    percent: float
    source: str


def figure(record: Mapping[str, Any], published: Sequence[PublishedEffect] = ()) -> Figure:
    """Left: the loss difference at each rung; right: the compute multiple. `record`: of scaling.ladder_summary."""
    if not record["effects"]:
        return message(f"{record['study']}: {record['problem'] or 'no arm but the baseline'}")
    if not any(one["multiples"] for one in record["effects"]):
        return message("\n".join(f"{record['study']}: {one['words']}" for one in record["effects"]))
    looks = arm_styles([one["arm"] for one in record["effects"]])
    with style():
        drawn = new_figure(height=4.6)
        left, right = drawn.subplots(1, 2)
        for i, one in enumerate(record["effects"]):
            shift = 1.03 ** (i - (len(record["effects"]) - 1) / 2)  # side by side where arms agree
            _effects(left, right, one, looks[one["arm"]], shift)
            _forecasts(left, record, one["arm"], looks[one["arm"]], shift)
        _published(left, record, published, looks)
        for axes, nought in ((left, 0.0), (right, 1.0)):
            axes.axhline(nought, color=MUTED, lw=1, zorder=1)
            axes.set_xscale("log")
            axes.set_xlabel("non-embedding parameters of the baseline")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            sizes = [one["params"] for one in record["rungs"] if one["params"]]
            axes.set_xticks(sizes, [count(size) for size in sizes])
        left.set(title="Loss against the baseline, lower is better", ylabel="nats per token")
        right.set(title="Compute multiple, higher is better", ylabel="times the baseline's compute")
        left.legend(loc="best")
        entitle(drawn, record["question"] or record["study"], _note(record))
    return drawn


def _effects(left: Any, right: Any, one: Mapping[str, Any], look: Arm, shift: float) -> None:
    dots = {"marker": look.marker, "ms": 6, "mfc": PAPER, "mec": look.color, "mew": 1.5, "color": look.color, "lw": 1.2}
    known = [m for m in one["multiples"] if m["value"] is not None and m["interval"][1] is not None]
    for axes, rows, at, ends in (
        (left, one["multiples"], "difference", lambda m: (m["low"], m["high"])),
        (right, known, "value", lambda m: m["interval"]),
    ):
        x = [m["params"] * shift for m in rows]
        axes.plot(x, [m[at] for m in rows], label=f"{one['arm']}: {one['trend']}", zorder=3, **dots)
        for place, m in zip(x, rows, strict=True):
            axes.plot([place, place], ends(m), color=look.color, lw=1.6, zorder=2)


def _forecasts(axes: Any, record: Mapping[str, Any], arm: str, look: Arm, shift: float) -> None:
    """An open box a little right of its rung, from the lower to the upper end of the 90 % prediction."""
    sizes = {rung["name"]: rung["params"] for rung in record["rungs"]}
    for one in record["forecasts"]:
        if one["arm"] == arm and one["interval"] and sizes.get(one["rung"]):
            x = sizes[one["rung"]] * shift * 1.12
            axes.plot([x, x], one["interval"], color=look.color, lw=7, alpha=0.25, solid_capstyle="butt", zorder=1)
            axes.plot([x], [one["difference"]], "_", ms=9, mew=1.6, color=look.color, zorder=2)


def _published(
    axes: Any, record: Mapping[str, Any], published: Sequence[PublishedEffect], looks: Mapping[str, Arm]
) -> None:
    """A cross at the size of the publication, its per cent taken of the loss that the baseline's law gives there."""
    law = record["laws"].get("kaplan_n")
    for one in published:
        if law is None or one.arm not in looks:
            continue
        loss = float(predicted(law, {"params": one.params}))
        axes.plot([one.params], [one.percent / 100 * loss], "x", ms=8, mew=2, color=looks[one.arm].color, zorder=4)
        axes.annotate(one.source, (one.params, one.percent / 100 * loss), fontsize=7.5, color=INK, rotation=25)


def _note(record: Mapping[str, Any]) -> str:
    seeds = max((len(own) for rung in record["rungs"] for own in rung["losses"].values()), default=0)
    came = [one for one in record["forecasts"] if one["held"] is not None]
    held = f"  ·  {sum(one['held'] for one in came)} of {len(came)} forecasts held" if came else ""
    return f"baseline {record['baseline']}, {seeds} paired seeds  ·  lines: 95 % intervals; bars: 90 % forecasts from the rungs below{held}"
