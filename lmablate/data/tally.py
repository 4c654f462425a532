"""The count of faulty rows of a source: refused with file and line, or skipped and counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from lmablate.core.errors import DataError

PATIENCE = 100_000  # rows without any text, after which the rest of a file is not read
OR_SKIP = ", or leave such rows out with data.skip_bad_lines=true"


class Tally:
    """The count of rows over the files of a source.

    A row whose field is null or absent makes no document, as in Parquet, where both look the same. If that holds for every row of a
    file, the field is wrong. With `skip`, a bad row is skipped and counted.
    """

    def __init__(self, field: str, *, skip: bool) -> None:
        self.field, self.skip = field, skip
        self.rows = self.empty = self.bad = 0
        self._first_empty = self._first_bad = ""
        self.begin("")

    def begin(self, where: str) -> None:
        """Start counting the rows of another file."""
        self.where = where
        self._before = self.rows, self.empty, self.bad
        self._names: list[str] | None = None

    @property
    def row(self) -> int:
        """Return the number of rows counted in this file."""
        return self.rows - self._before[0]

    def refuse(self, place: str, why: str, mend: str = "mend it") -> None:
        """Record a row, already counted, that cannot be a document. Raises DataError unless bad rows are skipped."""
        problem = f"{self.where} {place}: {why}"
        if not self.skip:
            raise DataError(f"{problem}: {mend}{OR_SKIP}")
        self.bad += 1
        self._first_bad = self._first_bad or problem

    def count_empty(self, place: str, names: Iterable[str], count: int = 1) -> None:
        """Record `count` rows without text, already counted, the first at `place`; `names` are the existing fields."""
        self.empty += count
        self._first_empty = self._first_empty or f"{self.where} {place}"
        if self._names is None:
            self._names = list(names)
        if self.row >= PATIENCE and self.empty - self._before[1] == self.row:
            self.no_field(self._names)

    def end(self) -> None:
        """Raise DataError if this file has rows, but no text."""
        rows, empty, bad = (
            now - before for now, before in zip((self.rows, self.empty, self.bad), self._before, strict=True)
        )
        if bad == rows > 0:
            raise DataError(f"{self.where}: all {rows:,} rows are bad; the first: {self._first_bad}")
        if empty and empty + bad == rows:
            self.no_field(self._names or [])

    def no_field(self, names: list[str]) -> NoReturn:
        """Raise DataError because the field is missing or null everywhere."""
        if self.field in names:
            raise DataError(
                f"{self.where}: the field {self.field} is null in each of {self.row:,} rows: name another with data.text_field"
            )
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise DataError(
            f"{self.where} has no field {self.field}; it has {shown or 'none'}: name one with data.text_field"
        )

    def notices(self) -> list[str]:
        """Return notices for the user on the rows that make no document."""
        notices = []
        if self.bad:
            notices.append(
                f"{self.bad:,} of {self.rows:,} rows are bad and left out, as data.skip_bad_lines=true asks; the first: {self._first_bad}"
            )
        if self.empty:
            notices.append(
                f"{self.empty:,} of {self.rows:,} rows have no text, since their field {self.field} is null or absent; "
                f"the first: {self._first_empty}"
            )
        return notices
