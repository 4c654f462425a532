"""Run Hydra's command line with our exit codes and error messages.

0: every job completed or diverged. 1: a job failed, after the others ran. 2: the command cannot be run, and nothing was.
143 (130): stopped by SIGTERM (SIGINT), checkpoints written.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lmablate.cli.flags import Flags, parse_flags
from lmablate.cli.usage import help_text
from lmablate.core.console import next_command
from lmablate.core.errors import FULL_TRACE, ConfigError, exit_on_config_error
from lmablate.core.logging import configure_logging
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study

T = TypeVar("T")
# Takes the jobs of one command and the name of the launcher; returns the exit code.
Action = Callable[[Sequence["RunConfig"], str], int]
# Takes a study, whose later jobs depend on the results of earlier ones.
StudyAction = Callable[["Study", str], int]


@exit_on_config_error
def main(command: str, action: Action, argv: Sequence[str] | None = None, *, study: StudyAction | None = None) -> int:
    """Run one command line. Return its exit code, and print a user's error without a traceback.

    `action` gets the jobs, `study` the study of a command line. `command` is its name, for the help."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise ConfigError(
            f"lmablate needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: Hydra 1.3 does not start on newer ones"
        )
    configure_logging()
    if "--help" in args or "-h" in args:
        print(help_text(command))
        return 0
    flags = parse_flags(args)
    trust_packages(flags.trusted)
    return _run(flags, _rewritten(flags.overrides), action, study)


def _rewritten(overrides: Sequence[str]) -> list[str]:
    from lmablate.config.overrides import rewrite, sized

    return rewrite(sized(list(overrides)))


def then(action: Callable[[T, str], int], words: Callable[[T], Sequence[str]]) -> Callable[[T, str], int]:
    """Return an action that ends with the command to type next, whose `words` follow from its jobs or study. None: nothing."""

    def run(given: T, launcher: str) -> int:
        code = action(given, launcher)
        if not code and (following := words(given)):
            print(next_command("lmablate", *following))
        return code

    return run


def trust_packages(packages: Sequence[str]) -> None:
    """Allow components from a user's own packages, which may be in the current folder; commas may separate several."""
    if packages:
        from lmablate.model.components import trust

        trust(*(name for names in packages for name in names.split(",")))
        sys.path.insert(0, os.getcwd())


def _run(flags: Flags, overrides: list[str], action: Action, study: StudyAction | None) -> int:
    """Compose and check every job of a command, and pass them to `action`."""
    from lmablate.config.composition import grid_configs, to_run_config
    from lmablate.launcher.hydra_launchers import LocalLauncher, launcher_of
    from lmablate.runs.wsd_branches import expand
    from lmablate.sweeper.plugin import StudySweeper

    shows = "--cfg" in flags.valued
    if shows and flags.multirun:  # Hydra shows a single configuration, and nothing of a grid
        flags = flags._replace(switches=[], valued={} if _is_grid(overrides) else flags.valued)
        if not flags.valued:
            return _show(_compose(flags._replace(switches=["-m"]), overrides))
    composed = _compose(flags, overrides)
    if StudySweeper.captured is not None:
        if study is None:
            raise ConfigError("a study (hydra/sweeper=study) needs lmablate train or lmablate plan")
        return study(StudySweeper.captured.study(), StudySweeper.captured.launcher_name)
    if composed and (sweeper := composed[0].hydra.runtime.choices["hydra/sweeper"]) in ("study", "optuna"):
        raise ConfigError(f"hydra/sweeper={sweeper} trains several runs: add -m in front of the overrides")
    bases = LocalLauncher.bases
    configs = expand(grid_configs(composed, bases, LocalLauncher.compose) if bases else [*map(to_run_config, composed)])
    return action(configs, launcher_of(composed[0])) if configs else 0


def complete(overrides: Sequence[str], current: str) -> list[str]:
    """Return the overrides that `current` may become after `overrides`, as Hydra's completion knows them."""
    head, comma, last = current.rpartition(",") if "=" in current else ("", "", current)
    asked = f"{head.partition('=')[0]}={last}" if comma else current
    line = " ".join(["lmablate", *_rewritten(overrides), asked])
    with redirect_stdout(io.StringIO()) as out, _variable("COMP_LINE", line):
        _compose(Flags([], ["--shell-completion"], {}, []), ["query=bash"])
    found = [one for one in out.getvalue().split() if not one.rpartition(".")[2].startswith("_")]
    if comma:
        found = [f"{head},{one.partition('=')[2]}" for one in found]
    return [one if one.endswith(("=", ".", "/")) else f"{one} " for one in found]


def _is_grid(overrides: Sequence[str]) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(list(overrides)))


def _show(jobs: Sequence[DictConfig]) -> int:
    """Print the configuration of every job under its overrides (``-m ... --cfg job``)."""
    from omegaconf import OmegaConf

    for job in jobs:
        print(f"---\n# {' '.join(job.hydra.overrides.task)}")
        print(OmegaConf.to_yaml(OmegaConf.masked_copy(job, [key for key in map(str, job) if key != "hydra"])), end="")
    return 0


def _compose(flags: Flags, overrides: list[str]) -> list[DictConfig]:
    """Return the jobs that Hydra composes; none if a study is left in ``StudySweeper.captured``."""
    from hydra.errors import HydraException

    from lmablate.config import hints
    from lmablate.config.composition import register_resolvers
    from lmablate.config.untrusted_yaml import check_folders, named_folders
    from lmablate.launcher.hydra_launchers import LocalLauncher, register
    from lmablate.sweeper.plugin import StudySweeper, register_sweeper

    args = flags.hydra_args(overrides)
    here = [Path.cwd() / "conf", Path.cwd() / "sweeps", *named_folders(args)]
    check_folders(here, own=(CONF_DIR, SWEEPS_DIR))
    register_resolvers()
    register()
    register_sweeper()
    composed: list[DictConfig] = []
    LocalLauncher.collected, LocalLauncher.bases = composed, []
    StudySweeper.captured = None
    try:
        _run_hydra(args, composed)
    except HydraException as error:
        group = (hints.refused_key(error) or "").rpartition(".")[0]
        deferred = [_for_each_job(override) if _sets(override, group) else override for override in overrides]
        multirun = flags.multirun or any(override.startswith(("sweeps=", "hydra.mode=")) for override in overrides)
        if not multirun or deferred == overrides:
            raise hints.to_config_error(error, overrides) from error
        # A fixed key of a group whose option varies: the sweep's own configuration has the default, which may lack the key.
        try:
            return _compose(flags, deferred)
        except HydraException as again:
            raise hints.to_config_error(again, overrides) from again
    return composed


def _sets(override: str, group: str) -> bool:
    """Return True if an override sets a single value of a key in `group`."""
    return bool(group) and override.startswith(f"{group}.") and not override.partition("=")[2].startswith("choice(")


def _for_each_job(override: str) -> str:
    """Return the override as a sweep over its one value, which Hydra resolves for each job."""
    key, _, value = override.partition("=")
    return f"{key}=choice({value})"


def _run_hydra(args: list[str], composed: list[DictConfig]) -> None:
    """Run Hydra on `args`. A single run ends in `composed`, a grid in the launcher, a study in the sweeper."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
    def task(cfg: DictConfig) -> None:
        whole = OmegaConf.create(OmegaConf.to_container(cfg))
        assert isinstance(whole, DictConfig)
        whole.hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        composed.append(whole)

    with _as_command_line(args):
        task()


@contextmanager
def _as_command_line(args: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv`` for Hydra, and let its exceptions through, so that we print the message and set the exit code."""
    before = sys.argv
    sys.argv = [before[0], *args]
    try:
        with _variable(FULL_TRACE, "1"):
            yield
    finally:
        sys.argv = before


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable in this context."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
