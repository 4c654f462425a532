"""From documents in any order to one canonical text: sorted, split and cut by content alone.

Names, folders and reading order have no effect; only the text does.
"""

import hashlib
import logging
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lmablate.core.errors import DataError

log = logging.getLogger(__name__)

Document = bytes | memoryview  # UTF-8

BATCH_BYTES = 4 << 20  # of text per tokeniser call
CHUNK_BYTES = 1 << 20  # longer documents are tokenised in chunks of this size, to bound memory
CUT_REACH = 256  # bytes searched for white space where a text is cut to a size
_VISIBLE = re.compile(rb"\S")
_WORD_END = re.compile(rb"[!-~](?=[ \n\t])")
_BREAK = re.compile(rb"\s")


@dataclass(frozen=True)
class Corpus:
    """The text of a source in the file `spool`, and the spans of its documents.

    `train` and `val` are int64 arrays (documents, 2) of byte offset and length, in canonical order: sorted by the SHA-256 of the text.
    `val` is the validation text alone, `val_bytes` long; held-out documents beyond it are in neither. A tokenizer learns from `whole`:
    `train` before it was cut to `train_bytes`.
    """

    spool: Path
    train: np.ndarray
    whole: np.ndarray
    val: np.ndarray
    val_bytes: int
    fingerprint: str

    def batches(self, spans: np.ndarray) -> Iterator[list[tuple[bytes, bool]]]:
        """Yield the chunks of `spans` in batches of about BATCH_BYTES."""
        batch: list[tuple[bytes, bool]] = []
        size = 0
        for chunk in self.chunks(spans):
            batch.append(chunk)
            size += len(chunk[0])
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def chunks(self, spans: np.ndarray, limit: int = CHUNK_BYTES) -> Iterator[tuple[bytes, bool]]:
        """Yield the documents of `spans` as (UTF-8 bytes, does the document end here), none much longer than `limit`. Long documents
        are cut before white space that follows a word, where a tokenizer ends a word in any case."""
        text = np.memmap(self.spool, dtype=np.uint8, mode="r")
        for offset, length in spans.tolist():
            start, end = offset, offset + length
            while end - start > limit:
                window = text[start : start + limit].tobytes()
                cut = max((m.end() for m in _WORD_END.finditer(window, limit - min(limit, 4096))), default=0)
                cut = cut or character_boundary(window, limit - 4)
                yield window[:cut], False
                start += cut
            yield text[start:end].tobytes(), True


def character_boundary(text: Document, at: int) -> int:
    """Return the last position at or before `at` that does not split a UTF-8 character."""
    while at > 0 and at < len(text) and (text[at] & 0xC0) == 0x80:
        at -= 1
    return at


def break_before(text: Document, at: int, *, reach: int) -> int:
    """Return the cut of `text` that keeps at most `at` bytes: before the last white space within `reach`, else between characters."""
    first = max(0, at - reach)
    cuts = [first + m.start() for m in _BREAK.finditer(bytes(text[first : at + 1]))]
    return cuts[-1] if cuts and cuts[-1] > 0 else character_boundary(text, at)


def collect(
    documents: Iterable[Document],
    spool: Path,
    *,
    where: str,
    val_fraction: float,
    val_bytes: int,
    train_bytes: int | None = None,
    held_out: Iterable[Document] | None = None,
) -> Corpus:
    """Write `documents` to the file `spool`; order, split and cut them.

    The documents `held_out` are validation text if given. Otherwise a document is if the first 64 bits of its SHA-256, as a fraction,
    are below `val_fraction`. So a new document moves no other, and equal documents stay together. Blank documents are dropped. Raises
    DataError, which begins with `where`, if no text is left.
    """
    with spool.open("wb") as file:
        spans, digests = _spool(documents, file)
        val, _ = _spool(held_out or (), file)
    if not len(spans):
        raise DataError(f"{where}: there is no text, since every document is empty or blank")
    if held_out is not None:
        train = spans
    elif digests[0] == digests[-1]:
        train, val = _split_one_text(spool, spans, val_fraction, where)
        digests = _hash_spans(spool, train)
    else:
        count = _held_out(digests, val_fraction)
        train, val, digests = spans[count:], spans[:count], digests[count:]
    val = _cut_to(spool, val, val_bytes)
    content = hashlib.sha256(b"lmablate text 1\n")
    whole = train
    if train_bytes is not None:
        content.update(b"tokenizer\n" + digests.tobytes() + b"\ntraining\n")
        train = _cut_training(spool, train, train_bytes, where)
        digests = _hash_spans(spool, train)
    content.update(digests.tobytes())
    content.update(b"\nvalidation\n")
    content.update(_hash_spans(spool, val).tobytes())
    found = int(val[:, 1].sum())
    log.info("%s: %d documents to train on, %d bytes of validation text", where, len(train), found)
    return Corpus(spool, train, whole, val, found, content.hexdigest())


def _spool(documents: Iterable[Document], file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """Write `documents` to `file`; the spans and the SHA-256 of those that are not blank, sorted by the latter."""
    start, hashes, lengths = file.tell(), bytearray(), array("q")
    for document in documents:
        if _VISIBLE.search(document):
            hashes += hashlib.sha256(document).digest()
            lengths.append(len(document))
            file.write(document)
    sizes = np.asarray(lengths, dtype=np.int64)
    spans = np.stack([start + np.cumsum(sizes) - sizes, sizes], axis=1)
    digests = np.frombuffer(bytes(hashes), dtype="S32")
    order = np.argsort(digests, kind="stable")
    return spans[order], digests[order]


def _cut_training(spool: Path, train: np.ndarray, train_bytes: int, where: str) -> np.ndarray:
    available = int(train[:, 1].sum())
    if train_bytes >= available:
        raise DataError(
            f"{where}: data.train_bytes={train_bytes} keeps all {available} bytes of training text, so it has no effect: leave it out, "
            "or ask for less"
        )
    return _cut_to(spool, train, train_bytes)


def _held_out(digests: np.ndarray, val_fraction: float) -> int:
    """The number of sorted documents for validation: at least one text, and not all."""
    heads = np.frombuffer(digests.tobytes(), dtype=">u8")[::4]
    count = int(np.searchsorted(heads, np.uint64(val_fraction * 2.0**64)))
    if count == 0:  # few documents: hold out the lowest hash
        count = int(np.searchsorted(digests, digests[0], side="right"))
        log.info("by their hashes no document falls to validation, so the one with the lowest is held out")
    elif count == len(digests):
        count = int(np.searchsorted(digests, digests[-1], side="left"))
        log.info("by their hashes every document falls to validation, so the one with the highest is trained on")
    return count


def _split_one_text(spool: Path, spans: np.ndarray, val_fraction: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """If all documents are the same text, train on its beginning and hold out its end."""
    offset, length = spans[0].tolist()
    text = np.memmap(spool, dtype=np.uint8, mode="r", offset=offset, shape=(length,))
    at = round(length * (1 - val_fraction))
    first = max(0, at - 4096)
    near = text[first : at + 1].tobytes()
    newline = near.rfind(b"\n")
    cut = first + newline + 1 if newline >= 0 else first + break_before(near, at - first, reach=4096)
    if not (_VISIBLE.search(text[:cut].data) and _VISIBLE.search(text[cut:].data)):
        raise DataError(
            f"{where}: the only document has {length} bytes, too few to hold out data.val_fraction={val_fraction} of it for "
            "validation: give more text, or another data.val_fraction"
        )
    log.warning("%s: there is only one document, so its last %d bytes are held out for validation", where, length - cut)
    train, val = spans.copy(), spans.copy()
    train[:, 1] = cut
    val += (cut, -cut)
    return train, val


def _cut_to(spool: Path, spans: np.ndarray, n_bytes: int) -> np.ndarray:
    """The first `n_bytes` bytes of the documents at `spans`, the last one cut at white space if possible."""
    before = np.cumsum(spans[:, 1]) - spans[:, 1]
    kept = spans[before < n_bytes].copy()
    room = n_bytes - int(before[len(kept) - 1])
    offset, length = kept[-1].tolist()
    if length > room:
        text = np.memmap(spool, dtype=np.uint8, mode="r", offset=offset, shape=(length,))[: room + 1].tobytes()
        kept[-1, 1] = break_before(text, room, reach=CUT_REACH)
    return kept[kept[:, 1] > 0]


def _hash_spans(spool: Path, spans: np.ndarray) -> np.ndarray:
    """The SHA-256 of each span, as an array of 32-byte strings."""
    text = np.memmap(spool, dtype=np.uint8, mode="r")
    return np.array([hashlib.sha256(text[a : a + n].data).digest() for a, n in spans.tolist()], dtype="S32")
