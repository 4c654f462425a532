"""Documents from JSON: one object per line, one list of objects, or objects written over several lines.

Each row is parsed separately for its one field, so that other fields need no consistent type.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from lmablate.core.errors import DataError
from lmablate.data.tally import Tally

MAX_ROW = 1 << 30  # bytes of a row, so that a file without line ends does not fill the memory
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_CONVERT = "convert the file, e.g. with iconv -f latin1 -t utf-8"


def json_texts(file: BinaryIO, tally: Tally) -> Iterator[bytes]:
    """Yield the UTF-8 of the tally's field, row by row. Raises DataError with the line of a row that cannot be a document."""
    for number, row in _rows(file, tally):
        tally.rows += 1
        try:
            text = _text(row, tally.field)
            if text is not None:
                yield text.encode()
                continue
        except UnicodeEncodeError:
            tally.refuse(
                f"line {number:,}", f"the field {tally.field} has half a surrogate pair, which is no character"
            )
        except ValueError as error:
            tally.refuse(f"line {number:,}", str(error), "name another field with data.text_field")
        else:
            tally.count_empty(f"line {number:,}", _names(row))


def _text(row: Any, field: str) -> str | None:
    """The text of a row; None if its field is null or absent. A dot leads into an object, unless a key has it."""
    if isinstance(row, str):  # a list of strings
        return row
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object with the field {field}, and is {_kind(row)}")
    value: Any = row
    for key in (field,) if field in row else field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, str):
        return value
    content = f" with {', '.join(_names(value, field + '.'))}" if isinstance(value, dict) else ""
    raise ValueError(f"the field {field} must hold text, and holds {_kind(value)}{content}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else f"the number {value}"


def _names(row: dict[str, Any], before: str = "") -> list[str]:
    """The fields of a row; those of inner objects follow a dot."""
    found = []
    for key, value in row.items():
        found += [f"{before}{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [before + key]
    return found


def _rows(file: BinaryIO, tally: Tally) -> Iterator[tuple[int, Any]]:
    """The rows, each with the number of its first line."""
    first = True
    for number, line in _lines(file, tally.where):
        if first and (line.startswith(b"[") or _goes_on(line)):
            yield from _values(file, line, number, tally)
            return
        first = False
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            why, mend = f"it is not UTF-8 text (at byte {error.start + 1} of the line)", _CONVERT
        except json.JSONDecodeError as error:
            why, mend = f"it is not JSON (character {error.pos + 1}: {error.msg})", "mend it"
        except (RecursionError, ValueError) as error:
            why, mend = f"it cannot be read ({_short(error)})", "mend it"
        else:
            yield number, row
            continue
        tally.rows += 1
        tally.refuse(f"line {number:,}", why, mend)


def _lines(file: BinaryIO, where: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, stripped, with their numbers and without a byte order mark."""
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise DataError(f"{where} line {number:,} has more than {MAX_ROW:,} bytes: are these JSON lines?")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line := line.strip():
            yield number, line


def _goes_on(line: bytes) -> bool:
    """Return True if `line` begins an object that ends in another line, as in indented files."""
    if not line.startswith(b"{") or not line.endswith((b"{", b",", b"[")):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _values(file: BinaryIO, head: bytes, number: int, tally: Tally) -> Iterator[tuple[int, Any]]:
    """The rows of one list, or consecutive objects. After a broken one the next cannot be found, so none is skipped."""
    scan = json.JSONDecoder().raw_decode
    decoder = codecs.getincrementaldecoder("utf-8")()
    in_list = head.startswith(b"[")
    text, at, ended = decoder.decode(head[in_list:] + b"\n"), 0, False
    while True:
        start, at = at, _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text
        number += text.count("\n", start, at)
        if in_list and text.startswith("]", at):
            if text[at + 1 :].strip() or file.read(1 << 20).strip():
                raise DataError(f"{tally.where} line {number:,}: more follows the list that the file begins with")
            return
        try:
            row, end = scan(text, at)
        except (ValueError, RecursionError) as error:
            if ended:
                if at == len(text) and not in_list:
                    return
                raise DataError(f"{tally.where} line {number:,}: it is not JSON ({_short(error)}): mend it") from None
            # The rest may be unread; each read doubles, so that a long row does not take quadratic time.
            try:
                block = file.read(max(1 << 20, len(text) - at))
                ended = not block
                text, at = text[at:] + decoder.decode(block, final=ended), 0
            except UnicodeDecodeError:
                raise DataError(f"{tally.where}: it is not UTF-8 text (after line {number:,}): {_CONVERT}") from None
            if len(text) > MAX_ROW + (1 << 20):
                raise DataError(f"{tally.where} line {number:,}: a row has more than {MAX_ROW:,} bytes") from None
        else:
            yield number, row
            number += text.count("\n", at, end)
            at = end


def _short(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too many lists and objects within each other"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
