"""Jobs of one graph in one process: ``python -m lmablate.launcher.gang_worker RUN_DIRECTORY ... [--trust PACKAGE]``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


def run_group(paths: Sequence[Path], trusted: Sequence[str]) -> int:
    """Train the runs whose config.yaml stand in `paths`; 0 all ended, 1 one failed, 143 stopped.

    Whatever cannot train in a gang goes on alone, run by run, so that one bad run costs no other.
    """
    from lmablate.core.locks import Held
    from lmablate.launcher.worker import leave_word, run_directory
    from lmablate.model.components import trust
    from lmablate.runs.config_file import asked_path, read_config
    from lmablate.runs.gang_run import train_group
    from lmablate.runs.prepared import prepare_run
    from lmablate.runs.recovery import HELD
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.runs.state import state_of
    from lmablate.training.trainer import Interrupted

    trust(*trusted)
    directories = [RunDirectory(path.parent, path.name) for path in paths]
    try:
        configs = [read_config(asked_path(path)) for path in paths]
        if all(cfg.branches for cfg in configs):
            return _run_branches(directories, list(trusted))
        first = directories[0].path  # one of them speaks for all
        train_group([prepare_run(cfg) for cfg in configs], on_trial=lambda what: leave_word(first, {"doing": what}))
        return 0
    except (Interrupted, KeyboardInterrupt):
        for directory in directories:
            if not state_of(read_config(asked_path(directory.path)), directory).done:
                leave_word(directory.path, {"state": "stopped"})
        return 143
    except Held as held:
        print(held, file=sys.stderr)
        return HELD
    except Exception:
        log.exception("these runs could not train together; they go on one by one")
    left = [one for one in directories if not state_of(read_config(asked_path(one.path)), one).done]
    codes = [run_directory(directory.path, list(trusted)) for directory in left]
    return max(codes, default=0)


def _run_branches(directories: Sequence[RunDirectory], trusted: list[str]) -> int:
    """Branches of one trunk, one after the other, the longest first; each starts from a checkpoint of the trunk's."""
    from lmablate.launcher.worker import leave_word, run_directory

    worst = 0
    for i, directory in enumerate(directories):
        code = run_directory(directory.path, trusted)
        if code == 143:
            for waiting in directories[i + 1 :]:
                leave_word(waiting.path, {"state": "stopped"})
            return code
        worst = max(worst, code)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--trust", action="append", default=[])
    words = parser.parse_args()
    from lmablate.core.logging import configure_logging
    from lmablate.launcher.worker import die_with_parent

    die_with_parent(words.parent)
    configure_logging()
    return run_group(words.directories, words.trust)


if __name__ == "__main__":
    sys.exit(main())
