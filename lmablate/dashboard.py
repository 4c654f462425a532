"""Build a wandb workspace and report of a stored sweep.

  lmablate dashboard norm_position scale=gpu --entity me
  lmablate dashboard norm_position --dry-run --out dashboard.json    without an account

Overrides are those of lmablate train. Both are built with wandb's own library (wandb-workspaces) from the composed
sweep: parallel coordinates over its varied keys, loss curves by arm with a band over seeds, loss against learning rate,
and the table of runs. --wandb-sweep FILE writes a plain grid as a wandb sweep instead.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmablate.cli.front_door import main as front_door
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.core.settings import BOOKKEEPING
from lmablate.runs.run_directory import check_writable
from lmablate.runs.tracking.account import configured_mode
from lmablate.runs.tracking.client import flatten
from lmablate.runs.tracking.dashboard_sweep import LOSS, RATE, SEEDS, DashboardSweep
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study

INSTALL = "pip install 'lmablate[dashboard]'"


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 after an error."""
    args, overrides = _parser().parse_known_args(argv)
    _check(args, overrides)

    def grid(configs: Sequence[RunConfig], launcher: str) -> int:
        return _act(args, _of_grid(args.sweep, configs))

    def study(found: Study, launcher: str) -> int:
        return _act(args, _of_study(found))

    return front_door("dashboard", grid, [f"sweeps={args.sweep}", *overrides], study=study)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("dashboard")
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a stored sweep (sweeps/SWEEP.yaml)")
    add("--entity", help="the wandb user or team (default: wandb's own)")
    add("--project", help="the wandb project (default: runtime.wandb_project)")
    add("--dry-run", action="store_true", help="write the specifications to --out, and ask no server")
    add("--out", type=given_path, metavar="FILE", help="where --dry-run writes (JSON)")
    add(
        "--wandb-sweep",
        type=given_path,
        metavar="FILE",
        help="write the grid as a wandb sweep (YAML), and nothing else",
    )
    return parser


def _check(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise ConfigError for bad arguments, before anything is composed."""
    if flags := [word for word in overrides if word.startswith("-")]:
        raise ConfigError(f"{flags[0]}: no such flag; see --help")
    if args.dry_run != (args.out is not None):
        raise ConfigError(
            "--dry-run writes to --out FILE, and --out needs --dry-run: give both, or neither to build it online"
        )
    for flag, target in (("--wandb-sweep", args.wandb_sweep), ("--out", args.out)):
        if target is not None:
            check_writable(target.parent, flag)
    if args.wandb_sweep is None:
        _views()
    if args.wandb_sweep is None and not args.dry_run and configured_mode() != "online":
        raise ConfigError(
            "no wandb key is configured, or WANDB_MODE says offline: wandb login, or --dry-run --out FILE to see what would be built"
        )


def _act(args: argparse.Namespace, sweep: DashboardSweep) -> int:
    target = args.wandb_sweep or args.out
    if args.wandb_sweep is not None:
        atomic_write(target, wandb_sweep_text(sweep, args.entity, args.project))
        print(f"wrote {target}: wandb sweep {target} registers it, wandb agent ID runs it")
    elif args.dry_run:
        built = specification(sweep, args.entity or "", args.project or sweep.project)
        atomic_write(target, json.dumps(built, indent=1, sort_keys=True) + "\n")
        print(f"wrote {target}: the workspace and the report of {sweep.name}, as wandb's library writes them")
        views = _views()
        print("\n".join(views.outline(views.workspace(sweep, "", sweep.project))))
    else:
        print("\n".join(_publish(sweep, args.entity, args.project or sweep.project)))
    return 0


def _of_grid(name: str, configs: Sequence[RunConfig]) -> DashboardSweep:
    from lmablate.config.overrides import explicit

    values: dict[str, set[str | None]] = {}
    for cfg in configs:
        for key, value in explicit(cfg.overrides).items():
            values.setdefault(key, set()).add(value)
    varied = _recorded([key for key, seen in values.items() if len(seen) > 1 and key not in SEEDS], configs)
    project = configs[0].runtime.wandb_project
    return DashboardSweep(name, sweep_question(name) or name, varied, (), False, project, tuple(configs))


def _of_study(study: Study) -> DashboardSweep:
    from lmablate.config.overrides import explicit

    study.check()
    keys = [list(explicit(list(words))) for words in study.arms.values()]
    configs = study.bases
    varied = _recorded(list(dict.fromkeys(key for own in keys for key in own if key != RATE)), configs)
    tuned = study.tune.mode != "none"
    return DashboardSweep(
        study.name, study.settings.question, varied, tuple(study.views), tuned, configs[0].runtime.wandb_project
    )


def _recorded(keys: Sequence[str], configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Return `keys` as runs record them; a key that is resolved away (``model.ff_ratio``) gives the differing keys of its group."""
    rows = [{**flatten(cfg.model_dump(exclude=set(BOOKKEEPING))), **cfg.choices} for cfg in configs]
    found: dict[str, None] = {}
    for key in keys:
        group = f"{key.partition('.')[0]}."
        differing = [k for k in rows[0] if k.startswith(group) and len({str(row.get(k)) for row in rows}) > 1]
        found |= dict.fromkeys([key] if key in rows[0] else differing)
    return tuple(found)


def wandb_sweep_text(sweep: DashboardSweep, entity: str | None = None, project: str | None = None) -> str:
    """Return a plain grid as the YAML of a wandb sweep, whose agent trains each job with `lmablate.train`.

    Every job is one run (``hydra.mode=RUN``) of the stored sweep, so that its defaults hold. Raises ConfigError for a
    sweep that is no product of values.
    """
    import yaml

    from lmablate.config.overrides import explicit

    if sweep.study:
        raise ConfigError(
            f"sweeps={sweep.name} is a study: its arms are lists of words and its learning rates are chosen in stages, which a wandb "
            f"grid cannot say. Train it with lmablate train sweeps={sweep.name}; its dashboard needs no wandb sweep"
        )
    jobs = [explicit(cfg.overrides) for cfg in sweep.configs]
    keys = list(dict.fromkeys(key for job in jobs for key in job))
    values = {key: list(dict.fromkeys(job.get(key, "") for job in jobs)) for key in keys if key != "sweeps"}
    grid = {key: seen for key, seen in values.items() if len(seen) > 1}
    if math.prod(map(len, grid.values())) != len(jobs):
        raise ConfigError(
            f"sweeps={sweep.name}: its {len(jobs)} jobs are no product of values, so no wandb grid says them"
        )
    fixed = [f"{key}={'null' if seen[0] is None else seen[0]}" for key, seen in values.items() if len(seen) == 1]
    own = ["-m", "${program}", f"sweeps={sweep.name}", "hydra.mode=RUN", *fixed, "${args_no_hyphens}"]
    node = {
        "name": sweep.name,
        "description": sweep.question,
        **({"entity": entity} if entity else {}),
        "project": project or sweep.project,
        "method": "grid",
        "metric": {"name": LOSS, "goal": "minimize"},
        "parameters": {key: {"values": [_plain(value) for value in seen]} for key, seen in grid.items()},
        "program": "lmablate.train",
        "command": ["${env}", "${interpreter}", *own],
    }
    return yaml.safe_dump(node, sort_keys=False, width=120)


def _plain(value: str | None) -> str | int | float:
    """Return a value as a number if the agent writes that back unchanged, else as text."""
    if value is None:
        return "null"  # as text, since the agent would write None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def specification(sweep: DashboardSweep, entity: str, project: str) -> dict[str, Any]:
    """Return workspace and report as wandb's library serialises them. `entity` may be empty."""
    views = _views()
    workspace, report = views.workspace(sweep, entity, project), views.report(sweep, entity, project)
    return {"workspace": views.as_json(workspace), "report": views.as_json(report)}


def _publish(sweep: DashboardSweep, entity: str | None, project: str) -> list[str]:
    """Save workspace and report at wandb, and return lines about them. Raises ConfigError if wandb cannot be reached."""
    try:
        return list(_views().publish(sweep, entity, project))
    except Exception as error:  # wandb's client raises all kinds for network, account and server
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"wandb took no dashboard for {entity or 'your account'}/{project} ({reason})") from error


def _views() -> Any:
    """Import the module that uses wandb's library. Raises ConfigError if the library is missing."""
    try:
        from lmablate.runs.tracking import dashboard_panels
    except ImportError as error:
        raise ConfigError(f"a dashboard needs wandb-workspaces ({error}): {INSTALL}") from error
    return dashboard_panels


if __name__ == "__main__":
    sys.exit(main())
