"""Compose the jobs of a sweep."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from lmablate.config.reuse import CachedComposer


class Composer(CachedComposer):
    """A cached ``loader.load_sweep_config(master, overrides)`` for one job after another."""

    def __init__(self, loader: Any, master: DictConfig) -> None:
        super().__init__(loader, lambda overrides: loader.load_sweep_config(master, overrides))
