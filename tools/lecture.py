"""The lecture page by page: what it claims, the sweep that tests it, the figure, the command, and the verdict so far.

``python tools/lecture.py docs/results --out docs/lecture.md`` writes the page from the stored verdicts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmablate.claims.claim import Claim, load_claims
from lmablate.core.console import prose
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path

HEAD = """# The lecture, claim by claim

The lecture is lecture 3 of Stanford's CS336, on architectures. This page has each of its claims: what tests it here, and what came
out so far. All results are of small models (`scale=laptop`), and a verdict is about that scale.

Effects are in per cent with their 95 % intervals, unless a unit is given. n is the number of paired seeds.
[Reading a verdict](guides/verdicts.md) explains the rest. [What published systems do](results/survey/README.md) judges the
lecture's tables of systems. `python tools/lecture.py docs/results --out docs/lecture.md` writes this page.

| page | claim | tested by | figure | verdict so far |
|---|---|---|---|---|
"""


def page(results: Path) -> str:
    """Return the whole page; `results` holds a folder with ``verdicts.json`` for each published sweep."""
    verdicts, measured = stored(results), findings(results)
    claims = [claim for claim in load_claims().values() if claim.group != "Controls"]
    rows = [_row(claim, verdicts, measured, results) for claim in sorted(claims, key=_order)]
    return HEAD + "\n".join(rows) + "\n"


def stored(results: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return the verdicts by claim, each with the name of the folder that holds it."""
    out: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in sorted(results.glob("*/verdicts.json")):
        for verdict in json.loads(path.read_text()):
            out.setdefault(verdict["id"], []).append((path.parent.name, verdict))
    return out


def _order(claim: Claim) -> tuple[int, int, str]:
    """Return the sort key: pages of the notes first, then slides, then claims without a page."""
    pages = claim.pages or ""
    number = re.search(r"\d+", pages)
    kind = 0 if "notes p" in pages else 1 if number else 2
    first = re.search(r"notes p(\d+)", pages) or number
    return kind, int(first[0].removeprefix("notes p")) if first else 0, claim.id


def findings(results: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the results measured without training, by claim: folder and sentence of each ``findings.json``."""
    out: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(results.glob("*/findings.json")):
        for claim, sentence in json.loads(path.read_text(encoding="utf-8")).items():
            out.setdefault(claim, []).append((path.parent.name, sentence))
    return out


def _row(
    claim: Claim,
    verdicts: Mapping[str, list[tuple[str, dict[str, Any]]]],
    measured: Mapping[str, list[tuple[str, str]]],
    results: Path,
) -> str:
    own = sorted(verdicts.get(claim.id, []), key=lambda item: item[0] != claim.sweep)
    figures = [f"[{name}](results/{name}/{name}.png)" for name, _ in own if (results / name / f"{name}.png").exists()]
    tested = f"`sweeps={claim.sweep} scale=laptop`" if claim.sweep else "no stored sweep"
    cell_lines = [_verdict(name, verdict) for name, verdict in own]
    cell_lines += [f"[measured](results/{name}/README.md): {finding}" for name, finding in measured.get(claim.id, [])]
    if not cell_lines:
        cell_lines = [claim.untested or ("not run yet" if claim.sweep else "no run of it is stored")]
    cells = (
        claim.pages or "method",
        f"**{claim.id}** {claim.statement}",
        tested,
        ", ".join(figures) or "none",
        "<br>".join(cell_lines),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _verdict(sweep: str, verdict: Mapping[str, Any]) -> str:
    effects = [_effect(test) for test in verdict["tests"] if test["effect"] is not None]
    length = verdict.get("tokens_per_param")  # rows of the past lack it
    short = ", short run" if verdict.get("short_run") else ""
    said = f", {length:g} tokens per parameter{short}" if length is not None else ""
    return f"[{verdict['verdict']}](results/{sweep}/README.md){said}: {verdict['reason']}" + (
        f" ({'; '.join(effects)})" if effects else ""
    )


def _effect(test: Mapping[str, Any]) -> str:
    unit = " %" if test["unit"] == "per cent" else f" {test['unit']}"
    ends = test["interval_95"]
    between = f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else ""
    where = "".join(f", {key}={value}" for key, value in test["where"].items())
    return f"{test['effect']:+.1f}{unit}{between}, n {test['n']}{where}".replace("-", "−")


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of the lecture's claims. Return the exit code."""
    parser = argparse.ArgumentParser(description=prose(__doc__))
    parser.add_argument(
        "results", type=given_path, help="the folder of published results, with a verdicts.json for each sweep"
    )
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        raise ConfigError(f"{args.results}: there is no such folder")
    atomic_write(args.out, page(args.results))
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
