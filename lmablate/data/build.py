"""From settings to tokens: read, split, tokenise and store once; later only open."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmablate import __version__
from lmablate.core.console import progress
from lmablate.core.errors import DataError
from lmablate.core.paths import cache_dir
from lmablate.data.documents import CUT_REACH, Corpus, collect
from lmablate.data.shuffled import shuffled
from lmablate.data.sources import Source, open_source
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.data.store import FORMAT, build_folder, look_up, open_store, publish, store_request, write_store
from lmablate.data.tasks.store import open_task
from lmablate.data.tokenizer import ByteTokenizer, Tokenizer, find_pretrained, fingerprint, load_pretrained, train_bpe
from lmablate.data.tokens import TokenData, too_short
from lmablate.schema.data import (
    BpeTokenizer,
    BytesTokenizer,
    DataSettings,
    OneText,
    PretrainedTokenizer,
    TextSettings,
    TokenizerSettings,
)
from lmablate.schema.tasks import Skill

log = logging.getLogger(__name__)
_shown: set[str] = set()


def prepare(
    data: DataSettings, tokenizer: TokenizerSettings | None, *, context_length: int, cache: Path | None = None
) -> TokenData:
    """Return the tokens of `data` under `tokenizer`, from the store below `cache` (default: the user's cache folder) or newly built.

    Any number of processes may call it at once. Raises DataError for text that is missing, unreadable, or shorter than `context_length`
    + 1 tokens. A task has neither text nor tokenizer, and nothing is stored.
    """
    if isinstance(data, Skill):
        return open_task(data, context_length)
    assert tokenizer is not None, "a text without a tokenizer"
    cache = (cache or cache_dir()).expanduser().absolute()
    sources = {name: open_source(part) for name, part in data.parts.items()}
    where = " and ".join(source.where for source in sources.values())
    stamps = [*(source.stamp() for source in sources.values()), _stamp(tokenizer)]
    versions = [FORMAT, __version__, _version(tokenizer)]
    asked = data.model_dump(exclude={"shuffle_tokens"})  # which changes nothing that is stored
    key = _digest([versions, asked, tokenizer.model_dump(), [stamp.content for stamp in stamps]])
    name, notices = look_up(cache, key) or (None, [])
    opened = open_store(cache / "stores" / name) if name else None
    if opened is None:
        name = _build(data, sources, tokenizer, cache)
        notices = [notice for source in sources.values() for notice in source.notices()]
        opened = open_store(cache / "stores" / name)
        if opened is None:
            raise DataError(
                f"the token store {cache / 'stores' / name} vanished while it was opened: run the command again"
            )
        if all(stamp.settled for stamp in stamps):
            store_request(cache, key, name, notices)
    tokens, meta = opened
    _warn_once([*notices, *_of_texts(data, sources, meta), *_of_tokenizer(tokenizer, meta)])
    if len(tokens.train) <= context_length:
        raise DataError(f"{where}: {too_short(len(tokens.train), context_length)}")
    if any(part.shuffle_tokens for part in data.parts.values()):
        return shuffled(tokens)
    if isinstance(tokenizer, BytesTokenizer) and not tokens.texts:
        return dataclasses.replace(tokens, entropy_floor=next(iter(sources.values())).entropy_floor)
    return tokens


def _build(data: TextSettings, sources: Mapping[str, Source], settings: TokenizerSettings, cache: Path) -> str:
    """Build the store unless one with this content exists; return its name."""
    with build_folder(cache) as folder:
        corpora = {name: _read(data.parts[name], source, folder / f"text {name}") for name, source in sources.items()}
        content = _content(corpora)
        given = None if isinstance(settings, BpeTokenizer) else _given(settings)
        about = fingerprint(given) if given else [settings.model_dump(), _version(settings)]
        name = _digest([FORMAT, content, about])[:32]
        place = cache / "stores" / name
        if open_store(place) is None:
            log.info("tokenising with tokenizer=%s", settings.kind)
            write_store(folder, corpora, content, given or _train(corpora, settings))
            for corpus in corpora.values():
                corpus.spool.unlink()
            publish(folder, place)
    return name


def _read(data: OneText, source: Source, spool: Path) -> Corpus:
    log.info("reading %s", source.where)
    return collect(
        progress(source.documents(), "documents read"),
        spool,
        where=source.where,
        val_fraction=data.val_fraction,
        val_bytes=data.val_bytes,
        train_bytes=data.train_bytes,
        held_out=source.held_out,
    )


def _content(corpora: Mapping[str, Corpus]) -> str:
    """The fingerprint of the texts; that of a single one is its own."""
    if list(corpora) == [""]:
        return corpora[""].fingerprint
    return _digest([[name, corpus.fingerprint] for name, corpus in corpora.items()])


def _given(settings: TokenizerSettings) -> Tokenizer:
    return load_pretrained(settings) if isinstance(settings, PretrainedTokenizer) else ByteTokenizer()


def _train(corpora: Mapping[str, Corpus], settings: TokenizerSettings) -> Tokenizer:
    assert isinstance(settings, BpeTokenizer)
    every = itertools.chain.from_iterable(corpus.batches(corpus.whole) for corpus in corpora.values())
    chunks = progress(every, "batches of 4 MB read to train the tokenizer")
    batches = ([text.decode() for text, _ in batch] for batch in chunks)
    return train_bpe(batches, settings.vocab_size)


def _stamp(settings: TokenizerSettings) -> Stamp:
    if isinstance(settings, PretrainedTokenizer):
        return stamp_files([find_pretrained(settings)])
    return Stamp(None, settled=True)


def _version(settings: TokenizerSettings) -> str | None:
    """The release of the trainer, since another one may merge differently."""
    return importlib.metadata.version("tokenizers") if isinstance(settings, BpeTokenizer) else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _of_texts(data: TextSettings, sources: Mapping[str, Source], meta: dict[str, Any]) -> list[str]:
    """A notice for each validation text shorter than requested. A cut text ends at white space, a little earlier."""
    notices = []
    for text in meta.get("texts") or [{"name": "", **meta}]:  # older stores hold one text
        settings, found = data.parts[text["name"]], text["val_bytes"]
        of = f"data.texts.{text['name']}" if text["name"] else "data"
        if found < settings.val_bytes - CUT_REACH:
            notices.append(
                f"{sources[text['name']].where}: {of}.val_bytes={settings.val_bytes} is not reached: the validation text has {found} "
                f"bytes, all that {of}.val_fraction={settings.val_fraction} holds out; a larger fraction, or more text, gives more"
            )
    return notices


def _of_tokenizer(settings: TokenizerSettings, meta: dict[str, Any]) -> list[str]:
    notices = []
    if isinstance(settings, BpeTokenizer) and meta["vocab_size"] != settings.vocab_size:
        notices.append(
            f"tokenizer.vocab_size={settings.vocab_size} was not reached: the training text has no more pairs that occur twice, "
            f"so the tokenizer and the model have {meta['vocab_size']} tokens"
        )
    if not meta["lossless"]:
        notices.append(
            f"{settings.kind} tokenizer: it drops or changes characters of the validation text, so val_bpb cannot be compared "
            "with that of other tokenizers"
        )
    return notices


def _warn_once(notices: list[str]) -> None:
    """Show notices on the text and the tokenizer, once per process."""
    for notice in notices:
        if notice not in _shown:
            _shown.add(notice)
            log.warning(notice)
