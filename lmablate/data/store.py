"""Token stores on disk: a folder named by its content, complete or absent.

stores/<hash>/  train.bin  val.bin  tokenizer.json  meta.json
index/<hash>.json       the store of a request, so that unchanged sources are not read again
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmablate.core import access
from lmablate.core.console import progress
from lmablate.core.errors import DataError
from lmablate.core.files import atomic_write
from lmablate.data.documents import BATCH_BYTES, Corpus
from lmablate.data.tokenizer import Tokenizer, fingerprint
from lmablate.data.tokens import TextPart, TokenData

FORMAT = 1  # raised when these files, or their computation, change
_FILES = ("train.bin", "val.bin", "tokenizer.json")
_STALE_SECONDS = 24 * 3600


def write_store(folder: Path, corpora: Mapping[str, Corpus], content: str, tokenizer: Tokenizer) -> None:
    """Tokenise the texts `corpora`, by name, into `folder`; meta.json comes last and has the sizes of the others. `content` is the
    fingerprint of all."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    texts = []
    vals: list[np.ndarray] = []
    with (folder / "train.bin").open("wb") as file:
        for name, corpus in corpora.items():
            start = file.tell()
            for ids in _tokens(corpus, corpus.train, tokenizer):
                counts += np.bincount(ids, minlength=len(counts))
                file.write(ids.astype(dtype).data)
            vals.append(np.concatenate(list(_tokens(corpus, corpus.val, tokenizer))).astype(dtype))
            n_train = (file.tell() - start) // dtype.itemsize
            texts.append(TextPart(name, n_train, len(vals[-1]), corpus.val_bytes)._asdict())
        _flush(file)
    val = np.concatenate(vals)
    (folder / "val.bin").write_bytes(val.tobytes())
    (folder / "tokenizer.json").write_text(tokenizer.dumps(), encoding="utf-8")
    log_p = np.log((counts + 1) / (counts.sum() + len(counts)))
    meta = {
        "format": FORMAT,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "val_bytes": sum(corpus.val_bytes for corpus in corpora.values()),
        "fingerprint": content,
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "unigram_val_loss": float(-log_p[val].mean()),
        "lossless": all(_gives_text_back(corpus, tokenizer) for corpus in corpora.values()),
        "texts": texts,
        "bytes": {name: (folder / name).stat().st_size for name in _FILES},
    }
    atomic_write(folder / "meta.json", json.dumps(meta, indent=1))


def _tokens(corpus: Corpus, spans: np.ndarray, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Ids of the documents at `spans`, one batch at a time, each document followed by its end token."""
    end = np.array([tokenizer.eot_id])
    total = math.ceil(int(spans[:, 1].sum()) / BATCH_BYTES)
    for batch in progress(corpus.batches(spans), "batches of 4 MB tokenised", total):
        parts: list[np.ndarray] = []
        for ids, (_, is_last) in zip(tokenizer.encode([text for text, _ in batch]), batch, strict=True):
            parts += (ids, end) if is_last else (ids,)
        yield np.concatenate(parts).astype(np.int64)


def _gives_text_back(corpus: Corpus, tokenizer: Tokenizer) -> bool:
    texts = [text for text, _ in corpus.chunks(corpus.val)]
    return all(
        tokenizer.decode(ids.tolist()) == text.decode()
        for ids, text in zip(tokenizer.encode(texts), texts, strict=True)
    )


def open_store(folder: Path) -> tuple[TokenData, dict[str, Any]] | None:
    """Return the store in `folder` and its meta.json, or None if it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any((folder / name).stat().st_size != meta["bytes"][name] for name in _FILES):
            return None
        data = TokenData(
            vocab_size=meta["vocab_size"],
            eot_id=meta["eot_id"],
            train=np.memmap(folder / "train.bin", dtype=meta["dtype"], mode="r"),
            val=np.fromfile(folder / "val.bin", dtype=meta["dtype"]),
            val_bytes=meta["val_bytes"],
            fingerprint=meta["fingerprint"],
            tokenizer_fingerprint=meta["tokenizer_fingerprint"],
            unigram_val_loss=meta["unigram_val_loss"],
            entropy_floor=None,
            tokenizer_path=folder / "tokenizer.json",
            texts=tuple(TextPart(**text) for text in meta.get("texts", []) if text["name"]),
        )
    except PermissionError as error:
        raise DataError(
            f"{folder} cannot be read ({access.closed(folder)}): or set LMABLATE_CACHE to a folder of your own"
        ) from error
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data, meta


@contextlib.contextmanager
def build_folder(cache: Path) -> Iterator[Path]:
    """Yield a temporary folder of this process next to the stores; leftovers of killed processes are deleted after a day."""
    stores = cache / "stores"
    folder = stores / f".building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        stores.mkdir(parents=True, exist_ok=True)
        for leftover in stores.glob(".building-*"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(leftover, ignore_errors=True)
        folder.mkdir()
        yield folder
    except OSError as error:
        help_ = "" if error.errno in access.DENIED else "free some space there, or "
        raise DataError(
            f"cannot prepare the data in {cache}: {access.reason(error)}: {help_}name another folder with LMABLATE_CACHE or "
            "runtime.cache_dir"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(built: Path, place: Path) -> None:
    """Move the folder `built` to `place` atomically. If another process was faster, its store, which is equal, stays."""
    for _ in range(10):
        try:
            os.rename(built, place)
            return
        except OSError:
            if open_store(place) is not None:
                return
            # A damaged store blocks the name.
            aside = built.with_name(f"{built.name}-damaged")
            with contextlib.suppress(OSError):
                os.rename(place, aside)
            shutil.rmtree(aside, ignore_errors=True)
    raise DataError(
        f"cannot write {place}: remove what is in its place, or name another cache folder with LMABLATE_CACHE"
    )


def look_up(cache: Path, key: str) -> tuple[str, list[str]] | None:
    """Return the store name of the request `key` and the notices on its text; None if unknown."""
    try:
        entry = json.loads((cache / "index" / f"{key}.json").read_text())
        return entry["store"], entry["notices"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_request(cache: Path, key: str, store: str, notices: list[str]) -> None:
    """Store the name and the notices of a request. The index only saves time, so a read-only cache is not an error."""
    with contextlib.suppress(OSError):
        (cache / "index").mkdir(exist_ok=True)
        atomic_write(cache / "index" / f"{key}.json", json.dumps({"store": store, "notices": notices}))


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
