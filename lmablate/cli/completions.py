"""What may follow on a command line, for the completion of a shell (lmablate/completion.py has the scripts)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lmablate.cli.flags import OPTIONS, VALUED
from lmablate.cli.front_door import complete
from lmablate.cli.usage import OWN_OPTIONS

# Commands that take overrides: how many arguments stand before them. Of the first four, all options are those of flags.py.
TAKES_OVERRIDES = {"train": 0, "plan": 0, "budget": 0, "demo": 0, "check": 0, "inspect": 1, "dashboard": 1}


def completions(command: str, words: Sequence[str], current: str) -> list[str] | None:
    """Return what may stand in the place of `current` after the `words` of a command that takes overrides.

    None: the command's own parser has the answer."""
    if len(words) < TAKES_OVERRIDES.get(command, sys.maxsize):
        return None
    if not current.startswith("-") and not (words and words[-1] in VALUED):
        return complete([word for word in words[TAKES_OVERRIDES[command] :] if not word.startswith("-")], current)
    if command in ("check", "inspect", "dashboard"):
        return None
    names = VALUED.get(words[-1] if words else "") or [
        name.partition(" ")[0] for name in {**OWN_OPTIONS.get(command, {}), **OPTIONS}
    ]
    return [f"{name} " for name in names if name.startswith(current)]
