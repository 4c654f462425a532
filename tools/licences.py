"""The licences of the pinned packages: ``python tools/licences.py`` renews THIRD_PARTY_NOTICES.md.

A licence is what the installed package says in its metadata. Pins of other platforms are not installed here: theirs stay
as the file has them, and new ones are listed as missing, to be filled in by hand.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "THIRD_PARTY_NOTICES.md"
MARK = "## Every pinned package\n"
HEAD = f"""{MARK}
Those of `constraints.txt`, by what each says of itself. Renewed with `python tools/licences.py`.

| package | licence |
|---|---|
"""
CLASSIFIER = "License :: OSI Approved :: "


def pins() -> list[str]:
    """Return the names in constraints.txt, each once."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return list(dict.fromkeys(line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")))


def listed() -> dict[str, str]:
    """Return the licences that the page has, by package."""
    table = PAGE.read_text().partition(MARK)[2].partition("|---|---|")[2]
    return dict(re.findall(r"^\| ([\w.-]+) \| (.+) \|$", table, re.M))


def licence(package: Message) -> str:
    """Return the licence in a package's metadata: its SPDX expression, else a short field, else its classifiers."""
    if expression := package["License-Expression"]:
        return expression
    classified = [
        one.removeprefix(CLASSIFIER) for one in package.get_all("Classifier") or () if one.startswith(CLASSIFIER)
    ]
    field = (package["License"] or "").strip().replace("UNKNOWN", "")
    short = field if field and "\n" not in field and len(field) < 60 else ""
    return short or ", ".join(classified) or (field.splitlines()[0].strip() if field else "")


def main() -> int:
    """Renew the page. Return 1 if a licence is missing."""
    known, found = listed(), {}
    for name in pins():
        try:
            own = licence(importlib.metadata.metadata(name))
        except importlib.metadata.PackageNotFoundError:
            own = ""
        found[name] = (own or known.get(name, "")).replace("|", "/")
    PAGE.write_text(
        PAGE.read_text().partition(MARK)[0]
        + HEAD
        + "".join(f"| {name} | {own} |\n" for name, own in found.items() if own)
    )
    missing = [name for name, own in found.items() if not own]
    print(
        f"{PAGE.name}: {len(found) - len(missing)} of {len(found)}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
    )
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
