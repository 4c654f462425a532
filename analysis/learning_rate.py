"""How does the best learning rate move with width, tokens and batch size?

The runs: ``lmablate train sweeps=learning_rate``. ``fit`` gives the numbers of ``optim.lr_rule``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from lmablate.analysis._studies import arm_of, stage
from lmablate.analysis._style import INK, MUTED, PAPER, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, plain_log
from lmablate.schema.sweeps import sweep_question
from lmablate.schema.training_config import LrRule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP = "learning_rate"
AT = {"d_model": 64, "tokens": 4.0e6, "batch_tokens": 2048}  # where the rule's base is the rate
NEAR = math.log(4.5)  # rates farther from the best of their size are not on its parabola
TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
POWERS = ("width_power", "tokens_power", "batch_power")


class Fit(NamedTuple):
    """The rule, the standard errors of log base and of the powers by name, and the standard deviation of the residuals in per
    cent."""

    rule: LrRule
    errors: dict[str, float]
    spread: float


def sizes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the completed evaluation runs with `size` (the arm less its rate), `lr`, `width`, `tokens`, `batch` (tokens a
    step) and `over`, the loss over the lowest of the size in per cent."""
    own = stage(runs, "evaluate")
    own = own[own["status"] == "completed"]
    batch = own["trainer.batch_size"].astype(float) * own["model.context_length"].astype(float)
    points = pd.DataFrame(
        {
            "size": [name.rpartition(", ")[0] for name in arm_of(own)],
            "seed": own["init_seed"],
            "lr": own["optim.lr"].astype(float),
            "width": own["model.d_model"].astype(float),
            "tokens": own["tokens"].astype(float),
            "batch": batch,
            "loss": own["val_loss"].astype(float),
        }
    ).reset_index(drop=True)
    if points.empty:
        return points.assign(over=[])
    best = points.groupby(["size", "seed"])["loss"].transform("min")
    return points.assign(over=100 * (points["loss"] / best - 1))


def fit(points: pd.DataFrame) -> Fit | None:
    """Fit the rule to `points` (as from `sizes`). None with fewer than three points beyond the parameters, or where the runs do
    not tell them.

    In log rate, the losses of each size lie on a parabola whose lowest point is on the rule; its curvature is a power of the
    tokens, since short runs forgive less.
    Least squares on the per cent above the lowest loss of a size (scipy's, which also gives the errors by its Jacobian)."""
    from scipy.optimize import least_squares

    lowest = points.loc[points.groupby(["size", "seed"])["loss"].idxmin()].set_index(["size", "seed"])["lr"]
    best = np.array([lowest[key] for key in zip(points["size"], points["seed"], strict=True)])
    used = points[np.abs(np.log(points["lr"] / best)) < NEAR]
    run = used.groupby(["size", "seed"]).ngroup().to_numpy()
    x = np.log(
        np.stack([used["width"] / AT["d_model"], used["tokens"] / AT["tokens"], used["batch"] / AT["batch_tokens"]])
    )
    log_lr, over = np.log(used["lr"].to_numpy()), used["over"].to_numpy()
    start = np.concatenate([[float(np.log(best).mean())], [-0.5, -0.2, 0.3], np.zeros(2 + run.max() + 1)])
    if len(used) < len(start) + 3 or np.linalg.matrix_rank(np.vstack([np.ones(x.shape[1]), x])) < 4:
        return None

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[6 + run] + np.exp(p[4] + p[5] * x[1]) * (log_lr - p[0] - p[1:4] @ x) ** 2 - over

    found = least_squares(residuals, start)
    variance = 2 * found.cost / (len(used) - len(start))
    normal = found.jac.T @ found.jac
    if np.linalg.matrix_rank(normal) < len(start):  # a flat size says nothing of its best rate
        return None
    errors = dict(zip(("log_base", *POWERS), np.sqrt(variance * np.diag(np.linalg.inv(normal)))[:4], strict=True))
    powers = dict(zip(POWERS, found.x[1:4].tolist(), strict=True))
    return Fit(LrRule(base=math.exp(found.x[0]), **AT, **powers), errors, math.sqrt(variance))


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Left: the loss over the lowest of each size by learning rate. Right: the same over the rate of the fitted rule, where
    all sizes have their lowest point at 1; `runs` as from load_runs or study_runs."""
    points = sizes(runs)
    if points.empty:
        return message(NOTHING.format(SWEEP))
    found = fit(points)
    with style():
        figure = new_figure(height=4.8)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, points, points["lr"], "peak learning rate")
        note = f"{len(points)} runs  ·  "
        if found is None:
            note += "too few sizes to fit the rule"
        else:
            rates = [
                found.rule.lr(d_model=w, tokens=t, batch_tokens=b)
                for w, t, b in zip(points["width"], points["tokens"], points["batch"], strict=True)
            ]
            _draw(right, points, points["lr"] / rates, "peak learning rate over the fitted rule's")
            right.axvline(1, color=MUTED, lw=1, zorder=1)
            note += words(found)
        own = stage(runs, "evaluate")
        lost = sorted(set(arm_of(own)) - set(arm_of(own[own["status"] == "completed"])))
        left.set(ylabel="loss over the lowest of its size, per cent", ylim=(-0.3, min(8.0, points["over"].max() + 2)))
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        entitle(figure, sweep_question(SWEEP) or SWEEP, note + lost_words(lost))
    return figure


def words(found: Fit) -> str:
    """Return the rule with its standard errors in one line."""
    r = found.rule
    at = f"{r.base:.3g} at width {r.d_model}, {r.tokens / 1e6:g}M tokens and {r.batch_tokens:,} tokens a step"
    names = ("width", "tokens", "batch")
    powers = [f"{n}^{getattr(r, p):.2f}±{found.errors[p]:.2f}" for n, p in zip(names, POWERS, strict=True)]
    return f"rule: {at}, x {' '.join(powers)}; residuals {found.spread:.2f} per cent"


def _draw(axes: Axes, points: pd.DataFrame, at: Any, xlabel: str) -> None:
    for size, look in arm_styles(points["size"]).items():
        rows = points["size"] == size
        mean = points[rows].assign(at=at[rows]).groupby("at")["over"].mean()
        axes.plot(mean.index, mean, marker=look.marker, linestyle=look.line, ms=4.5, mfc=PAPER, mew=1.1, lw=1.3,
                  color=look.color, label=size)  # fmt: skip
    plain_log(axes, [tick for tick in TICKS if at.min() * 0.9 < tick < at.max() * 1.1])
    axes.axhline(0, color=INK, lw=0.8, zorder=1)
    axes.set_xlabel(xlabel)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.learning_rate RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
