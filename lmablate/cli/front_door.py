"""The front door: Hydra's command line, with our exit codes and our words.

0: every job completed or diverged. 1: a job failed, after the others ran. 2: the command cannot be run, and nothing was.
143 (130): stopped by SIGTERM (SIGINT), checkpoints written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.cli.flags import Flags, split
from lmablate.core.errors import FULL_TRACE, ConfigError, exit_on_config_error
from lmablate.core.logging import configure_logging
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study

# Takes the jobs of one command and the word of the launcher; returns the exit code.
Action = Callable[[Sequence["RunConfig"], str], int]
# The same for a study, whose later jobs hang on the results of earlier ones.
StudyAction = Callable[["Study", str], int]


@exit_on_config_error
def main(
    module: str, purpose: str, action: Action, argv: Sequence[str] | None = None, *, study: StudyAction | None = None
) -> int:
    """Run one command line; returns its exit code and prints errors of the user's in words."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise ConfigError(
            f"lmablate needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: Hydra 1.3 does not start on newer ones"
        )
    configure_logging()
    if "--help" in words or "-h" in words:
        from lmablate.cli.usage import text

        print(text(module, purpose))
        return 0
    flags = split(words)
    trust_packages(flags.trusted)
    from lmablate.config.overrides import rewrite

    return _run(flags, rewrite(flags.overrides), action, study)


def trust_packages(packages: Sequence[str]) -> None:
    """Open a user's own packages, which may stand in the current folder."""
    if packages:
        from lmablate.model.components import trust

        trust(*packages)
        sys.path.insert(0, os.getcwd())


def _run(flags: Flags, overrides: list[str], action: Action, study: StudyAction | None) -> int:
    """Compose every job of a command, check them all, and hand them to `action`."""
    from lmablate.config.composition import to_run_config
    from lmablate.launcher.hydra_launchers import launcher_of
    from lmablate.runs.wsd_branches import expand
    from lmablate.sweeper.plugin import StudySweeper

    shows = "--cfg" in flags.valued
    if shows and flags.several:  # Hydra shows one configuration, and of a grid nothing
        flags = flags._replace(switches=[], valued={} if _is_grid(overrides) else flags.valued)
        if not flags.valued:
            return _show(_composed(flags._replace(switches=["-m"]), overrides))
    composed = _composed(flags, overrides)
    if StudySweeper.asked is not None:
        if study is None:
            raise ConfigError("a study (hydra/sweeper=study) needs python -m lmablate.train or lmablate.plan")
        return study(StudySweeper.asked.study(), StudySweeper.asked.launcher_word)
    if composed and (sweeper := composed[0].hydra.runtime.choices["hydra/sweeper"]) in ("study", "optuna"):
        raise ConfigError(f"hydra/sweeper={sweeper} trains several runs: add -m in front of the overrides")
    configs = expand([to_run_config(job) for job in composed])
    return action(configs, launcher_of(composed[0])) if configs else 0


def _is_grid(overrides: Sequence[str]) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(list(overrides)))


def _show(jobs: Sequence[DictConfig]) -> int:
    """``-m ... --cfg job``: the configuration of every job, under its overrides."""
    from omegaconf import OmegaConf

    for job in jobs:
        print(f"---\n# {' '.join(job.hydra.overrides.task)}")
        print(OmegaConf.to_yaml(OmegaConf.masked_copy(job, [key for key in map(str, job) if key != "hydra"])), end="")
    return 0


def _composed(flags: Flags, overrides: list[str]) -> list[DictConfig]:
    """What Hydra makes of a command line: its jobs, or none where a study is left in ``StudySweeper.asked``."""
    from hydra.errors import HydraException

    from lmablate.config import hints
    from lmablate.config.composition import register_resolvers
    from lmablate.config.untrusted_yaml import check_folders, named_folders
    from lmablate.launcher.hydra_launchers import LocalLauncher, register
    from lmablate.sweeper.plugin import StudySweeper, register_sweeper

    words = flags.words(overrides)
    here = [Path.cwd() / "conf", Path.cwd() / "sweeps", *named_folders(words)]
    check_folders(here, own=(CONF_DIR, SWEEPS_DIR))
    register_resolvers()
    register()
    register_sweeper()
    composed: list[DictConfig] = []
    LocalLauncher.collected = composed
    StudySweeper.asked = None
    try:
        _hydra(words, composed)
    except HydraException as error:
        group = (hints.refused_key(error) or "").rpartition(".")[0]
        deferred = [_for_each_job(word) if _sets(word, group) else word for word in overrides]
        several = flags.several or any(word.startswith(("sweeps=", "hydra.mode=")) for word in overrides)
        if not several or deferred == overrides:
            raise hints.in_words(error, overrides) from error
        # A fixed key of a group whose option each job chooses: the sweep's own configuration, which has the default, may lack it.
        try:
            return _composed(flags, deferred)
        except HydraException as again:
            raise hints.in_words(again, overrides) from again
    return composed


def _sets(word: str, group: str) -> bool:
    """Does an override set one value of a key in `group`?"""
    return bool(group) and word.startswith(f"{group}.") and not word.partition("=")[2].startswith("choice(")


def _for_each_job(word: str) -> str:
    """The override as a sweep over its one value, which Hydra leaves to the jobs."""
    key, _, value = word.partition("=")
    return f"{key}=choice({value})"


def _hydra(words: list[str], composed: list[DictConfig]) -> None:
    """Have Hydra read `words`; a single run ends up in `composed`, a grid in the launcher, a study in the sweeper."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
    def task(cfg: DictConfig) -> None:
        whole = OmegaConf.create(OmegaConf.to_container(cfg))
        assert isinstance(whole, DictConfig)
        whole.hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        composed.append(whole)

    with _as_command_line(words):
        task()


@contextmanager
def _as_command_line(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and lets exceptions out, so that they end in our words and exit codes."""
    before, asked = sys.argv, os.environ.get(FULL_TRACE)
    sys.argv = [before[0], *words]
    os.environ[FULL_TRACE] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if asked is None:
            os.environ.pop(FULL_TRACE, None)
