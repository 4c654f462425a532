"""All runs of several archives as one Parquet file, from which they can be restored, and as CSV.

A row is a run. Its columns are those of load_runs that differ between runs, its uses in studies (`studies`, `arms` and `stages`, lists of
one length), and as JSON its whole `result` and its `evaluations`. The file's metadata (``lmablate``, JSON) hold the studies, as JSON that
is compressed by zlib and written in base 64, since Parquet compresses rows alone.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmablate.core.axes import AXES
from lmablate.core.errors import ConfigError
from lmablate.results.archives import Archive, Row, free_name
from lmablate.results.arms import AXIS_ORDER
from lmablate.results.folders import numerics_text
from lmablate.results.load import flat_row
from lmablate.schema.identity import run_id_of
from lmablate.schema.result import LEADING, NUMBERS, WHOLE_OR_NONE, parse_result

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
METADATA = b"lmablate"
USES = ("studies", "arms", "stages")
CONTENT = ("result", "evaluations")
# Which study asked first, who trained it when, and how fast: two copies of one run may differ in these.
CIRCUMSTANCES = (
    *("sweep", "arm", "stage", "provenance", "tokens_per_second", "wall_seconds", "peak_memory_bytes"),
    *("diagnostics", "config", "choices", "solved"),
)
LEFT_OUT = ("provenance.", "diagnostics.", "val_accuracy_by_length.", "config.", "numerics.")
LEFT_OUT_WHOLE = ("stale", "sweep", "arm", "stage", "code", "data.fingerprint", "data.tokenizer")
ALWAYS = (*LEADING, *AXES, "data")  # columns that stay where all runs agree


def joined(archives: Sequence[Archive], name: str = "runs") -> Archive:
    """Return several archives as one. A run in several counts once: the copy with more diagnostics, of equal ones the first.

    Raises ConfigError for a run whose copies ended differently, and for an id that does not fit its configuration."""
    rows: dict[str, Row] = {}
    studies: list[Row] = []
    evaluations: dict[str, None] = {}
    origin: dict[str, str] = {}
    for archive in archives:
        for row in archive.rows:
            check_id(row, archive.name)
            before = rows.setdefault(row["run_id"], row)
            if differ := [
                key for key in {*row, *before} - {*CIRCUMSTANCES} if _outcome(row, key) != _outcome(before, key)
            ]:
                raise ConfigError(
                    f"run {row['run_id']} is in {origin[row['run_id']]} and in {archive.name}, with another {sorted(differ)[0]}: train "
                    "them into one results folder, where a run is trained once, and save both studies again"
                )
            if len(row.get("diagnostics") or ()) > len(before.get("diagnostics") or ()):
                rows[row["run_id"]] = row
            origin.setdefault(row["run_id"], archive.name)
        for study in archive.studies:
            if free := free_name(study, archive.name, studies):
                studies.append({**study, "sweep": free})
        evaluations |= dict.fromkeys(json.dumps(one) for one in archive.evaluations)
    scored = sorted(map(json.loads, evaluations), key=lambda one: one["run_id"])
    return Archive(name, [rows[key] for key in sorted(rows)], studies, scored)


def _outcome(row: Row, key: str) -> Any:
    """Return what must agree between copies of a run; of numerics, what pairs are told apart by."""
    return numerics_text(row[key]) if key == "numerics" else row.get(key)


def check_id(row: Row, where: str | Path) -> None:
    """Raise ConfigError unless the id of a row is that of its configuration."""
    try:
        own = run_id_of(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        own = f"none ({type(error).__name__}: {error})"
    if own != row.get("run_id"):
        raise ConfigError(
            f"{where}: run {row.get('run_id')} is not the run of its configuration, whose id is {own}: the row was changed after training"
        )


def uses(archives: Iterable[Archive]) -> dict[str, list[tuple[str, str | None, str | None]]]:
    """Return the uses of every run: (archive, arm, stage), in the order of the archives."""
    out: dict[str, dict[tuple[str, str | None, str | None], None]] = {}
    for archive in archives:
        used = [use for study in archive.studies for use in study["runs"]]
        known = {use["run_id"] for use in used}
        for use in [*used, *(row for row in archive.rows if row["run_id"] not in known)]:
            key = (archive.name, use.get("arm"), use.get("stage"))
            out.setdefault(use["run_id"], {})[key] = None
    return {run_id: list(own) for run_id, own in out.items()}


def columns(rows: Sequence[Row]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the scalar columns of result rows, the main ones and those that differ between the rows, and the values that do not."""
    each = [flat(row) for row in rows]
    names = dict.fromkeys([*ALWAYS, *AXIS_ORDER, *sorted({key for one in each for key in one})])
    found = {name: [one.get(name) for one in each] for name in names if name not in LEFT_OUT_WHOLE}
    kept = {name: values for name, values in found.items() if name in ALWAYS or _varies(values)}
    equal = {name: values[0] for name, values in found.items() if name not in kept and values[0] is not None}
    return kept, equal


def flat(row: Row) -> dict[str, Any]:
    """Return what columns may hold of a result row. Raises ValueError for a row that is no result."""
    result, problem = parse_result({**row})
    if result is None:
        raise ValueError(f"result of run {row.get('run_id')}: {problem}")
    kept = {
        key: value
        for key, value in flat_row(result).items()
        if not key.startswith(LEFT_OUT) and not key.endswith("_target_")
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _varies(values: Sequence[Any]) -> bool:
    first = values[0]
    return any(value != first or type(value) is not type(first) for value in values)


class Dataset(NamedTuple):
    """The runs of several archives: as one archive, as a table of pyarrow with its metadata, and what is equal in all of them."""

    whole: Archive
    table: pa.Table
    equal: dict[str, Any]


def dataset_of(archives: Sequence[Archive]) -> Dataset:
    """Return the dataset of one archive or more. Raises ConfigError as joined does."""
    import pyarrow as pa

    whole = joined(archives)
    used = uses(archives)
    by_run: dict[str, list[Row]] = {}
    for one in whole.evaluations:
        by_run.setdefault(one["run_id"], []).append(one)
    scalars, equal = columns(whole.rows)
    arrays = {name: array(name, values) for name, values in scalars.items()}
    for i, name in enumerate(USES):
        values = [[use[i] for use in used[row["run_id"]]] for row in whole.rows]
        arrays[name] = pa.array(values, pa.list_(pa.string()))
    arrays["result"] = pa.array([_json(row) for row in whole.rows], pa.string())
    found = [by_run.get(row["run_id"]) for row in whole.rows]
    arrays["evaluations"] = pa.array([_json(own) if own else None for own in found], pa.string())
    first = ("run_id", *USES)
    names = [*first, *(name for name in arrays if name not in first)]
    packed = base64.b64encode(zlib.compress(_json(whole.studies).encode(), 9)).decode()
    content = {"schema_version": SCHEMA_VERSION, "archives": [one.name for one in archives], "studies": packed}
    table = pa.table({name: arrays[name] for name in names})
    return Dataset(whole, table.replace_schema_metadata({METADATA: _json(content).encode()}), equal)


def array(name: str, values: Sequence[Any]) -> pa.Array:
    """Return a column; numbers and words together, and lists, become JSON text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if name in NUMBERS or kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) > 1 or list in kinds:
        return pa.array([value if value is None or isinstance(value, str) else _json(value) for value in values])
    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    kind = int if name in WHOLE_OR_NONE else next(iter(kinds), str)
    return pa.array(values, types.get(kind, pa.string()))


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file with checksums of its pages."""
    import pyarrow.parquet as pq

    buffer, content = io.BytesIO(), table.schema.metadata
    plain = table.replace_schema_metadata(None)
    with pq.ParquetWriter(
        buffer, plain.schema, compression="zstd", compression_level=19, write_page_checksum=True, store_schema=False
    ) as writer:  # the schema of Arrow would hold the metadata once more
        writer.write_table(plain)
        writer.add_key_value_metadata(content)
    return buffer.getvalue()


def to_csv(table: pa.Table) -> str:
    """Return a table as CSV, without the columns of JSON; lists are joined by `` | ``."""
    frame = table.drop_columns(list(CONTENT)).to_pandas(types_mapper=_nullable().get)
    for name in USES:
        frame[name] = [" | ".join("" if item is None else item for item in own) for own in frame[name]]
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _nullable() -> dict[Any, Any]:
    """Return types of pandas that keep whole numbers and truth values beside nulls."""
    import pandas as pd
    import pyarrow as pa

    return {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
