"""Access to the Hugging Face Hub or its local cache."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lmablate.core.errors import DataError, first_line

ANSWER_SECONDS = 5.0  # timeout for any answer; the client's own retries give up after 23 s


def hub_answers(seconds: float = ANSWER_SECONDS) -> bool:
    """Return True if the Hub answers within `seconds`. A thread asks, since an unresponsive name server blocks longer than any timeout."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or _datasets_offline():
        return False
    answered = threading.Event()

    def request() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=seconds)
            answered.set()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def hub_error_text(error: Exception, revision: str | None) -> str:
    """Return the Hub's refusal as text for the user."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access has to be asked for on its page; then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such name, or it is private: then log in with: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {revision}"
    return first_line(error)


def why_offline() -> str:
    """Return why the Hub is not used, for messages."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _datasets_offline():
        return "HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) is set"
    return "the Hugging Face Hub does not answer"


def _datasets_offline() -> bool:
    return os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Act like HF_HUB_OFFLINE=1, which both packages read only once, on import."""
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence the logs of ``datasets`` and of the Hub's client, since our own messages cover them."""
    import datasets  # noqa: F401  importing it sets the levels

    logs = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def fetch_tokenizer(name: str, revision: str | None) -> Path:
    """Return the tokenizer.json of the model `name`, from the local cache or the Hub. Raises DataError."""
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
        raise DataError(f"{where}: there is no such file, and on the Hub: {hub_error_text(error, revision)}") from error
