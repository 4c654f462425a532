"""From the configurations of a command to distinct jobs: data ready, identity known, duplicates merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.axes import default_choices
from lmablate.identity import SCIENCE_VERSION, run_id
from lmablate.run import load_data, with_data
from lmablate.run_directory import RunDirectory, check_writable

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData


@dataclass
class Job:
    """One run to be made; `asked` counts how many lines of the sweep ask for it."""

    cfg: RunConfig
    run_id: str
    asked: int = 1
    other_overrides: list[list[str]] = field(default_factory=list)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    @property
    def done(self) -> bool:
        return self.directory.is_done

    @property
    def row(self) -> dict[str, Any]:
        """The result of a job that is done."""
        result = self.directory.read_result()
        assert result is not None
        return result

    @property
    def label(self) -> str:
        """What a person recognises the run by: what was asked for beyond the common settings."""
        defaults = default_choices()
        words = [option for axis, option in self.cfg.choices.items() if defaults.get(axis) != option]
        sizes = [
            word
            for word in self.cfg.overrides
            if "." in word.split("=")[0] and not word.startswith(("runtime.", "trainer.", "hydra."))
        ]
        return " ".join([*words, *sizes, f"seed={self.cfg.init_seed}"])


def prepare_jobs(configs: Sequence[RunConfig]) -> tuple[list[Job], dict[str, TokenData]]:
    """The distinct jobs of `configs` in order, and the data of each by run id.

    Text is read and tokenised once for each distinct source. Raises ConfigError before anything is trained.
    """
    for folder in {cfg.results_dir for cfg in configs}:
        check_writable(Path(folder))
    stores: dict[str, TokenData] = {}
    jobs: dict[str, Job] = {}
    data_of: dict[str, TokenData] = {}
    for cfg in configs:
        key = json.dumps(
            [cfg.data.model_dump(), cfg.tokenizer.model_dump(), cfg.model.context_length, cfg.runtime.cache_dir],
            sort_keys=True,
            default=str,
        )
        if key not in stores:
            stores[key] = load_data(cfg)
        data = stores[key]
        final = with_data(cfg, data)
        identity = run_id(final, data)
        if identity in jobs:
            jobs[identity].asked += 1
            jobs[identity].other_overrides.append(cfg.overrides)
        else:
            jobs[identity], data_of[identity] = Job(final, identity), data
    return list(jobs.values()), data_of


def stale(row: dict[str, Any]) -> bool:
    """Was this row made by code whose numbers have since changed?"""
    return row.get("science_version") != SCIENCE_VERSION
