"""Composes the jobs of a sweep: Hydra's result, without doing again what two jobs share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """What ``loader.load_sweep_config(master, words)`` gives, for one job after another.

    Most of Hydra's tenth of a second goes into the options of the groups. Jobs that choose the same ones are composed once;
    words that set a single key (seeds, learning rates) are applied to a copy, as Hydra does in its last step.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self._groups: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        parsed = self.parser.parse_overrides(list(words))
        plain = [override for override in parsed if self._sets_a_key(override)]
        others = tuple(word for word, override in zip(words, parsed, strict=True) if override not in plain)
        if not plain:
            return self.loader.load_sweep_config(self.master, list(words))
        if others not in self._bases:
            self._bases[others] = self.loader.load_sweep_config(self.master, list(others))
        config = copy.deepcopy(self._bases[others])
        try:
            for override in plain:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra has the words for what is wrong
            return self.loader.load_sweep_config(self.master, list(words))
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task]
        shape = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=shape.kv_sep, item_sep=shape.item_sep, exclude_keys=shape.exclude_keys
        )
        return config

    def _sets_a_key(self, override: Override) -> bool:
        """``a.b=value``: no group, nothing added or deleted, nothing of Hydra's own."""
        key = override.key_or_group
        if override.type.name != "CHANGE" or override.package is not None or override.is_hydra_override():
            return False
        if key not in self._groups:
            self._groups[key] = bool(self.loader.get_group_options(key))
        return not self._groups[key]
