"""The figure of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.bars import COMPILED
from benchmarks.tables import OURS, row_of, speedup

LIBRARIES = ("transformers GPT-2", "transformers Llama", "x-transformers", "litgpt", "nanoGPT")
INK, OUR_COLOUR, LONG_COLOUR, THEIR_COLOUR = "#333333", "#56B4E9", "#0072B2", "#999999"


def draw(singles: Mapping[str, Mapping[str, Any]], gang: Mapping[str, Any] | None, path: Path) -> None:
    """Speed against others on the left, gain over K on the right; `path` without its suffix gets .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lmablate", "font.size": 8, "axes.edgecolor": INK})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    groups = [
        (config, library)
        for config in ("C1", "C3", "C4")
        for library in LIBRARIES
        if speedup(singles.get(config, {}), OURS, f"{library}, fp32 eager") is not None
    ]
    places = list(range(len(groups)))[::-1]
    for ours, shift, colour, label in (
        (OURS, 0.2, OUR_COLOUR, "short runs (eager)"),
        (COMPILED, -0.2, LONG_COLOUR, "long runs (compiled)"),
    ):
        for place, (config, library) in zip(places, groups, strict=True):
            one = speedup(singles[config], ours, f"{library}, fp32 eager")
            if one is None:
                continue
            left.barh(place + shift, one[0], color=colour, height=0.38, label=label if place == places[0] else None)
            ends = [[max(0.0, one[0] - one[1])], [max(0.0, one[2] - one[0])]]
            left.errorbar([one[0]], [place + shift], xerr=ends, fmt="none", ecolor=INK, capsize=1.5, lw=0.7)
    left.axvline(1, color=THEIR_COLOUR, lw=0.8)
    left.set_yticks(places, [f"{config}  {library}" for config, library in groups])
    left.set_xlabel("speed of our default over a plain fp32 loop")
    if groups:
        left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for one in (gang or {}).get("results", ()):
        rows = {row["name"]: row for row in one["rows"]}
        solo = rows["solo eager"]["times"]
        gains = {
            name: (row["size"], *measure.ratio([row["size"] * t for t in solo], row["times"]))
            for name, row in rows.items()
        }
        eager = sorted(gain for name, gain in gains.items() if not name.endswith("compiled"))
        sizes, middle, bottom, top = zip(*eager, strict=True)
        line = right.plot(sizes, middle, marker="o", ms=3, lw=1.2, label=one["config"])[0]
        right.fill_between(sizes, bottom, top, color=line.get_color(), alpha=0.2, lw=0)
        compiled = [gain for name, gain in gains.items() if name.endswith("compiled")]
        right.plot([g[0] for g in compiled], [g[1] for g in compiled], "D", ms=4, mfc="white", mec=line.get_color())
    if gang and gang.get("results"):
        right.axhline(1, color=THEIR_COLOUR, lw=0.8)
        right.set_xscale("log", base=2)
        right.plot([], [], "D", ms=4, mfc="white", mec=INK, label="compiled")
        right.legend(frameon=False)
        right.set_xlabel("runs in one program (K)")
        right.set_ylabel("speed over one eager run at a time")
    else:
        right.set_axis_off()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def has_something(singles: Mapping[str, Mapping[str, Any]]) -> bool:
    """Is there a row of ours to draw?"""
    return any(row_of(result, OURS) is not None for result in singles.values())
