"""The table of the research axes in the README: ``python tools/axes_table.py README.md`` renews it between its markers."""

from __future__ import annotations

import sys
from pathlib import Path

from lmablate.core.axes import AXES, default_choices, options
from lmablate.core.console import markdown_table

BEGIN, END = "<!-- axes: made by python tools/axes_table.py README.md -->", "<!-- end of axes -->"


def markdown() -> str:
    """Return the table: each axis with its options, the default in bold."""
    rows = []
    for axis in AXES:
        default = default_choices()[axis]
        cells = [f"**{option}**" if option == default else option for option in options(axis, shipped=True)]
        rows.append((f"`{axis}`", " · ".join(cells)))
    return markdown_table(("axis", "options (default in bold)"), rows)


def renew(document: str) -> str:
    """Return `document` with the table between its markers renewed. Raises ValueError without markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no table to renew: it needs the lines {BEGIN} and {END}")
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(renew(target.read_text(encoding="utf-8")), encoding="utf-8")
