"""Documents from Arrow tables, without a copy, and from the files that contain them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lmablate.core.errors import DataError
from lmablate.data.tally import Tally

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256  # per read


def table_texts(table: pa.Table, tally: Tally) -> Iterator[memoryview]:
    """Yield the UTF-8 of the column `tally.field`, row by row; bytes count as text if they are UTF-8. Raises DataError if the column is
    missing or is not text."""
    import pyarrow as pa

    column = _column(table, tally)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not pa.types.is_null(kind) and kind not in _text_types():
        held = kind if not pa.types.is_struct(kind) else f"the fields {', '.join(kind.names)}: say which, after a dot"
        raise DataError(
            f"{tally.where}: the field {tally.field} must hold text in every row, and holds {held}; name one with data.text_field"
        )
    for chunk in column.chunks:
        yield from _chunk_texts(chunk, tally, _names(table.schema))


def parquet_texts(file: BinaryIO, tally: Tally) -> Iterator[memoryview]:
    """Yield the documents of a Parquet file; other columns are not read."""
    import pyarrow as pa
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(_seekable(file)) as parquet:
        _column(parquet.schema_arrow.empty_table(), tally)
        for batch in parquet.iter_batches(batch_size=ROWS, columns=[tally.field]):
            yield from table_texts(pa.Table.from_batches([batch]), tally)


def ipc_texts(file: BinaryIO, tally: Tally) -> Iterator[memoryview]:
    """Yield the documents of an Arrow file or stream; ``save_to_disk`` of ``datasets`` writes streams."""
    import pyarrow as pa

    seekable = _seekable(file)
    is_file = seekable.read(6) == b"ARROW1"
    seekable.seek(0)
    if is_file:
        opened = pa.ipc.open_file(seekable)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(seekable))
    for batch in batches:
        yield from table_texts(pa.Table.from_batches([batch]), tally)


def _text_types() -> tuple[Any, ...]:
    import pyarrow as pa

    return (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _column(table: pa.Table, tally: Tally) -> pa.ChunkedArray:
    """The column of the tally's field; a dot leads into a struct, unless a column name has it."""
    import pyarrow as pa
    import pyarrow.compute

    if tally.field in table.column_names:
        return table.column(tally.field)
    first, *inner = tally.field.split(".")
    if first in table.column_names:
        column = table.column(first)
        while inner and pa.types.is_struct(column.type) and inner[0] in column.type.names:
            column = pyarrow.compute.struct_field(column, inner.pop(0))
        if not inner:
            return column
    return tally.no_field(_names(table.schema))


def _names(schema: Any) -> list[str]:
    """The fields of a table; those of a struct follow a dot."""
    import pyarrow as pa

    found: list[str] = []
    for field in schema:
        inner = field.type.names if pa.types.is_struct(field.type) else []
        found += [f"{field.name}.{name}" for name in inner] or [field.name]
    return found


def _chunk_texts(chunk: Any, tally: Tally, names: list[str]) -> Iterator[memoryview]:
    if len(chunk) == 0:
        return
    first = tally.row + 1
    tally.rows += len(chunk)
    if chunk.null_count:
        place = int(np.flatnonzero(np.asarray(chunk.is_null()))[0])
        tally.count_empty(f"row {first + place:,}", names, chunk.null_count)
    strings = _utf8(chunk, tally, first)
    _, offsets, data = strings.buffers()
    if data is None:  # empty strings or nulls only
        return
    view = memoryview(data)
    bounds = np.frombuffer(offsets, dtype=np.int64)[strings.offset : strings.offset + len(strings) + 1]
    valid = np.asarray(strings.is_valid())
    for keep, start, end in zip(valid.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if keep:
            yield view[start:end]


def _utf8(chunk: Any, tally: Tally, first: int) -> Any:
    """`chunk` as validated strings; rows that are not UTF-8 are refused or skipped."""
    import pyarrow as pa

    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    try:
        strings = chunk.cast(pa.large_string())
        strings.validate(full=True)
        return strings
    except pa.ArrowInvalid:
        raw = chunk.cast(pa.large_binary())
        good = [_is_utf8(value) for value in raw.to_pylist()]
    for row, fine in enumerate(good, first):
        if not fine:
            tally.refuse(f"row {row:,}", f"the field {tally.field} is not UTF-8 text", "convert it")
    return raw.filter(pa.array(good)).cast(pa.large_string())


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _seekable(file: BinaryIO) -> Any:
    """`file`, or a temporary copy if it is compressed: these formats are read from the end."""
    import shutil

    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  deleted with its last reference
    shutil.copyfileobj(file, copy, 1 << 20)
    copy.seek(0)
    return copy
