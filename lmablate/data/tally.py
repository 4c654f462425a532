"""What is found wrong in the rows of a source: refused by file and line, or left out and counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from lmablate.core.errors import DataError

PATIENCE = 100_000  # rows of a file without any text, after which the rest of it is not read
OR_SKIP = ", or leave such rows out with data.skip_bad_lines=true"


class Tally:
    """Counts rows over the files of a source. A row whose field is null or absent makes no document, as in Parquet, where the
    two look alike; a file in which every row is so has the wrong field. With `skip`, a bad row is left out, and counted."""

    def __init__(self, field: str, *, skip: bool) -> None:
        self.field, self.skip = field, skip
        self.rows = self.empty = self.bad = 0
        self._first_empty = self._first_bad = ""
        self.begin("")

    def begin(self, where: str) -> None:
        """The rows of another file follow."""
        self.where = where
        self._before = self.rows, self.empty, self.bad
        self._names: list[str] | None = None

    @property
    def row(self) -> int:
        """How many rows of this file were counted."""
        return self.rows - self._before[0]

    def refuse(self, place: str, why: str, mend: str = "mend it") -> None:
        """A row, counted already, that cannot be a document. Raises DataError unless such rows are to be left out."""
        told = f"{self.where} {place}: {why}"
        if not self.skip:
            raise DataError(f"{told}: {mend}{OR_SKIP}")
        self.bad += 1
        self._first_bad = self._first_bad or told

    def lack(self, place: str, names: Iterable[str], count: int = 1) -> None:
        """`count` rows, counted already and the first at `place`, without text; `names` are the fields that there are."""
        self.empty += count
        self._first_empty = self._first_empty or f"{self.where} {place}"
        if self._names is None:
            self._names = list(names)
        if self.row >= PATIENCE and self.empty - self._before[1] == self.row:
            self.no_field(self._names)

    def end(self) -> None:
        """Raise DataError if this file had rows, and none of them a text."""
        rows, empty, bad = (
            now - before for now, before in zip((self.rows, self.empty, self.bad), self._before, strict=True)
        )
        if bad == rows > 0:
            raise DataError(f"{self.where}: all {rows:,} rows are bad; the first: {self._first_bad}")
        if empty and empty + bad == rows:
            self.no_field(self._names or [])

    def no_field(self, names: list[str]) -> NoReturn:
        """Raise DataError: none of the fields is the one asked for, or it is null everywhere."""
        if self.field in names:
            raise DataError(
                f"{self.where}: the field {self.field} is null in each of {self.row:,} rows: name another with data.text_field"
            )
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise DataError(
            f"{self.where} has no field {self.field}; it has {shown or 'none'}: name one with data.text_field"
        )

    def notices(self) -> list[str]:
        """What a user should know of the rows that make no document."""
        said = []
        if self.bad:
            said.append(
                f"{self.bad:,} of {self.rows:,} rows are bad and left out, as data.skip_bad_lines=true asks; the first: {self._first_bad}"
            )
        if self.empty:
            said.append(
                f"{self.empty:,} of {self.rows:,} rows have no text, since their field {self.field} is null or absent; "
                f"the first: {self._first_empty}"
            )
        return said
