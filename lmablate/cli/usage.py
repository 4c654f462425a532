"""``--help`` of the commands that take overrides: their purpose, the groups with their options, the stored sweeps."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from lmablate.core import axes
from lmablate.core.paths import SWEEPS_DIR

# Captions of the examples by command. A command that is not listed gets those of lmablate.train.
EXAMPLES = {
    "lmablate.train": ("one run", "a grid: every combination", "a stored question, at one of its sizes"),
    "lmablate.plan": (
        "what this run would cost",
        "one row a job, and the price of all",
        "of a stored question, before it runs",
    ),
    "lmablate.budget": ("the account of one model", "of every model of a grid", "of the models of a stored grid"),
}
MORE = {
    "lmablate.plan": "--all [scale=laptop] checks and prices every stored sweep.",
    "lmablate.budget": "Nothing is trained; parameters, FLOPs, activation and traffic bytes are counted.",
    "lmablate.train": "python -m lmablate.plan with the same overrides says what it costs first.",
}

HELP = """{module}: {purpose}

  python -m {module} norm=layer activation=gelu
      {single}
  python -m {module} -m norm=rms,layer activation=swiglu,gelu
      {grid}
      sweep.skip=norm=layer,activation=gelu leaves one out,
      sweep.zip=norm,activation takes the first two, then the second two
  python -m {module} preset=gpt2 shrink=tiny
      a published system in proportion (python -m lmablate.presets: {presets})
  python -m {module} sweeps=norm_and_activation scale=laptop
      {stored}; scale=laptop, gpu or lab
{more}
Groups and their options (conf/<group>/<option>.yaml), defaults in brackets:
{groups}

Stored sweeps (sweeps=<question>), and what they ask:
{sweeps}

Any key: model.d_model=256, optim.lr=1e-3, trainer.steps=2000, seed=0,1,2,
results_dir=results, runtime.workers=2. All keys with their values: --cfg job.
Packages with parts of your own: --trust mypackage. Finished runs anew: --again.
Say more: -v.
"""


def help_text(module: str, purpose: str) -> str:
    """Return the help text of a command."""
    single, grid, stored = EXAMPLES.get(module, EXAMPLES["lmablate.train"])
    more = MORE.get(module, "")
    return HELP.format(
        module=module,
        purpose=purpose,
        single=single,
        grid=grid,
        stored=stored,
        more=f"\n{more}\n" if more else "",
        presets=len(axes.options("preset")),
        groups=_groups(),
        sweeps=_sweeps(),
    )


def _groups() -> str:
    """Return one line a group, with the default in brackets and the options of the current folder."""
    lines = []
    for group, default in axes.groups().items():
        own = _of_this_folder(group)
        options = list(axes.options(group))
        if group == "preset":
            shown = f"{', '.join(options[:4])} ... (none by default)"
        else:
            shown = " ".join(f"[{option}]" if option == default else option for option in options)
        mine = f"  yours: {' '.join(own)}" if own else ""
        lines.append(_wrapped(group, 15, f"{shown}{mine}"))
    return "\n".join(lines)


def _wrapped(name: str, width: int, text: str) -> str:
    """Return a name and its text, wrapped to the width of the terminal."""
    lines = textwrap.wrap(text, max(40, shutil.get_terminal_size().columns - width - 4), break_on_hyphens=False)
    return "\n".join(f"  {name if not i else '':<{width}} {line}" for i, line in enumerate(lines or [""]))


def _of_this_folder(group: str) -> list[str]:
    folder = Path.cwd() / "conf" / group
    return (
        [] if folder.resolve() == (axes.CONF_DIR / group).resolve() else sorted(p.stem for p in folder.glob("*.yaml"))
    )


def _sweeps() -> str:
    """Return one line a stored sweep: its name and its question."""
    folders = [
        SWEEPS_DIR,
        *([Path.cwd() / "sweeps"] if (Path.cwd() / "sweeps").resolve() != SWEEPS_DIR.resolve() else []),
    ]
    return "\n".join(
        _wrapped(path.stem, 20, _question(path)) for folder in folders for path in sorted(folder.glob("*.yaml"))
    )


def _question(path: Path) -> str:
    """Return the first comment of a sweep's file, up to its question mark."""
    comments = [
        line[1:].strip()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("#") and "@package" not in line
    ]
    first, mark, _ = (comments[0] if comments else "").partition("?")
    return first + mark
