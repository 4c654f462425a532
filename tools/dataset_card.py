"""The card of the published dataset: what a row is, its columns, licences, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lmablate.core.axes import AXES
from lmablate.core.console import markdown_table
from lmablate.results.dataset import CONTENT
from lmablate.schema.identity import SCIENCE_VERSION
from lmablate.schema.result import RunResult

LONGEST = 24  # characters of a constant
OWN = {
    "studies": "the studies that used the run, which are folders of docs/results",
    "arms": "its arm in each of them",
    "stages": "its stage in each: tune, evaluate, evaluate_shared, or none for a plain grid",
    "numerics": "what may move the last bits: device, precision, compiled or eager, gang",
    "result": "the whole row of the run as JSON, from which it is restored",
    "evaluations": "losses of the run at longer windows as JSON, where they were measured",
    "data": "the text: sotu (State of the Union addresses) or kjv (King James Bible)",
}
KINDS = {pa.int64(): "whole number", pa.float64(): "number", pa.bool_(): "true or false", pa.string(): "text"}
PAGE = """# The runs as one table

Every run behind [the lecture, claim by claim](../lecture.md): {n_runs:,} runs of {n_studies} ({studies}), science version {version}.
Written by `python tools/lecture.py docs/results --out docs/lecture.md`; do not edit.

| file | holds |
|---|---|
| [runs.parquet](runs.parquet) | all runs, and what is needed to restore them |
| [runs.csv](runs.csv) | the same without the columns of JSON |

## Load it

```python
import pandas as pd

runs = pd.read_parquet("docs/results/runs.parquet")
used = runs.explode(["studies", "arms", "stages"])
```

In `runs` a row is a run: one model, trained once. In `used` it is a use of a run, since several studies share their baseline.
`used[(used.studies == "{first}") & (used.stages == "evaluate")]` are the runs behind the verdicts of that study; rates were chosen on
runs of the stage `tune`, which prove nothing.

## Get the verdicts from it

```bash
python -m lmablate.archive restore docs/results/runs.parquet restored
python -m lmablate.report restored
```

The restored runs are those of the folders of docs/results, and so are the studies, which the file has in its metadata. Where two
folders hold the same stored sweep, the second study has the name of its folder behind its own.

## Columns

Losses are in nats per token, sizes in parameters, times in seconds. A column stands here if it differs between runs.
The [configuration reference](../reference/configuration.md) explains dotted names.

{columns}

{constants}

## Where it is from, and licences

- Each run was trained by lmablate on this text alone, at `scale=laptop` or on a rung of `ladder=laptop`. Runs that failed are left
  out; runs that diverged are rows without a final loss. Names of machines and folders are left out.
- The rows are under Apache-2.0, as lmablate is. They hold no text.
- The State of the Union addresses are in the public domain (17 U.S.C. 105). The King James Bible is too, outside the United Kingdom.
- `science_version` is raised when the code would compute other numbers. Rows of several versions do not compare.
- An id is a hash of the configuration. `archive restore` refuses a row whose id does not fit, and a column that was changed.
"""


def card(table: pa.Table, equal: Mapping[str, Any], studies: Sequence[str]) -> str:
    """Return the page of a dataset; `equal`: what all its runs share."""
    lines = [(f"`{field.name}`", _kind(field.type), _meaning(field.name)) for field in table.schema]
    fixed = [f"`{name}` {value}" for name, value in sorted(equal.items()) if len(str(value)) <= LONGEST]
    many = len(studies) != 1
    return PAGE.format(
        n_runs=len(table), first=studies[0], n_studies=f"{len(studies)} stud{'ies' if many else 'y'}", studies=", ".join(studies),
        version=SCIENCE_VERSION, columns=markdown_table(("column", "type", "meaning"), lines),
        constants=f"Equal in all runs: {', '.join(fixed)}." if fixed else "",
    )  # fmt: skip


def _kind(kind: pa.DataType) -> str:
    return "list of texts" if pa.types.is_list(kind) else KINDS.get(kind, str(kind))


def _meaning(name: str) -> str:
    fields = RunResult.model_fields
    if name in OWN:
        return OWN[name]
    if name in fields:
        return str(fields[name].description)
    if name in AXES:
        return f"option of the axis {name}"
    if name.startswith("val_loss_"):
        return "val_loss, measured otherwise: see the reference of results"
    return "of the configuration" if name not in CONTENT else ""
