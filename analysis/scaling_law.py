"""A fitted scaling law beside its points (``lmablate scaling fit POINTS.csv --out DIR``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lmablate.analysis._style import INK, MUTED, PALETTE, PAPER, count, entitle, new_figure, style

WORDS = {"params": "non-embedding parameters", "tokens": "training tokens", "flops": "training FLOPs"}


def figure(record: Mapping[str, Any], columns: Mapping[str, np.ndarray], loss: np.ndarray) -> Figure:
    """Loss over size with the law, and its residuals; for IsoFLOP the best size of each budget."""
    with style():
        drawn = new_figure(height=4.4)
        left, right = drawn.subplots(1, 2)
        if record["form"] == "isoflop":
            _isoflop(left, right, record, columns, loss)
        else:
            _law(left, right, record, columns, loss)
        entitle(drawn, record["formula"], _note(record))
    return drawn


def _note(record: Mapping[str, Any]) -> str:
    parts = []
    for name, value in record["values"].items():
        low, high = record["intervals"][name]
        parts.append(f"{name} {value:.3g} ({low:.3g}–{high:.3g})")
    return f"{record['points']} points, with 90 % intervals:  {'  ·  '.join(parts)}"


def predicted(record: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The loss by the law of law.json."""
    v, form = record["values"], record["form"]
    if form == "chinchilla":
        return v["E"] + v["A"] / columns["params"] ** v["alpha"] + v["B"] / columns["tokens"] ** v["beta"]
    if form == "compute":
        return v["E"] + v["A"] / columns["flops"] ** v["alpha"]
    name, column = {"kaplan_n": ("N_c", "params"), "kaplan_d": ("D_c", "tokens"), "kaplan_c": ("C_c", "flops")}[form]
    return np.exp(v["alpha"] * (np.log(v[name]) - np.log(columns[column])))


def _law(left: Any, right: Any, record: Mapping[str, Any], columns: Mapping[str, np.ndarray], loss: np.ndarray) -> None:
    names, by_law = list(columns), predicted(record, columns)
    if len(names) == 1:
        x = columns[names[0]]
        grid = np.geomspace(x.min() / 1.3, x.max() * 1.3, 200)
        left.plot(grid, predicted(record, {names[0]: grid}), color=INK, lw=1.2)
        _dots(left, x, loss, PALETTE[0])
        _sizes(left, WORDS[names[0]])
        left.set(title="The loss and the law", ylabel="loss, nats per token")
    else:
        ends = np.array([min(by_law.min(), loss.min()), max(by_law.max(), loss.max())])
        left.plot(ends, ends, color=INK, lw=1.0)
        _dots(left, by_law, loss, PALETTE[0])
        left.set(title="The loss, by law and measured", xlabel="by the law, nats per token", ylabel="measured")
    right.axhline(0, color=MUTED, lw=1)
    _dots(right, columns[names[0]], 100 * (loss / by_law - 1), PALETTE[1])
    _sizes(right, WORDS[names[0]])
    right.set(title="What the law leaves", ylabel="measured over the law, %")


def _isoflop(
    left: Any, right: Any, record: Mapping[str, Any], columns: Mapping[str, np.ndarray], loss: np.ndarray
) -> None:
    _dots(left, columns["params"], loss, PALETTE[0])
    best = record["budgets"]
    left.plot([one["params"] for one in best], [one["loss"] for one in best], "D", ms=6, color=PALETTE[1], zorder=4)
    _sizes(left, WORDS["params"])
    left.set(title="The loss, and the minimum of each budget", ylabel="loss, nats per token")
    right.loglog([one["flops"] for one in best], [one["params"] for one in best], "D-", color=PALETTE[1])
    _sizes(right, WORDS["flops"])
    right.set(title="The best size of each budget", ylabel=WORDS["params"])


def _dots(axes: Any, x: np.ndarray, y: np.ndarray, color: str) -> None:
    axes.plot(x, y, "o", ms=4.5, mfc=PAPER, mec=color, mew=1.2, zorder=3)


def _sizes(axes: Any, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(_minor))


def _minor(value: float, _: int) -> str:
    """Twos and fives between the powers of ten."""
    return count(value) if f"{value:e}"[0] in "25" else ""
