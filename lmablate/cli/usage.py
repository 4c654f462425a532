"""``--help`` of the commands that take overrides: what they do, their options, the groups and the stored sweeps."""

from __future__ import annotations

import textwrap
from pathlib import Path

from lmablate.cli.flags import OPTIONS
from lmablate.core import axes, commands
from lmablate.core.paths import SWEEPS_DIR

OWN_OPTIONS = {
    "plan": {"--rows": "every run of a study, a row each", "--all": "check and price every stored sweep"},
}

HELP = """{head}

usage: lmablate {command} [OVERRIDE ...] [options]

options:
{options}
{rest}
overrides:
{overrides}

groups and their options (conf/GROUP/OPTION.yaml), defaults in brackets:
{groups}

stored questions, for sweeps=:
{sweeps}"""

OVERRIDES = {
    "GROUP=OPTION": "norm=layer, from the groups below",
    "KEY=VALUE": "model.d_model=256, optim.lr=1e-3, trainer.steps=2000, seed=3, results_dir=results",
    "KEY=A,B": "with -m: one run for each; sweep.skip=norm=layer,activation=gelu leaves one out, "
    "sweep.zip=norm,activation pairs their values",
    "preset=SYSTEM": "a published system, with shrink=tiny, small or base (lmablate presets lists {presets})",
    "sweeps=QUESTION": "a stored question, with scale=laptop, gpu or lab",
}


def help_text(command: str) -> str:
    """Return the help text of a command."""
    overrides = {name: text.format(presets=len(axes.options("preset"))) for name, text in OVERRIDES.items()}
    head, rest = commands.parts(commands.document(command))
    return HELP.format(
        head=head,
        rest=f"\n{rest}\n" if rest else "",
        command=command,
        options=_listed({**OWN_OPTIONS.get(command, {}), **OPTIONS}, 16),
        overrides=_listed(overrides, 16),
        groups=_listed(_groups(), 15),
        sweeps=_listed(_sweeps(), 20),
    )


def _listed(entries: dict[str, str], width: int) -> str:
    """Return names and their texts, wrapped to the width of the terminal."""
    lines = []
    for name, text in entries.items():
        parts = textwrap.wrap(text, commands.columns() - width - 4, break_on_hyphens=False) or [""]
        lines += [f"  {name if not i else '':<{width}} {part}" for i, part in enumerate(parts)]
    return "\n".join(lines)


def _groups() -> dict[str, str]:
    """Return the options of each group, with the default in brackets and those of the current folder named."""
    found = {}
    for group, default in axes.groups().items():
        own = _of_this_folder(group)
        options = list(axes.options(group))
        if group == "preset":
            shown = f"{', '.join(options[:4])} ... (none by default)"
        else:
            shown = " ".join(f"[{option}]" if option == default else option for option in options)
        found[group] = shown + (f"  yours: {' '.join(own)}" if own else "")
    return found


def _of_this_folder(group: str) -> list[str]:
    folder = Path.cwd() / "conf" / group
    if folder.resolve() == (axes.CONF_DIR / group).resolve():
        return []
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _sweeps() -> dict[str, str]:
    """Return the question of each stored sweep, also of the current folder's."""
    folders = dict.fromkeys(folder.resolve() for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"))
    return {path.stem: _question(path) for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _question(path: Path) -> str:
    """Return the first comment of a sweep's file, up to its question mark."""
    text = path.read_text(encoding="utf-8", errors="replace")
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    first, mark, _ = (comments[0] if comments else "").partition("?")
    return first + mark
