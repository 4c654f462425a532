"""The figure of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.tables import OURS, row_of, speedup

LIBRARIES = ("transformers GPT-2", "transformers Llama", "x-transformers", "litgpt", "nanoGPT")
INK, OUR_COLOUR, THEIR_COLOUR = "#333333", "#0072B2", "#999999"


def draw(singles: Mapping[str, Mapping[str, Any]], gang: Mapping[str, Any] | None, path: Path) -> None:
    """Speed against others on the left, gain over K on the right; `path` without its suffix gets .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lmablate", "font.size": 8, "axes.edgecolor": INK})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
    labels, values, low, high = [], [], [], []
    for config in ("C1", "C3", "C4"):
        for library in LIBRARIES:
            one = speedup(singles.get(config, {}), OURS, f"{library}, fp32 eager")
            if one is not None:
                labels.append(f"{config}  {library}")
                values.append(one[0])
                low.append(max(0.0, one[0] - one[1]))
                high.append(max(0.0, one[2] - one[0]))
    places = list(range(len(labels)))[::-1]
    left.barh(places, values, color=OUR_COLOUR, height=0.7)
    left.errorbar(values, places, xerr=[low, high], fmt="none", ecolor=INK, capsize=2, lw=0.8)
    left.axvline(1, color=THEIR_COLOUR, lw=0.8)
    left.set_yticks(places, labels)
    left.set_xlabel("speed of our default over a plain fp32 loop")
    for one in (gang or {}).get("results", ()):
        solo = next(row["times"] for row in one["rows"] if row["name"] == "solo eager")
        gains = [
            (row["size"], *measure.ratio([row["size"] * t for t in solo], row["times"]))
            for row in one["rows"]
            if row["name"] != "solo compiled"
        ]
        sizes, middle, bottom, top = zip(*sorted(gains), strict=True)
        line = right.plot(sizes, middle, marker="o", ms=3, lw=1.2, label=one["config"])[0]
        right.fill_between(sizes, bottom, top, color=line.get_color(), alpha=0.2, lw=0)
    if gang and gang.get("results"):
        right.axhline(1, color=THEIR_COLOUR, lw=0.8)
        right.set_xscale("log", base=2)
        right.legend(frameon=False)
        right.set_xlabel("runs in one program (K)")
        right.set_ylabel("speed over one at a time")
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
