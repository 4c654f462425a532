"""Paired comparisons: two runs that share seeds saw the same tokens and started from the same draws.

The difference within a pair does not contain the seed's effect on both arms, so few seeds suffice to see a small effect.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from lmablate.results.arms import arm_columns, in_order, is_missing, keys
from lmablate.stats.estimates import bootstrap_intervals, correlation, interval, sign_flip

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def paired_differences(runs: pd.DataFrame, axis: str, *, mix_numerics: bool = False) -> list[Row]:
    """Return comparisons of every two options of `axis` over their common seeds, with all other columns equal.

    `runs` is a frame of load_runs, `axis` a column of arm_columns (`norm`, `optim.lr`). A pair shares init_seed and
    data_seed and, unless `mix_numerics`, the same numerics. Each comparison is a dictionary: axis, a, b, where (the
    other columns' values), n_pairs, differences (final validation loss of b minus that of a, nats per token, by seed),
    seeds, mean_difference, sd_difference, interval_95 (Student t; None below two pairs), bootstrap_95 (None below three),
    p_sign_flip (exact), correlation (of the two arms' losses over the pairs; None below three), n_diverged, n_unpaired
    (runs without a partner), tokens_per_param (the fewest of its runs), verdict and reason.
    """
    held = [column for column in arm_columns(runs) if column != axis]
    cells: dict[tuple[Hashable, ...], dict[Hashable, list[Row]]] = {}
    rows = runs.to_dict("records")
    columns = [keys(runs, column) for column in (axis, *held)]
    for row, values in zip(rows, zip(*columns, strict=True), strict=True):
        cells.setdefault(values[1:], {}).setdefault(values[0], []).append(row)
    out = []
    for where, options in sorted(cells.items(), key=lambda item: [in_order(value) for value in item[0]]):
        for a, b in itertools.combinations(sorted(options, key=in_order), 2):
            where_values = dict(zip(held, where, strict=True))
            out.append(_compare(axis, (a, options[a]), (b, options[b]), where_values, mix_numerics))
    return _resampled(out)


def against(runs: pd.DataFrame, column: str, baseline: Hashable) -> list[Row]:
    """Return comparisons of every other value of `column` with `baseline` (a), whatever else varies between them."""
    options: dict[Hashable, list[Row]] = {}
    for value, row in zip(keys(runs, column), runs.to_dict("records"), strict=True):
        options.setdefault(value, []).append(row)
    base = (baseline, options.pop(baseline))
    return _resampled([_compare(column, base, other, {}, False) for other in options.items()])


def _resampled(rows: list[Row]) -> list[Row]:
    """Return `rows` with their bootstrap intervals, which are computed together."""
    ends = bootstrap_intervals([row["differences"] for row in rows])
    return [row | {"bootstrap_95": list(bounds) if bounds else None} for row, bounds in zip(rows, ends, strict=True)]


def comparisons(runs: pd.DataFrame) -> list[Row]:
    """Return paired_differences along every column that varies, in the order of arm_columns."""
    axes = [column for column in arm_columns(runs) if column not in ("science_version", "data.fingerprint")]
    return [row for axis in axes for row in paired_differences(runs, axis)]


def _compare(
    axis: str, left: tuple[Any, list[Row]], right: tuple[Any, list[Row]], where: Row, mix_numerics: bool
) -> Row:
    (a, rows_a), (b, rows_b) = left, right
    by_seed_a, by_seed_b = _by_seed(rows_a, mix_numerics), _by_seed(rows_b, mix_numerics)
    common = sorted(by_seed_a.keys() & by_seed_b.keys())
    finished = [s for s in common if all(r["status"] == "completed" for r in (by_seed_a[s], by_seed_b[s]))]
    differences = [by_seed_b[seed]["val_loss"] - by_seed_a[seed]["val_loss"] for seed in finished]
    losses_a, losses_b = ([by[seed]["val_loss"] for seed in finished] for by in (by_seed_a, by_seed_b))
    bounds = interval(differences)
    diverged = {side: sum(row["status"] == "diverged" for row in rows) for side, rows in (("a", rows_a), ("b", rows_b))}
    unpaired = len(rows_a) + len(rows_b) - 2 * len(common)
    return {
        "axis": axis,
        "a": a,
        "b": b,
        "where": where,
        "n_pairs": len(differences),
        "differences": differences,
        "seeds": [{"init_seed": seed[0], "data_seed": seed[1]} for seed in finished],
        "mean_difference": statistics.fmean(differences) if differences else None,
        "sd_difference": statistics.stdev(differences) if len(differences) > 1 else None,
        "interval_95": list(bounds) if bounds else None,
        "bootstrap_95": None,  # computed for all comparisons together
        "p_sign_flip": sign_flip(differences) if differences else None,
        "correlation": correlation(losses_a, losses_b),
        "n_diverged": diverged,
        "n_unpaired": unpaired,
        "tokens_per_param": _fewest_tokens(rows_a, rows_b),
        "verdict": "undecided",
        "reason": _reason(differences, bounds, diverged, unpaired, _mismatch(rows_a, rows_b)),
    }


def _by_seed(rows: list[Row], mix_numerics: bool) -> dict[tuple[int, int, str], Row]:
    known = [row for row in rows if not is_missing(row["init_seed"]) and not is_missing(row["data_seed"])]
    return {(int(r["init_seed"]), int(r["data_seed"]), "" if mix_numerics else r["numerics"]): r for r in known}


def _fewest_tokens(rows_a: list[Row], rows_b: list[Row]) -> float | None:
    """Return the fewest training tokens per non-embedding parameter; None if no row says."""
    known = [row["tokens_per_param"] for row in (*rows_a, *rows_b) if not is_missing(row.get("tokens_per_param"))]
    return round(float(min(known)), 2) if known else None


def _mismatch(rows_a: list[Row], rows_b: list[Row]) -> float:
    """Return the excess of the largest model's parameters over the smallest's, as a fraction of the latter."""
    sizes = [row["n_params"] for row in (*rows_a, *rows_b)]
    return max(sizes) / max(1, min(sizes)) - 1


def _reason(
    differences: list[float], bounds: tuple[float, float] | None, diverged: dict[str, int], unpaired: int, excess: float
) -> str:
    n = len(differences)
    if n == 0:
        reasons = ["no pair of finished runs shares seeds and numerics"]
    elif bounds is None:
        reasons = ["1 paired seed: a difference cannot be told from noise"]
    elif bounds[0] <= 0 <= bounds[1]:
        reasons = [f"{n} paired seeds; interval includes 0"]
    else:
        reasons = [f"{n} paired seeds; interval excludes 0, but no margin or correction has been pre-registered"]
    if any(diverged.values()):
        reasons.append(f"diverged and therefore not paired: {diverged['a']} of a, {diverged['b']} of b")
    if unpaired:
        reasons.append(f"{unpaired} runs without a partner of the same seeds and numerics")
    if excess > 0.01:
        reasons.append(f"parameters differ by {excess:.1%}")
    return "; ".join(reasons)
