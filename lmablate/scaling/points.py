"""The points of a law: sizes and final losses, of anybody's runs (a CSV) or of ours."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.scaling.forms import Columns, Form

TOGETHER = 0.999  # correlation of two log sizes that no law can separate
FEWEST = 3  # sizes that determine the bend of a law
GROUP = "run"  # optional column: points of one run (budgets of one trunk) are no independent draws


class Points(NamedTuple):
    """`columns`: sizes by name; `loss`: nats per token; `group`: a number for each independent run. All ``[points]``."""

    columns: Columns
    loss: np.ndarray
    group: np.ndarray

    @classmethod
    def of(
        cls, columns: Mapping[str, Sequence[float]], loss: Sequence[float], group: Sequence[object] | None = None
    ) -> Points:
        """Return points from sequences; without `group` each is a run of its own."""
        names = list(range(len(loss))) if group is None else list(group)
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        sizes = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
        return cls(sizes, np.asarray(loss, dtype=float), np.array([order[name] for name in names], dtype=int))


def check_points(points: Points, form: Form, where: str = "") -> None:
    """Raise ConfigError for points that cannot carry a law: bad numbers, too few sizes, or too few points."""
    for name, values in {**{c: points.columns[c] for c in form.columns}, "loss": points.loss}.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ConfigError(
                f"{where}point {bad[0] + 1} has {name}={values[bad[0]]:g}: a law needs numbers above 0; leave the point out"
            )
    for name in form.columns:
        sizes = len(np.unique(points.columns[name]))
        if sizes < FEWEST:
            raise ConfigError(
                f"{where}{sizes} different {name}: a law needs {FEWEST} or more sizes; add rungs, or choose another --form"
            )
    if len(form.columns) == 2:
        a, b = (np.log(points.columns[name]) for name in form.columns)
        if np.corrcoef(a, b)[0, 1] > TOGETHER:
            raise ConfigError(
                f"{where}{' and '.join(form.columns)} grow together, so that their exponents cannot be told apart: give several numbers "
                "of tokens for each size (schedule=wsd_branches), or fit flops (--form compute)"
            )
    least = len(form.names)
    if len(points.loss) <= least:
        raise ConfigError(
            f"{where}{len(points.loss)} points for the {least} parameters of {form.name}: give more points than parameters"
        )


def read_points(path: Path, form: Form) -> Points:
    """Return the points of a CSV file that has the columns of `form` and ``loss``; others are not read, but for ``run``.

    Raises ConfigError with the line and the mend."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header, form)
            rows = list(reader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({access.reason(error)})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: is no CSV file ({error}): give text with a line of column names") from error
    if not rows:
        raise ConfigError(f"{path}: has no line below its column names")
    wanted = (*form.columns, "loss")
    values = {name: [_number(path, i, name, row.get(name)) for i, row in enumerate(rows, 2)] for name in wanted}
    loss = values.pop("loss")
    points = Points.of(values, loss, [row[GROUP] for row in rows] if GROUP in header else None)
    check_points(points, form, f"{path}: ")
    return points


def _check_header(path: Path, header: Sequence[str], form: Form) -> None:
    lacking = [name for name in (*form.columns, "loss") if name not in header]
    if not lacking:
        return
    mend = f"name the columns {', '.join((*form.columns, 'loss'))} in the first line"
    if "flops" in lacking and {"params", "tokens"} <= set(header):
        mend = "add flops (6 * params * tokens is usual), or use --form chinchilla"
    elif "flops" in header and "loss" in header:
        mend = f"{mend}, or use --form compute"
    raise ConfigError(
        f"{path}: --form {form.name} needs the column {' and '.join(lacking)}; it has {', '.join(header) or 'none'}: {mend}"
    )


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(
            f"{path}, line {line}: {name}={(text or '').strip() or 'nothing'}: must be a number above 0; mend the line or leave it out"
        )
    return value
