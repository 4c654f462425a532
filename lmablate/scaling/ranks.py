"""What a small rung is worth as a predictor: agreement of its ranking of arms with that of a larger one."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from lmablate.scaling.ladder import Ladder

RESAMPLES, SEED, LEVEL = 1000, 20_262, 0.9


class Agreement(NamedTuple):
    """Agreement of `rung` with `target`, over `arms` arms, with 90 % intervals over seeds.

    `spearman`: rank correlation of the mean losses, None for two arms. `accuracy`: the share of pairs of arms that both rungs order
    alike, as DataDecide counts decisions (Magnusson et al. 2025, arXiv 2504.11393, section 2)."""

    rung: str
    target: str
    arms: int
    spearman: float | None
    spearman_interval: tuple[float, float] | None
    accuracy: float
    accuracy_interval: tuple[float, float]


def agreements(ladder: Ladder) -> list[Agreement]:
    """Return the agreement of each rung with the largest that has runs. Arms that lost a run are left out."""
    arms = [arm for arm in ladder.arms if not ladder.lost(arm)]
    tables = {rung: table for rung in ladder.rungs if (table := _losses(ladder, arms, rung)) is not None}
    if len(arms) < 2 or len(tables) < 2:
        return []
    target = list(tables)[-1]
    return [_agreement(rung, target, tables[rung], tables[target]) for rung in list(tables)[:-1]]


def _losses(ladder: Ladder, arms: list[str], rung: str) -> np.ndarray | None:
    """Return the losses ``[arms, pairs]`` over the pairs that all arms have."""
    runs = [ladder.at(arm, rung) for arm in arms]
    common = sorted(set.intersection(*(set(own) for own in runs))) if runs else []
    return np.array([[own[pair].loss for pair in common] for own in runs], dtype=float) if common else None


def _agreement(rung: str, target: str, small: np.ndarray, large: np.ndarray) -> Agreement:
    rng = np.random.default_rng(SEED)

    def drawn(table: np.ndarray) -> np.ndarray:
        chosen = rng.integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
        return table[:, chosen].mean(-1)  # [arms, resamples]

    a, b = drawn(small), drawn(large)
    accuracy = _accuracy(small.mean(1), large.mean(1))
    ends = np.quantile(_accuracies(a, b), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rho = interval = None
    if len(small) > 2:
        rho = _spearman(small.mean(1)[:, None], large.mean(1)[:, None])[0]
        low, high = np.nanquantile(_spearman(a, b), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = (float(low), float(high))
    return Agreement(
        rung,
        target,
        len(small),
        None if rho is None else float(rho),
        interval,
        accuracy,
        (float(ends[0]), float(ends[1])),
    )


def _accuracy(a: np.ndarray, b: np.ndarray) -> float:
    return float(_accuracies(a[:, None], b[:, None])[0])


def _accuracies(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    alike = [np.sign(a[i] - a[j]) == np.sign(b[i] - b[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    return np.mean(alike, axis=0)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each column; nan where all ranks of one are equal."""
    from scipy import stats

    ranks = [stats.rankdata(table, axis=0) for table in (a, b)]
    x, y = (own - own.mean(0) for own in ranks)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
