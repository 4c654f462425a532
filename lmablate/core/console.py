"""Format the output of commands: tables that fit a terminal, durations, and progress lines.

All strings are shown as they are: none is read as rich's markup, and none controls the terminal.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

T = TypeVar("T")
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
VERBOSE = "LMABLATE_VERBOSE"  # environment variable that passes --explain on
EXPLAIN = ("--explain", "-v", "--verbose")  # the flag, and the names that it also has
PIPE = 100  # width of a file or a pipe in columns
UNLIMITED = 100_000  # of rich's console, which then breaks no line
GAP = 2  # spaces between two columns
NAME_WIDTH = 24  # least width of a column of names, whose cells then wrap
QUIET_SECONDS, LINE_SECONDS = 4.0, 10.0  # before the first line about slow work, and between two lines
TERMINAL_SECONDS = 1.0  # between two lines on a terminal, where a line replaces the one before


def plain(text: str) -> str:
    """Return `text` with control characters (colours, the cursor, a title) replaced by boxes."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def prose(docstring: str | None) -> str:
    """Return a docstring for ``--help``, without backticks."""
    return (docstring or "").replace("`", "")


def width() -> int:
    """Return the width in columns: COLUMNS, else that of the terminal, or PIPE for a file or a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else PIPE


def folded(text: str, indent: int = 4) -> str:
    """Return a line of prose, broken between words where it is wider than the output."""
    if len(text) <= (room := max(40, width())):
        return text
    first = " " * (len(text) - len(text.lstrip()))
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text.lstrip(), room, initial_indent=first, subsequent_indent=" " * indent, **options)  # type: ignore[arg-type]


def next_command(*words: str) -> str:
    """Return the last line of a finished command: what to type next, ready to paste."""
    return f"\nnext: {pasted(words)}"


def pasted(words: Sequence[str], before: int = len("next: ")) -> str:
    """Return a command that a shell takes as it stands, broken with backslashes where it is wider than the output. `before`:
    columns that are taken on its first line."""
    lines, taken = [""], before
    for word in map(shlex.quote, words):
        if lines[-1].strip() and taken + len(lines[-1]) + len(word) + len("  \\") > width():
            lines.append("   ")
            taken = 0
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def console(*, live: bool = False) -> Console:
    """Return rich's console on the standard output. It breaks no line, since tables fit themselves; a `live` display
    has the width of the terminal, since it must know its height."""
    from rich.console import Console

    return Console(file=sys.stdout, width=width() if live else UNLIMITED)


class Column(NamedTuple):
    """A column of a table: its heading, and its layout on a narrow terminal. `keep`: never dropped. `wrap`: holds
    names, which are left-aligned and may wrap if nothing else helps. `left`: holds short text, left-aligned. Other
    columns hold numbers."""

    name: str
    keep: bool = False
    wrap: bool = False
    left: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, room: int | None = None, styles: Sequence[str] = ()
) -> Text:
    """Return a table that fits into `room` columns (default: `width`); no cell is ever shortened.

    Columns without a value are left out. If the rest is too wide, columns are dropped from the right, except those with
    `keep`, and the last line names them; then names wrap. `styles`: rich's style of each row.

    rich's own tables cost ten times as much, which counts in a live display.
    """
    from rich.text import Text

    columns = [column._replace(name=plain(column.name)) for column in columns]
    cells = [[plain(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(columns)) if not cells or any(row[i] for row in cells)]
    wide = _fitting(columns, cells, filled, width() if room is None else room)
    lines = [(_line(columns, [column.name for column in columns], wide), "bold")]
    lines += [(_line(columns, row, wide), styles[i] if styles else "") for i, row in enumerate(cells)]
    if dropped := [columns[i].name for i in filled if i not in wide and columns[i].name]:
        lines.append((f"no room for: {', '.join(dropped)}", "dim"))
    return Text("\n", overflow="fold").join(Text(*line) for line in lines)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; `rows` hold Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (headings, *rows))
    return "\n".join([head, "|" + "---|" * len(headings), *lines])


def _line(columns: Sequence[Column], row: Sequence[str], wide: Mapping[int, int]) -> str:
    """Return a row as text: cells side by side, on several lines if a cell has several or is a name that wraps."""
    from rich.cells import cell_len

    cells = [_wrapped(row[i], size) if columns[i].wrap else row[i].split("\n") for i, size in wide.items()]
    lines = []
    for parts in zip_longest(*cells, fillvalue=""):
        line = ""
        for part, (i, size) in zip(parts, wide.items(), strict=True):
            space = " " * (size - cell_len(part))
            line += part + space if columns[i].wrap or columns[i].left else space + part
            line += " " * GAP
        lines.append(line.rstrip())
    return "\n".join(lines)


@lru_cache(1024)
def _wrapped(text: str, size: int) -> list[str]:
    """Return `text` in lines of at most `size` columns, broken between words where possible."""
    from rich.cells import cell_len
    from rich.text import Text

    if cell_len(text) <= size:
        return text.split("\n")
    return [line.plain.rstrip() for line in Text(text).wrap(console(), size, overflow="fold")]


def _fitting(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], shown: Sequence[int], room: int
) -> dict[int, int]:
    """Return the columns of `shown` that fit side by side, with their widths."""
    from rich.cells import cell_len

    wide = {i: max(cell_len(line) for line in (columns[i].name, *(row[i] for row in cells))) for i in shown}

    def excess() -> int:
        return sum(wide.values()) + GAP * (len(wide) - 1) - room

    for i in reversed(shown):
        if excess() > 0 and not columns[i].keep:
            del wide[i]
    names = [i for i in wide if columns[i].wrap]
    while excess() > 0 and any(wide[i] > NAME_WIDTH for i in names):
        widest = max(names, key=lambda i: wide[i])
        wide[widest] = max(NAME_WIDTH, wide[widest] - excess())
    return wide


def duration(seconds: float) -> str:
    """Return a time as text: ``45 s``, ``3 min 20 s``, ``59 min``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def explains() -> bool:
    """Return whether explanations are wanted (``--explain``)."""
    return os.environ.get(VERBOSE) == "1"


def detail() -> int:
    """Return the logging level of a message that only ``--explain`` shows."""
    return logging.INFO if explains() else logging.DEBUG


def own_flags(args: Sequence[str], *flags: str) -> tuple[list[str], set[str]]:
    """Split a command's own `flags` from its arguments. Returns the other arguments, and the flags given. ``--explain``
    (``-v``) is a flag of every command that calls this, and takes effect here."""
    if set(EXPLAIN) & set(args):
        os.environ[VERBOSE] = "1"
    own = {*flags, *EXPLAIN}
    return [arg for arg in args if arg not in own], own & set(args)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, and show progress on stderr (``what: 3 of 12, 40 s left``) once that takes some seconds. `total`:
    the number of items if `items` has no length. The time left is extrapolated from the items so far."""
    known = len(items) if total is None and isinstance(items, Sized) else total
    line = Line()
    try:
        for done, item in enumerate(items):
            line.update(what, done, known)
            yield item
    finally:
        line.end()


class Line:
    """A progress line on stderr, replaced in place on a terminal, a new line each time elsewhere."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.every = TERMINAL_SECONDS if self.terminal else LINE_SECONDS
        self.next = self.began + QUIET_SECONDS
        self.open = False

    def update(self, what: str, done: float, total: float | None) -> None:
        """Show that `done` of `total` items are done, unless the last line is recent. `total` None is unknown."""
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
        """Clear the line on a terminal."""
        if self.open:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self.open = False
