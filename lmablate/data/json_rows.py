"""Documents out of JSON: an object a line, one list of objects, or objects written over several lines.

Each row is parsed for itself and its one field taken, so that no other field has to keep a type.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from lmablate.core.errors import DataError
from lmablate.data.tally import Tally

MOST_ROW = 1 << 30  # bytes of a row, so that a file without line ends does not fill the memory
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_CONVERT = "convert the file, e.g. with iconv -f latin1 -t utf-8"


def json_texts(file: BinaryIO, tally: Tally) -> Iterator[bytes]:
    """The UTF-8 of the field asked for, row by row. Raises DataError with the line of a row that cannot be a document."""
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
            tally.lack(f"line {number:,}", _names(row))


def _text(row: Any, field: str) -> str | None:
    """The text of a row; None where its field is null or absent. A dot leads into an object, unless a name has it."""
    if isinstance(row, str):  # a list of strings
        return row
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object with the field {field}, and is {_kind(row)}")
    value: Any = row
    for key in (field,) if field in row else field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, str):
        return value
    held = f" with {', '.join(_names(value, field + '.'))}" if isinstance(value, dict) else ""
    raise ValueError(f"the field {field} must hold text, and holds {_kind(value)}{held}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else f"the number {value}"


def _names(row: dict[str, Any], before: str = "") -> list[str]:
    """The fields of a row, those of the objects in it behind a dot."""
    found = []
    for key, value in row.items():
        found += [f"{before}{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [before + key]
    return found


def _rows(file: BinaryIO, tally: Tally) -> Iterator[tuple[int, Any]]:
    """The rows, each with the number of the line that it begins in."""
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
    """The lines that are not blank, stripped, with their numbers; the mark that some editors begin a file with is dropped."""
    number = 0
    while line := file.readline(MOST_ROW + 1):
        number += 1
        if len(line) > MOST_ROW:
            raise DataError(f"{where} line {number:,} has more than {MOST_ROW:,} bytes: are these JSON lines?")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line := line.strip():
            yield number, line


def _goes_on(line: bytes) -> bool:
    """Does `line` begin an object that ends in another line, as files for people do?"""
    if not line.startswith(b"{") or not line.endswith((b"{", b",", b"[")):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _values(file: BinaryIO, head: bytes, number: int, tally: Tally) -> Iterator[tuple[int, Any]]:
    """The rows of one list, or objects one after the other. Where one is broken the next is not found, so none is left out."""
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
            # Perhaps the rest has not been read; twice as much each time, so that a long row costs no square of its length.
            try:
                block = file.read(max(1 << 20, len(text) - at))
                ended = not block
                text, at = text[at:] + decoder.decode(block, final=ended), 0
            except UnicodeDecodeError:
                raise DataError(f"{tally.where}: it is not UTF-8 text (after line {number:,}): {_CONVERT}") from None
            if len(text) > MOST_ROW + (1 << 20):
                raise DataError(f"{tally.where} line {number:,}: a row has more than {MOST_ROW:,} bytes") from None
        else:
            yield number, row
            number += text.count("\n", at, end)
            at = end


def _short(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too many lists and objects within each other"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
