"""Datasets and tokenizers of the Hugging Face Hub; without a network, what its local cache holds."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lmablate.data.arrow import first_line, quiet_datasets, texts
from lmablate.data.settings import HubData
from lmablate.data.stamp import Stamp
from lmablate.errors import DataError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0  # for the Hub to answer at all; the client's own retries take 23 s to give up
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = (
    "use the built-in text with data=kjv, or local copies with data=files data.paths='...'; "
    "a dataset once loaded on this machine is found again without a network"
)


class HubDataset:
    """One split of a dataset on the Hub; training and validation documents both come from it."""

    entropy_floor = None

    def __init__(self, settings: HubData) -> None:
        self.settings = settings
        self.where = f"data=hub data.name={settings.name}"
        self._commit: str | None = None

    @cached_property
    def online(self) -> bool:
        """Asked once, so that an unreachable Hub costs its few seconds once."""
        return hub_answers()

    def stamp(self) -> Stamp:
        """A commit never changes. A branch or tag is looked up, over the network or in the local cache."""
        self._commit = self._commit or self._find_commit()
        return Stamp(self._commit, settled=self._commit is not None)

    def documents(self) -> Iterator[memoryview | bytes]:
        """Raises DataError: no network (within 10 s), or no such dataset, subset, split or field."""
        documents: Iterator[memoryview | bytes] = self._rows()
        if self.settings.document_start is not None:
            documents = join_rows(documents, re.compile(self.settings.document_start))
        return itertools.islice(documents, self.settings.max_documents)

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
                raise DataError(f"{self.where}: cannot be loaded: {in_words(error, revision)}") from error
            log.info("%s is at commit %s now: data.revision=%s pins it", name, commit, commit)
            return commit
        reference = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / revision
        return reference.read_text().strip() if reference.is_file() else None

    def _rows(self) -> Iterator[memoryview]:
        s = self.settings
        online, why = self.online, why_offline()
        try:
            with quiet_datasets(), contextlib.nullcontext() if online else offline():
                rows = self._load(online, why)
                for table in rows.with_format("arrow").iter(batch_size=256):
                    yield from texts(table, s.text_field, self.where)
        except DataError:
            raise
        except Exception as error:  # the network's errors, the Hub's, and those of the readers of the formats
            if online:
                raise DataError(f"{self.where}: cannot be loaded: {in_words(error, s.revision)}") from error
            raise DataError(f"{self.where}: {why}, and the dataset is not in the local cache: {_INSTEAD}") from error

    def _load(self, online: bool, why: str) -> Any:
        """Streamed where only the beginning is wanted; without a network, the cached copy of the commit asked for."""
        import datasets

        s = self.settings
        commit = self._commit or s.revision
        streaming = online and s.max_documents is not None
        rows = datasets.load_dataset(s.name, s.subset, split=s.split, revision=commit, streaming=streaming)
        if not online and commit is not None and rows.cache_files:
            # `datasets` takes the newest cached copy, whatever its revision.
            found = Path(rows.cache_files[0]["filename"]).parent.name
            if found != commit:
                raise DataError(
                    f"{self.where}: {why}, and the local cache holds commit {found}, not {commit}: {_INSTEAD}"
                )
        return rows


def join_rows(rows: Iterator[memoryview | bytes], start: re.Pattern[str]) -> Iterator[bytes]:
    """Documents of several rows: one begins at each row in which `start` is found; each row ends with a newline."""
    parts: list[bytes] = []
    for row in rows:
        text = bytes(row)
        if parts and start.search(text.decode()):
            yield b"".join(parts)
            parts = []
        parts.append(text if text.endswith(b"\n") else text + b"\n")
    if parts:
        yield b"".join(parts)


def hub_answers(seconds: float = ANSWER_SECONDS) -> bool:
    """Is the Hub there? Asked in a thread, since a name server that does not answer blocks for longer than any timeout."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or _datasets_offline():
        return False
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=seconds)
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


def in_words(error: Exception, revision: str | None) -> str:
    """What the Hub refused."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access has to be asked for on its page; then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such name, or it is private: then log in with: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision}"
    return first_line(error)


def why_offline() -> str:
    """For messages."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _datasets_offline():
        return "HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) is set"
    return "the Hugging Face Hub does not answer"


def _datasets_offline() -> bool:
    return os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """As HF_HUB_OFFLINE=1, which both packages read only once, when they are imported."""
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def fetch_tokenizer(name: str, revision: str | None) -> Path:
    """The tokenizer.json of the model `name`, from the local cache or the Hub. Raises DataError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    where = f"tokenizer.path={name}"
    with contextlib.suppress(Exception):
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision, local_files_only=True))
    if not hub_answers():
        raise DataError(
            f"{where}: there is no such file, {why_offline()}, and the local cache has no such tokenizer: "
            "give the path of a tokenizer.json, or use tokenizer=bpe or tokenizer=bytes"
        )
    try:
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision))
    except EntryNotFoundError as error:
        raise DataError(f"{where}: there is no such file, and on the Hub: it has no tokenizer.json") from error
    except Exception as error:
        raise DataError(f"{where}: there is no such file, and on the Hub: {in_words(error, revision)}") from error
