"""What commands show on a terminal: tables that fit, durations, and lines about work that takes its time.

All strings are shown as they are: nothing in them is taken for rich's markup, and nothing steers the terminal.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
VERBOSE = "LMABLATE_VERBOSE"  # the variable that hands -v on
UNLIMITED = 100_000  # columns of a file or a pipe
GAP = 2  # between two columns
NAME_WIDTH = 24  # what is left of a column of names, at least, before its cells take several lines
QUIET_SECONDS, LINE_SECONDS = 4.0, 10.0  # before the first line about slow work, and between two
TERMINAL_SECONDS = 1.0  # the same on a terminal, where a line replaces the one before


def plain(text: str) -> str:
    """Return `text` fit for a terminal: signs that would steer it (colours, the cursor, a title) are shown as boxes."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def prose(docstring: str | None) -> str:
    """Return a docstring as a reader of ``--help`` wants it: without the marks of code."""
    return (docstring or "").replace("`", "")


def width() -> int:
    """Return the columns there are: those of COLUMNS, else of the terminal; a file or a pipe takes lines of any length."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else UNLIMITED


def console(*, live: bool = False) -> Console:
    """Return rich's console on the standard output. It breaks no line (tables fit themselves), but for a `live` display, which
    has to know its height."""
    from rich.console import Console

    return Console(file=sys.stdout, width=width() if live else UNLIMITED)


class Column(NamedTuple):
    """A column of a table: its heading; whether it stays however narrow the terminal is; and whether it holds names, which
    stand on the left and may take several lines where nothing else helps. Other columns hold numbers and short words."""

    name: str
    keep: bool = False
    words: bool = False
    left: bool = False  # short words, on the left


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, room: int | None = None, styles: Sequence[str] = ()
) -> Table:
    """Make a table that fits into `room` columns (default: `width`); no cell is ever shortened.

    Columns without a value are left out. Where the rest is too wide, columns are dropped from the right, except those to
    keep, and the last line names them; then names take several lines. `styles`: of the rows, in rich's words.
    """
    from rich.table import Table
    from rich.text import Text

    columns = [column._replace(name=plain(column.name)) for column in columns]
    cells = [[plain(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(columns)) if not cells or any(row[i] for row in cells)]
    wide = _fitting(columns, cells, filled, width() if room is None else room)
    made = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
    for i, size in wide.items():
        column = columns[i]
        left = "left" if column.words or column.left else "right"
        made.add_column(Text(column.name), justify=left, width=size, no_wrap=not column.words, overflow="fold")  # type: ignore[arg-type]
    for number, row in enumerate(cells):
        made.add_row(*(Text(row[i]) for i in wide), style=styles[number] if styles else None)
    if dropped := [columns[i].name for i in filled if i not in wide and columns[i].name]:
        made.caption = Text(f"no room for: {', '.join(dropped)}", style="dim")
        made.caption_justify = "left"
    return made


def _fitting(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], shown: Sequence[int], room: int
) -> dict[int, int]:
    """The columns that fit side by side, of those `shown`, and how wide each is."""
    from rich.cells import cell_len

    wide = {i: max(cell_len(line) for line in (columns[i].name, *(row[i] for row in cells))) for i in shown}

    def over() -> int:
        return sum(wide.values()) + GAP * (len(wide) - 1) - room

    for i in reversed(shown):
        if over() > 0 and not columns[i].keep:
            del wide[i]
    names = [i for i in wide if columns[i].words]
    while over() > 0 and any(wide[i] > NAME_WIDTH for i in names):
        widest = max(names, key=lambda i: wide[i])
        wide[widest] = max(NAME_WIDTH, wide[widest] - over())
    return wide


def duration(seconds: float) -> str:
    """Say a time in words: ``45 s``, ``3 min 20 s``, ``59 min``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def detail() -> int:
    """Return the level of a note that only ``-v`` shows."""
    return logging.INFO if os.environ.get(VERBOSE) == "1" else logging.DEBUG


def own_flags(words: Sequence[str], *flags: str) -> tuple[list[str], set[str]]:
    """Take a command's own `flags` out of its arguments; returns the rest, and those that were there. ``-v`` (``--verbose``)
    is one of every command that calls this, and has its effect here."""
    if {"-v", "--verbose"} & set(words):
        os.environ[VERBOSE] = "1"
    own = {*flags, "-v", "--verbose"}
    return [word for word in words if word not in own], own & set(words)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` on, and say on stderr how far they are (``what: 3 of 12, 40 s left``) once that takes some seconds.

    `total`: how many there are, where `items` does not know. The time left is that of the items so far.
    """
    known = len(items) if total is None and isinstance(items, Sized) else total
    line = Line()
    try:
        for done, item in enumerate(items):
            line.say(what, done, known)
            yield item
    finally:
        line.end()


class Line:
    """One line on stderr about work in progress, again and again: replaced on a terminal, a new one elsewhere."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.every = TERMINAL_SECONDS if self.terminal else LINE_SECONDS
        self.next = self.began + QUIET_SECONDS
        self.open = False

    def say(self, what: str, done: float, total: float | None) -> None:
        """`done` of `total` items; None where nobody knows how many there are."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + self.every
        left = "" if not total or not done else f", {duration((now - self.began) * (total - done) / done)} left"
        count = f"{done:,.0f}" if total is None else f"{done:,.0f} of {total:,.0f}"
        self._write(plain(f"{what}: {count}{left}"))

    def _write(self, text: str) -> None:
        print(
            f"\r\x1b[2K{text}" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
        self.open = self.terminal

    def end(self) -> None:
        """Take the line away from a terminal."""
        if self.open:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self.open = False
