"""The files of JSON that make up a split of a dataset on the Hub, and a note of them, so that they are found without a network."""

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
    """The places of the files of `split`, if they are JSON of the plain kind and `split` is a whole one."""
    from datasets.packaged_modules.json.json import Json

    if not isinstance(builder, Json) or builder.config.field is not None or builder.config.encoding != "utf-8":
        return None
    names = [str(name) for name in (builder.config.data_files or {}).get(split, [])]
    plain = bool(names) and all(kind_of(name) == "json" or name.endswith(".zip") for name in names)
    return names if plain else None


def hub_files(
    names: list[str], settings: HubData, commit: str | None, *, streaming: bool
) -> Iterator[tuple[BinaryIO, str, int]]:
    """Each file open, with its place and size; over the network where only the beginning of the text is wanted."""
    from huggingface_hub import HfFileSystem

    remote = HfFileSystem()
    for name in names:
        if streaming:
            # Its own readline has no limit.
            yield io.BufferedReader(remote.open(name, "rb"), 1 << 20), name, remote.info(name)["size"]
        else:
            path = _downloaded(settings, _inside(remote, name), commit)
            yield path.open("rb", buffering=1 << 20), name, path.stat().st_size
    if not streaming:
        _note(settings, commit, [_inside(remote, name) for name in names])


def _inside(remote: Any, name: str) -> str:
    """The path in its repository of a file that ``datasets`` calls hf://datasets/OWNER/NAME@COMMIT/PATH."""
    path: str = remote.resolve_path(name).path_in_repo
    return path


def _downloaded(settings: HubData, path: str, commit: str | None, *, cached: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    assert settings.name is not None
    return Path(hf_hub_download(settings.name, path, revision=commit, repo_type="dataset", local_files_only=cached))


def cached_files(settings: HubData, commit: str | None) -> list[Path] | None:
    """The files of the split in the local cache, all of them, or None."""
    try:
        noted = read_json(_note_path(settings, commit or settings.revision or "main"))
        return [_downloaded(settings, path, noted["commit"], cached=True) for path in noted["files"]]
    except Exception:  # never read here, or cleared since: what the packages raise is theirs
        return None


def _note(settings: HubData, commit: str | None, files: list[str]) -> None:
    """Remember which files were read. A cache that cannot be written to is none the worse."""
    with contextlib.suppress(OSError):
        for revision in {commit, settings.revision or "main"} - {None}:
            path = _note_path(settings, str(revision))
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps({"commit": commit, "files": files}))


def _note_path(settings: HubData, revision: str) -> Path:
    import datasets.config

    key = json.dumps([settings.name, settings.subset, settings.split, revision])
    return Path(datasets.config.HF_DATASETS_CACHE) / "lmablate" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
