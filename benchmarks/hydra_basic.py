"""Our runs under Hydra's own basic launcher: one after another in one process, eager.

``python benchmarks/hydra_basic.py -m hydra/launcher=basic seed=0,1 ...`` with the words of ``lmablate.train``. The front door
collects the jobs of every launcher and runs them itself, so the comparison needs a ``@hydra.main`` of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lmablate.config.composition import register_resolvers, to_run_config  # noqa: E402
from lmablate.core.paths import CONF_DIR  # noqa: E402
from lmablate.launcher.hydra_launchers import register  # noqa: E402
from lmablate.runs.prepared import prepare_run  # noqa: E402
from lmablate.runs.run import execute  # noqa: E402
from lmablate.sweeper.plugin import register_sweeper  # noqa: E402

register_resolvers()
register()
register_sweeper()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def task(cfg: DictConfig) -> None:
    whole = OmegaConf.create(OmegaConf.to_container(cfg))
    whole.hydra = HydraConfig.instance().cfg.hydra
    run = to_run_config(whole)
    execute(prepare_run(run))


if __name__ == "__main__":
    task()
