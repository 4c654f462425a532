"""The text to score: a run's own validation text, or any files."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmablate.core.errors import DataError
from lmablate.data.local_files import LocalFiles
from lmablate.data.tally import OR_SKIP
from lmablate.schema.data import FilesData
from lmablate.schema.evaluation_windows import VALIDATION

if TYPE_CHECKING:
    from lmablate.data import TokenData

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """A text to score: `tokens` int64 ``[N]``, each document followed by its end token, from `n_bytes` bytes of UTF-8."""

    name: str
    tokens: np.ndarray
    n_bytes: int
    fingerprint: str


def validation_text(data: TokenData) -> Text:
    """Return the text of the run's own val_loss."""
    return Text(VALIDATION, np.asarray(data.val, dtype=np.int64), data.val_bytes, data.fingerprint)


def _in_flags(message: str) -> str:
    return message.replace("data.paths", "--data").replace("data.text_field", "--text-field")


def read_text(paths: str, data: TokenData, text_field: str = "text") -> Text:
    """Read the files that `paths` matches, under the run's tokenizer. Raises DataError. A text file is one document, as is each row of
    a JSONL, Parquet or Arrow file."""
    if not paths:
        raise DataError("--data needs a file, or a pattern such as 'texts/*.txt'")
    settings = FilesData(source="files", paths=paths, text_field=text_field, val_fraction=0.5, val_bytes=100)
    try:
        source = LocalFiles(settings)
        documents = [bytes(document) for document in source.documents()]
    except DataError as error:
        raise DataError(_in_flags(str(error).replace(OR_SKIP, ""))) from None
    for notice in source.notices():
        log.warning(_in_flags(notice))
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise DataError(f"--data {paths}: there is no text, since every document is empty or blank")
    content = hashlib.sha256(b"".join(hashlib.sha256(document).digest() for document in documents)).hexdigest()
    end = np.array([data.eot_id])
    parts: list[np.ndarray] = []
    for ids in data.tokenizer.encode(documents):
        parts += [ids, end]
    tokens = np.concatenate(parts).astype(np.int64)
    return Text(Path(paths).name, tokens, sum(map(len, documents)), content)
