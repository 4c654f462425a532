"""The front door: Hydra's command line, with our exit codes and our words.

0: every job completed or diverged. 1: a job failed, after the others ran. 2: the command cannot be run, and nothing was.
143 (130): stopped by SIGTERM (SIGINT), checkpoints written.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.errors import ConfigError, check_here
from lmablate.streams import guard_streams

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmablate.config.schema import RunConfig
    from lmablate.launcher.engine import Launcher
    from lmablate.sweeper.study import Study

# Takes the jobs of one command and the word of the launcher; returns the exit code.
Action = Callable[[Sequence["RunConfig"], str], int]
# The same for a study, whose later jobs hang on the results of earlier ones.
StudyAction = Callable[["Study", str], int]

HELP = """{program}: {purpose}

  python -m {module} norm=layer activation=gelu            one run
  python -m {module} -m norm=rms,layer activation=swiglu,gelu   a grid: every combination
  python -m {module} preset=gpt2 shrink=tiny               a published system in proportion (python -m lmablate.presets)
  python -m {module} sweeps=norm_and_activation            a stored sweep (see sweeps/); scale=laptop, gpu or lab sets its size

Groups and their options (conf/<group>/<option>.yaml), defaults in brackets:
{axes}

Any key: model.d_model=256, optim.lr=1e-3, trainer.steps=2000, seed=0,1,2, results_dir=results, runtime.workers=2.
All keys with their values: --cfg job. Packages with parts of your own: --trust mypackage. Finished runs anew: --again. Say more: -v.
"""


def main(
    module: str, purpose: str, action: Action, argv: Sequence[str] | None = None, *, study: StudyAction | None = None
) -> int:
    """Run one command line; returns its exit code and prints errors of the user's in words."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        print(
            f"lmablate needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: Hydra 1.3 does not start on newer ones",
            file=sys.stderr,
        )
        return 2
    speak()
    if "--help" in words or "-h" in words:
        from lmablate import axes

        print(HELP.format(program=module, module=module, purpose=purpose, axes=axes.text()))
        return 0
    traces = os.environ.get("HYDRA_FULL_ERROR") == "1"
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        check_here()
        return _run(_own_flags(words), action, study)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if traces:
            raise
        from lmablate.config.compose import in_words

        shown = error if isinstance(error, ConfigError) else in_words(error)
        print(f"error: {shown}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def speak() -> None:
    """Print our own notes, and of other packages only warnings; no secret of the environment."""
    guard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lmablate").setLevel(logging.INFO)


def _own_flags(words: list[str]) -> list[str]:
    """Take ``--trust PACKAGE`` out of the command line and bring the overrides into Hydra's grammar."""
    from lmablate.config.compose import rewrite

    rest: list[str] = []
    flags = iter(words)
    for word in flags:
        if word == "--trust" or word.startswith("--trust="):
            package = word.partition("=")[2] or next(flags, "")
            if not package:
                raise ConfigError("--trust needs the name of a package, e.g. --trust mypackage")
            from lmablate.model.parts import trust

            trust(*package.split(","))
            sys.path.insert(0, os.getcwd())
        elif word == "--again":
            rest.append("runtime.again=true")
        else:
            rest.append(word)
    overrides = [word for word in rest if not word.startswith("-")]
    dashes = [word for word in rest if word.startswith("-")]
    valued = {"-cp", "-cn", "-cd", "-p", "--config-path", "--config-name", "--config-dir", "--package", "--info"}
    if valued & set(dashes):  # flags that take a word of their own: leave the order to Hydra
        rewrite([word for word in overrides if "=" in word])
        return rest
    return dashes + rewrite(overrides)


def _run(words: list[str], action: Action, study: StudyAction | None) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    from lmablate.branches import expand
    from lmablate.config.compose import register_resolvers, to_run_config
    from lmablate.config.foreign import check_folders, named_folders
    from lmablate.launcher.local import LocalLauncher, register
    from lmablate.paths import CONF_DIR, SWEEPS_DIR
    from lmablate.sweeper.plugin import StudySweeper, register_sweeper

    here = [Path.cwd() / "conf", Path.cwd() / "sweeps", *named_folders(words)]
    check_folders(here, own=(CONF_DIR, SWEEPS_DIR))
    register_resolvers()
    register()
    register_sweeper()
    composed: list[DictConfig] = []
    LocalLauncher.collected = composed
    StudySweeper.asked = None

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
    def task(cfg: DictConfig) -> None:
        whole = OmegaConf.create(OmegaConf.to_container(cfg))
        assert isinstance(whole, DictConfig)
        whole.hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        composed.append(whole)

    before, asked = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions out, so that they end in our words and exit codes
    try:
        task()
    except HydraException:  # of which one is an OSError too
        raise
    except OSError as error:  # Hydra notes a multirun in results_dir before any of our checks
        raise ConfigError(
            f"results_dir: cannot write {error.filename} ({error.strerror}): choose another folder (results_dir=PATH)"
        ) from error
    finally:
        sys.argv = before
        if asked is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    # Hydra's part ends here: every job is checked before the first one starts.
    if StudySweeper.asked is not None:
        if study is None:
            raise ConfigError("a study (hydra/sweeper=study) needs python -m lmablate.train or lmablate.plan")
        return study(StudySweeper.asked.study(), StudySweeper.asked.launcher_word)
    if composed and (sweeper := composed[0].hydra.runtime.choices["hydra/sweeper"]) in ("study", "optuna"):
        raise ConfigError(f"hydra/sweeper={sweeper} trains several runs: add -m in front of the overrides")
    configs = expand([to_run_config(job) for job in composed])
    return action(configs, launcher_of(composed[0])) if configs else 0


def launcher_of(composed: DictConfig) -> Launcher:
    """The word of the launcher that Hydra chose, with its settings."""
    from omegaconf import OmegaConf

    from lmablate.launcher.engine import Launcher

    settings = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    named = {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    return Launcher(composed.hydra.runtime.choices["hydra/launcher"], named)
