"""Show what a command would train, and what it costs.

  lmablate plan -m norm=rms,layer seed=0,1,2,3
  lmablate plan sweeps=norm scale=laptop

Nothing is trained but two seconds of one run, for the price.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lmablate.cli.front_door import main as front_door
from lmablate.cli.front_door import then
from lmablate.core.console import own_flags
from lmablate.core.errors import exit_on_config_error

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study


def plan(configs: Sequence[RunConfig], launcher: str) -> int:
    """Print one row a job and the totals. Returns the exit code."""
    from lmablate.launcher.jobs import prepare_jobs
    from lmablate.launcher.pricing import print_own_components, print_published, show
    from lmablate.runs.prepared import foreign_vocabulary

    counted = [cfg for cfg in configs if foreign_vocabulary(cfg, getattr(cfg.tokenizer, "vocab_size", None))]
    if counted:
        print_published(counted)
    if trained := [cfg for cfg in configs if cfg not in counted]:
        jobs, data = prepare_jobs(trained)
        show(jobs, data)
        print_own_components(jobs, launcher)
    return 0


def plan_study(study: Study, launcher: str, *, rows: bool = False) -> int:
    """Print a row an arm of a study, or with `rows` one a run, with runs that depend on others' results last."""
    from lmablate.launcher.pricing import print_own_components, show
    from lmablate.sweeper import optuna_search, optuna_table
    from lmablate.sweeper.outlook import known_and_later

    if isinstance(study, optuna_search.Search):
        return optuna_table.plan(study)
    jobs, later, data = known_and_later(study)
    waits_for = "its start" if study.settings.starts else "the forecast" if study.settings.ladder else "a look"
    when = f"after {'tuning' if study.stage == 'tune' else waits_for}"
    show(list(jobs.values()), data, later, when, by_arm=not rows)
    print_own_components(list(jobs.values()), launcher)
    for line in study.decisions():
        print(line)
    return 0


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the overrides of lmablate train. Returns the exit code. ``--rows`` shows every run of a
    study, ``--explain`` defines the columns, ``--all`` prices every stored sweep."""
    args, flags = own_flags(list(sys.argv[1:] if argv is None else argv), "--all", "--rows")
    if "--all" in flags and "--help" not in args:
        from lmablate.cli.plan_all import plan_all

        return plan_all(args)
    study = partial(plan_study, rows="--rows" in flags)
    return front_door("plan", then(plan, lambda _: _training(args)), args, study=then(study, lambda _: _training(args)))


def _training(args: Sequence[str]) -> Sequence[str]:
    """Return the command that trains what was planned; for a published system at its own size, which none does, nothing."""
    whole = any(arg.startswith("preset=") for arg in args) and not any(arg.startswith("shrink=") for arg in args)
    return () if whole else ("train", *args)


if __name__ == "__main__":
    sys.exit(main())
