"""Documents out of Arrow tables, without a copy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lmablate.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def texts(table: pa.Table, field: str, where: str) -> Iterator[memoryview]:
    """The UTF-8 of column `field` row by row; a null is skipped.

    Raises DataError, which begins with `where`, if there is no such column or it does not hold text.
    """
    import pyarrow as pa

    if field not in table.column_names:
        raise DataError(
            f"{where} has no field {field}; it has {', '.join(table.column_names)}: name one with data.text_field"
        )
    column = table.column(field)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        held = "values of several types" if str(kind) == "extension<arrow.json>" else kind
        raise DataError(f"{where}: the field {field} must hold text in every row, and holds {held}")
    for chunk in column.cast(pa.large_string()).chunks:
        if len(chunk) == 0:
            continue
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(f"{where}: the field {field} is not UTF-8 text ({error})") from error
        _, offsets, data = chunk.buffers()
        if data is None:  # empty strings only
            continue
        view = memoryview(data)
        bounds = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        valid = np.asarray(chunk.is_valid())
        for keep, start, end in zip(valid.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            if keep:
                yield view[start:end]


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No log lines of the ``datasets`` package: what they tell stands in our own message."""
    import datasets  # noqa: F401  since its import sets the level

    log = logging.getLogger("datasets")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def first_line(error: BaseException) -> str:
    """What went wrong, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
