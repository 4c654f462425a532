"""Show what has become of every run; train failed ones again.

lmablate status results                    what runs, what failed, and why
lmablate status results --retry failed     train the failed ones again
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.cli.arguments import add_trust
from lmablate.cli.front_door import trust_packages
from lmablate.core import access
from lmablate.core.commands import command_parser
from lmablate.core.console import Column, console, duration, next_command, plain, table
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import read_bounded
from lmablate.core.logging import configure_logging
from lmablate.core.paths import given_path
from lmablate.launcher.labels import of_grid, of_overrides
from lmablate.launcher.sweep_manifest import STATES, SweepJobs, load_sweeps, run_status
from lmablate.runs.config_file import MOST_BYTES, read_config
from lmablate.runs.run_directory import below, check_readable
from lmablate.schema.run_config import RunConfig

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text


RETRIED = ("failed", "stale", "stopped", "missing", "damaged")
STYLES = {
    "running": "cyan",
    "failed": "red",
    "damaged": "red",
    "stale": "yellow",
    "diverged": "magenta",
    "done": "green",
}
FINAL = ("done", "diverged")
MOST_ROWS = 40  # rows of a sweep that are shown
WATCH_SECONDS = 2.0


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    args = _parser().parse_args(argv)
    folder = args.results_dir
    check_readable(folder, "")
    if args.retry:
        return retry(folder, args.retry, args.sweep, args.trust)
    if args.watch is not None:
        return watch(folder, args.sweep, args.watch, everything=args.all)
    sweeps = [(sweep, states(folder, sweep)) for sweep in chosen(folder, args.sweep)]
    if args.json:
        print(json.dumps([{"sweep": sweep.name, "runs": rows} for sweep, rows in sweeps], indent=1))
        return 0

    console().print(shown(sweeps, everything=args.all))
    if not sweeps:
        lower = [f"there are runs one level down: lmablate status {one}" for one in below(folder)]
        print("\n".join(lower) or "give the folder that training wrote to")
    elif command := _next(folder, {row["state"] for _, rows in sweeps for row in rows}):
        print(next_command("lmablate", *command))
    return 0


def _next(folder: Path, found: set[str]) -> Sequence[str]:
    """Return the command to type next: train what failed, watch what runs, or read the results."""
    if failed := [state for state in RETRIED if state in found]:
        return ("status", str(folder), "--retry", failed[0] if len(failed) == 1 else "all")
    return ("status", str(folder), "--watch") if "running" in found else ("report", str(folder))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("status")
    parser.add_argument("results_dir", nargs="?", type=given_path, default="results", help="default: %(default)s")
    parser.add_argument("--sweep", metavar="NAME", help="only this one")
    parser.add_argument("--all", action="store_true", help="list finished runs too")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help="again and again, until nothing is left",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--retry",
        action="append",
        choices=(*RETRIED, "all"),
        help="train the runs in this state, here and now; all: whatever is not done and not running",
    )
    add_trust(parser)
    return parser


def chosen(folder: Path, name: str | None) -> list[SweepJobs]:
    """Return the sweeps of a folder, or those of one name. Raises ConfigError if there is none."""
    sweeps = load_sweeps(folder)
    if name is None:
        return sweeps
    if found := [sweep for sweep in sweeps if sweep.name == name]:
        return found
    known = ", ".join(sorted({sweep.name for sweep in sweeps if sweep.name})) or "none"
    raise ConfigError(f"--sweep {name}: {folder} has no such sweep; it has {known}")


def states(folder: Path, sweep: SweepJobs) -> list[dict[str, Any]]:
    """Return the state of each run, in the order of the sweep."""
    return [_state(folder, sweep, run_id) for run_id in sweep.jobs]


def _state(folder: Path, sweep: SweepJobs, run_id: str) -> dict[str, Any]:
    """Return the state of a run, with the sweep's label or one made from its overrides."""
    row = run_status(folder, run_id)
    overrides = row.pop("overrides")
    label = sweep.jobs[run_id].label
    if not label and overrides is None:
        overrides = _overrides(folder / run_id / "config.yaml")
    return {**row, "label": label or ("" if overrides is None else of_overrides([str(one) for one in overrides]))}


def _overrides(path: Path) -> list[Any] | None:
    """Return the overrides in a run's configuration, or None if it cannot be read."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        found = yaml.load(read_bounded(path, MOST_BYTES), loader)["overrides"]
        return list(found)
    return None


def shown(sweeps: Sequence[tuple[SweepJobs, list[dict[str, Any]]]], *, everything: bool) -> Group:
    """Return a line of counts for each sweep, and a table of its unfinished runs."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for sweep, rows in sweeps:
        counts = Counter(row["state"] for row in rows)
        grid = of_grid([job.overrides for job in sweep.jobs.values()]) if sweep.name.startswith("grid-") else ""
        name = f"{sweep.name} ({grid})" if grid else sweep.name
        line = Text(f"{plain(name) or 'runs of no sweep'}: ", style="bold")
        line.append(f"{len(rows)} run{'s' * (len(rows) != 1)}", style="bold")
        for state in STATES:
            if counts[state]:
                line.append(f", {counts[state]} {state}", style=STYLES.get(state, ""))
        if older := sum(row["older"] for row in rows):
            line.append(f" ({older} made by an older version of the science)")
        parts.append(line)
        listed = [row for row in rows if everything or row["state"] not in FINAL]
        if listed:
            parts.append(_table(listed[:MOST_ROWS]))
        reasons = [row for row in listed[:MOST_ROWS] if row["error"]]
        parts += [Text(plain(f"{row['run_id']}: {row['error']}"), style=STYLES["failed"]) for row in reasons]
        if len(listed) > MOST_ROWS:
            parts.append(Text(f"and {len(listed) - MOST_ROWS} more (--json has all of them)"))
    return Group(*parts) if parts else Group(Text("no runs"))


def _table(rows: Sequence[dict[str, Any]]) -> Text:
    """Return a table with a row a run, without empty columns."""
    columns = (
        Column("run", keep=True, left=True), Column("state", keep=True, left=True), Column("what", keep=True, wrap=True),
        Column("val loss", keep=True), Column("step"), Column("heartbeat"), Column("attempts"), Column("where", left=True),
    )  # fmt: skip
    styles = [STYLES.get(row["state"], "") for row in rows]
    return table(columns, [_cells(row) for row in rows], styles=styles)


def _cells(row: dict[str, Any]) -> list[str]:
    step = "" if row["step"] is None else f"{row['step']}/{row['steps']}"
    loss = "" if row["val_loss"] is None else f"{row['val_loss']:.4f}"
    at_work = row["state"] in ("running", "stale")
    beat = f"{duration(row['age'])} ago" if at_work and row["age"] is not None else ""
    where = f"{row['host']}:{row['pid']}" if at_work and row["host"] else ""
    cells = (row["run_id"], row["state"], row["label"], loss, step, beat, row["attempts"] or "", where)
    return [str(cell) for cell in cells]


def watch(folder: Path, name: str | None, seconds: float, *, everything: bool) -> int:
    """Show the sweeps again and again until every run is done or diverged, or Ctrl-C."""
    from rich.live import Live

    done: dict[str, dict[str, Any]] = {}  # finished runs, which do not change
    try:
        with Live(auto_refresh=False, console=console(live=True)) as live:
            while True:
                sweeps = []
                for sweep in chosen(folder, name):
                    rows = []
                    for run_id in sweep.jobs:
                        row = done.get(run_id) or _state(folder, sweep, run_id)
                        if row["state"] in FINAL:
                            done[run_id] = row
                        rows.append(row)
                    sweeps.append((sweep, rows))
                live.update(shown(sweeps, everything=everything), refresh=True)
                if all(row["state"] in FINAL for _, rows in sweeps for row in rows):
                    return 0
                time.sleep(max(0.1, seconds))
    except KeyboardInterrupt:
        return 0


def retry(folder: Path, wanted: Sequence[str], name: str | None, trusted: Sequence[str]) -> int:
    """Train the runs in the states `wanted`, each with its own configuration. Returns the exit code of training."""
    from lmablate.launcher.jobs import prepare_jobs
    from lmablate.launcher.scheduler import run_jobs

    configure_logging()
    trust_packages(trusted)
    accepted = set(RETRIED if "all" in wanted else wanted)
    configs: dict[str, RunConfig] = {}
    for sweep in chosen(folder, name):
        for row in states(folder, sweep):
            if row["state"] in accepted and row["run_id"] not in configs:
                cfg = _config(folder, row["run_id"], sweep.jobs[row["run_id"]].config)
                configs[row["run_id"]] = cfg.model_copy(update={"results_dir": str(folder)})
    if not configs:
        print(f"{folder}: no run is {' or '.join(sorted(accepted))}")
        return 0
    jobs, _ = prepare_jobs(list(configs.values()))
    if strangers := [job.run_id for job in jobs if job.run_id not in configs]:
        raise ConfigError(
            f"{folder}: {', '.join(strangers)} would be other runs than those that failed: the code, the text or the tokenizer has "
            "changed since; give the sweep's own command again"
        )
    return run_jobs(jobs)


def _config(folder: Path, run_id: str, listed: dict[str, Any] | None) -> RunConfig:
    """Return the configuration of a run, from the sweep's manifest or else from the run's folder."""
    from pydantic import ValidationError

    if listed is not None:
        try:
            return RunConfig.model_validate(listed)
        except ValidationError as error:
            raise ConfigError(f"{folder}: the configuration of run {run_id} is of another release ({error})") from None
    path = folder / run_id / "config.yaml"
    if access.there(path) is None:
        raise ConfigError(f"run {run_id} cannot be tried again: {access.closed(path)}")
    if not path.exists():
        raise ConfigError(f"{path}: not there, so that run {run_id} cannot be tried again; give its own command")
    return read_config(path)


if __name__ == "__main__":
    sys.exit(main())
