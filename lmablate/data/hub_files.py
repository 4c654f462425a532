"""The JSON files of a split of a dataset on the Hub, and a stored list of them for use without a network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lmablate.core.files import atomic_write, read_json
from lmablate.data.packed import kind_of
from lmablate.schema.data import HubData


def json_files(builder: Any, split: str) -> list[str] | None:
    """Return the paths of the files of `split`, if they are plain JSON and `split` is a whole one; else None."""
    from datasets.packaged_modules.json.json import Json

    if not isinstance(builder, Json) or builder.config.field is not None or builder.config.encoding != "utf-8":
        return None
    names = [str(name) for name in (builder.config.data_files or {}).get(split, [])]
    plain = bool(names) and all(kind_of(name) == "json" or name.endswith(".zip") for name in names)
    return names if plain else None


def hub_files(
    names: list[str], settings: HubData, commit: str | None, *, streaming: bool
) -> Iterator[tuple[BinaryIO, str, int]]:
    """Yield each file opened, with its path and size; over the network if only the beginning is needed."""
    from huggingface_hub import HfFileSystem

    remote = HfFileSystem()
    for name in names:
        if streaming:
            # The remote file's own readline has no limit.
            yield io.BufferedReader(remote.open(name, "rb"), 1 << 20), name, remote.info(name)["size"]
        else:
            path = _downloaded(settings, _inside(remote, name), commit)
            yield path.open("rb", buffering=1 << 20), name, path.stat().st_size
    if not streaming:
        _store_listing(settings, commit, [_inside(remote, name) for name in names])


def _inside(remote: Any, name: str) -> str:
    """The path in its repository of a file that ``datasets`` calls hf://datasets/OWNER/NAME@COMMIT/PATH."""
    path: str = remote.resolve_path(name).path_in_repo
    return path


def _downloaded(settings: HubData, path: str, commit: str | None, *, cached: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    assert settings.name is not None
    return Path(hf_hub_download(settings.name, path, revision=commit, repo_type="dataset", local_files_only=cached))


def cached_files(settings: HubData, commit: str | None) -> list[Path] | None:
    """Return all files of the split from the local cache, or None."""
    try:
        listing = read_json(_listing_path(settings, commit or settings.revision or "main"))
        return [_downloaded(settings, path, listing["commit"], cached=True) for path in listing["files"]]
    except Exception:  # never read here, or cleared since; the packages raise various errors
        return None


def _store_listing(settings: HubData, commit: str | None, files: list[str]) -> None:
    """Store which files were read; a read-only cache is not an error."""
    with contextlib.suppress(OSError):
        for revision in {commit, settings.revision or "main"} - {None}:
            path = _listing_path(settings, str(revision))
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps({"commit": commit, "files": files}))


def _listing_path(settings: HubData, revision: str) -> Path:
    import datasets.config

    key = json.dumps([settings.name, settings.subset, settings.split, revision])
    return Path(datasets.config.HF_DATASETS_CACHE) / "lmablate" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
