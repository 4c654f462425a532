"""The noise floor: the spread of runs of one arm, split into the draw of the weights and the order of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class Noise(NamedTuple):
    """Standard deviations of the final loss in nats per token; None if the seeds do not determine it.

    `init`, `data`: the contributions of the weights' draw and the data's order; `rest`: their interaction; `total`: of a run
    with both drawn anew. `n`: number of runs. `words`: a sentence for the reader."""

    init: float | None
    data: float | None
    rest: float | None
    total: float | None
    n: int
    words: str


def seed_noise(runs: pd.DataFrame) -> Noise:
    """Return the noise of the completed `runs`, which must be of one arm and differ in init_seed and data_seed alone.

    A full grid of both seeds gives all components by the mean squares of a two-way layout without repeats (Searle 1971,
    chapter 11; a negative estimate counts as 0). Runs that share one seed give the sd of the other, together with
    `rest`; runs that share none give the total.
    """
    done = runs.loc[runs["status"] == "completed", ["init_seed", "data_seed", "numerics", "run_id", "val_loss"]]
    # Two runs with one pair of seeds on two machines are not two draws.
    losses = {
        (row["init_seed"], row["data_seed"]): float(row["val_loss"])
        for row in done.sort_values(["numerics", "run_id"]).to_dict("records")
    }
    inits, orders = ({seeds[i] for seeds in losses} for i in (0, 1))
    n = len(losses)
    if n < 2:
        return Noise(None, None, None, None, n, "one finished run: its spread is unknown")
    if n == len(inits) * len(orders) and min(len(inits), len(orders)) > 1:
        table = np.array([[losses[i, d] for d in sorted(orders)] for i in sorted(inits)])
        return _two_way(table)
    sd = float(np.std(list(losses.values()), ddof=1))
    if len(orders) == 1:
        return Noise(sd, None, None, None, n, f"{n} draws of the weights on one order of the data")
    if len(inits) == 1:
        return Noise(None, sd, None, None, n, f"{n} orders of the data from one draw of the weights")
    if len(inits) == len(orders) == n:
        return Noise(None, None, None, sd, n, f"{n} runs, each with its own draw and order")
    return Noise(None, None, None, None, n, "seeds are neither a full grid nor all different, so nothing is told apart")


def _two_way(y: np.ndarray) -> Noise:
    a, b = y.shape
    rows, columns, grand = y.mean(1), y.mean(0), y.mean()
    of_rows = b * ((rows - grand) ** 2).sum() / (a - 1)
    of_columns = a * ((columns - grand) ** 2).sum() / (b - 1)
    rest = ((y - rows[:, None] - columns[None, :] + grand) ** 2).sum() / ((a - 1) * (b - 1))
    parts = (max(0.0, (of_rows - rest) / b), max(0.0, (of_columns - rest) / a), rest)
    init, data, both = (math.sqrt(float(part)) for part in parts)
    return Noise(
        init, data, both, math.sqrt(float(sum(parts))), a * b, f"{a} draws of the weights x {b} orders of the data"
    )
