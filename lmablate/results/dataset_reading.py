"""Read a dataset of runs (results/dataset.py), and refuse what is none, is damaged, or does not agree with itself."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.core.access import reason
from lmablate.core.errors import ConfigError
from lmablate.core.files import MOST_JSON, parsed, read_bounded
from lmablate.results.archives import Archive, Row, check_names
from lmablate.results.dataset import CONTENT, METADATA, SCHEMA_VERSION, USES, array, check_id, flat

if TYPE_CHECKING:
    import pyarrow as pa

MOST_BYTES = 1 << 30  # of a file, also once decompressed


def read_dataset(path: Path) -> Archive:
    """Return the runs, studies and evaluations of a Parquet file that to_parquet made.

    Raises ConfigError for another file, a damaged one, and one whose columns do not agree with its results."""
    try:
        table = _read(path)
        studies = _studies(table)
        rows = [_object(text) for text in table["result"].to_pylist()]
        evaluations = [one for text in table["evaluations"].to_pylist() if text for one in parsed(text.encode())]
        check_names(rows, studies)
        _check_columns(table, rows)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # errors of pyarrow are of these
        why = reason(error) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise ConfigError(
            f"{path}: not a dataset of runs ({why}): give a Parquet file of lmablate, such as docs/results/runs.parquet, or the "
            "folder of an archive"
        ) from None
    for row in rows:
        check_id(row, path)
    return Archive(path.stem, rows, studies, evaluations)


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = read_bounded(path, MOST_BYTES)
    with pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True) as file:
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes once decompressed, and {MOST_BYTES:,} at most are read")
        if missing := [name for name in ("run_id", *USES, *CONTENT) if name not in file.schema_arrow.names]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        table = file.read().replace_schema_metadata(meta.metadata)
    for name in ("run_id", *CONTENT):
        if table.schema.field(name).type != pa.string() or (name != "evaluations" and table[name].null_count):
            raise ValueError(f"the column {name} must hold text in every row")
    return table


def _studies(table: pa.Table) -> list[Row]:
    content = _object((table.schema.metadata or {}).get(METADATA, b"null"))
    if content.get("schema_version") != SCHEMA_VERSION:
        version = content.get("schema_version")
        raise ValueError(f"schema_version is {version}, and this lmablate reads {SCHEMA_VERSION}")
    try:
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(base64.b64decode(content["studies"]), MOST_JSON)
        found = parsed(text)
        whole = unpacked.eof and isinstance(found, list) and all(isinstance(study, dict) for study in found)
    except (zlib.error, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError("the studies in its metadata are damaged")
    return list(found)


def _object(text: str | bytes) -> Row:
    value = parsed(text.encode() if isinstance(text, str) else text)
    if not isinstance(value, dict):
        raise ValueError("its metadata or results are no JSON objects")
    return value


def _check_columns(table: pa.Table, rows: Sequence[Row]) -> None:
    """Raise ValueError where a column differs from the result of its run."""
    if len({row["run_id"] for row in rows}) < len(rows):
        raise ValueError("a run is there twice")
    each = [flat(row) for row in rows]
    for name in table.column_names:
        if name in (*USES, *CONTENT):
            continue
        told = array(name, [one.get(name) for one in each]).to_pylist()
        for row, there, own in zip(rows, table[name].to_pylist(), told, strict=True):
            if there != own:
                raise ValueError(f"{name} of run {row['run_id']} is {there}, and {own} in its result")
