"""Cache Hydra's compositions, so that the part that lists of overrides share is composed once."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CACHED = 64  # configurations, of about a megabyte each
_Stamp = tuple[int, int]


class CachedComposer:
    """A composer with the results of ``whole(overrides)``, for one list of overrides after another.

    Most of Hydra's tenth of a second goes into the options of the groups. Lists that choose the same ones are composed once.
    Overrides that set a single key (seeds, learning rates) are applied to a copy, as Hydra does in its last step."""

    def __init__(self, loader: ConfigLoaderImpl, whole: Callable[[list[str]], DictConfig]) -> None:
        self.whole, self.loader = whole, loader
        self.parser = OverridesParser.create(config_loader=loader)
        self._base = lru_cache(maxsize=CACHED)(lambda overrides: whole(list(overrides)))

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Compose one list of overrides. Raises the exceptions of Hydra."""
        parsed = self.parser.parse_overrides(list(overrides))
        later = self._set_last(parsed)
        if any(override.is_sweep_override() or override.is_hydra_override() for override in parsed):
            return self.whole(list(overrides))
        base = tuple(override for index, override in enumerate(overrides) if index not in later)
        config = copy.deepcopy(self._base(base))
        try:
            for index in later:
                OmegaConf.update(config, parsed[index].key_or_group, parsed[index].value(), merge=True)
        except OmegaConfBaseException:  # Hydra explains what is wrong
            return self.whole(list(overrides))
        config.hydra.overrides.task = [override.input_line for override in parsed]
        shape = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed, kv_sep=shape.kv_sep, item_sep=shape.item_sep, exclude_keys=shape.exclude_keys
        )
        return config

    @cached_property
    def _files(self) -> CachingConfigRepository:
        """Return the configuration files in all folders that Hydra searches."""
        return self.loader._parse_overrides_and_create_caching_repo("train", [])[1]

    def _set_last(self, parsed: Sequence[Override]) -> list[int]:
        """Return the positions of the overrides that only set a key of what the others compose.

        Hydra sets, adds and deletes keys in order, so these must come after the last one that adds or deletes."""
        later: list[int] = []
        for index, override in enumerate(parsed):
            is_group = self._files.group_exists(override.key_or_group)
            if override.type.name == "CHANGE" and override.package is None and not is_group:
                later.append(index)
            elif not is_group:
                later = []
        return later


class Loader(ConfigLoaderImpl):
    """Hydra's loader, with a record of the files that it has read."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._stamps: dict[str, _Stamp | None] = {}

    def is_current(self) -> bool:
        """Return True if every file that was read is unchanged and Hydra would still read it."""
        return all(_stamp(path) == stamp for path, stamp in self._stamps.items())

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, self._repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        return parsed, self._repository

    def _load_configuration_impl(self, *args: Any, **kwargs: Any) -> DictConfig:
        loaded = super()._load_configuration_impl(*args, **kwargs)
        for name in self._repository.cache:
            for source in self._repository.get_sources():  # Hydra takes the first that has the file
                path = _file(source, name.removeprefix("config_path="))
                self._stamps[path] = _stamp(path)
                if self._stamps[path]:
                    break
        return loaded


def _file(source: ConfigSource, config_path: str) -> str:
    """Return the path of a configuration in a source, or a path to nothing if the source is no folder."""
    return os.path.join(source.path if source.scheme() == "file" else os.devnull, f"{config_path}.yaml")


def _stamp(path: str) -> _Stamp | None:
    """Return a file's time of change (ns) and size (bytes), or None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
