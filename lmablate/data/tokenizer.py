"""Tokenizers: raw bytes, byte-level BPE trained on the training text, or a saved one.

All encode text that contains the name of an end token, such as ``<|endoftext|>``, as ordinary text. The end token itself occurs only at
the end of a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lmablate.core.errors import DataError, first_line
from lmablate.core.files import read_bounded
from lmablate.data.hub_client import fetch_tokenizer
from lmablate.schema.data import BYTES_VOCAB, PretrainedTokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 256 << 20  # of a saved tokenizer; the largest published ones have 35 MB
END = "<|endoftext|>"
USUAL_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>", "<|endofdocument|>", "[EOS]", "[SEP]")


class Tokenizer(Protocol):
    """A tokenizer with `vocab_size` ids, of which `eot_id` ends a document."""

    vocab_size: int
    eot_id: int

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Return the ids of each UTF-8 text, without an end token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; an end token appears as its name, and bytes that are not UTF-8 as U+FFFD."""

    def dumps(self) -> str:
        """Return JSON that ``loads`` reads."""


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of all that affects how text becomes ids."""
    content = json.loads(tokenizer.dumps())
    for key in ("version", "padding", "truncation"):
        content.pop(key, None)
    text = json.dumps({"tokenizer": content, "eot_id": tokenizer.eot_id}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ByteTokenizer:
    """Bytes as ids; 256 ends a document."""

    vocab_size = BYTES_VOCAB
    eot_id = BYTES_VOCAB - 1

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        parts = "".join(chr(i) if i < self.eot_id else "\N{REPLACEMENT CHARACTER}" for i in ids)
        documents = parts.split("\N{REPLACEMENT CHARACTER}")
        return END.join(part.encode("latin-1").decode("utf-8", errors="replace") for part in documents)

    def dumps(self) -> str:
        return '{"kind": "bytes"}'


class SubwordTokenizer:
    """A tokenizer of the ``tokenizers`` package; messages call it `name`."""

    def __init__(self, inner: tokenizers.Tokenizer, end_token: str, name: str = "the tokenizer") -> None:
        from tokenizers import AddedToken

        self.name = name

        # A special token, and special tokens are then not recognised in text.
        inner.add_special_tokens([AddedToken(end_token, special=True, normalized=False)])
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self.eot_id: int = inner.get_vocab()[end_token]
        # Ids may have gaps, so the largest one counts.
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        strings = [str(text, "utf-8") for text in texts]
        try:
            encodings = self._inner.encode_batch_fast(strings, add_special_tokens=False)
        except Exception as error:  # the package raises bare Exception
            raise DataError(self._cannot_write(strings, first_line(error))) from error
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _cannot_write(self, strings: list[str], why: str) -> str:
        """A message with the character or word that has no token."""
        characters = sorted({character for string in strings for character in string})
        words = sorted({word for string in strings for word in string.split()})
        for part in (*characters, *words):
            try:
                self._inner.encode(part, add_special_tokens=False)
            except Exception:
                return (
                    f"{self.name} has no token for {part!r}, which the text holds, and none for what is unknown ({why}): "
                    "save it with an unknown token, or use tokenizer=bpe or tokenizer=bytes"
                )
        return f"{self.name} cannot write the text ({why}): use another, or tokenizer=bpe or tokenizer=bytes"

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def dumps(self) -> str:
        return self._inner.to_str()


def train_bpe(texts: Iterable[list[str]], vocab_size: int) -> SubwordTokenizer:
    """Train byte-level BPE on batches of texts (Sennrich et al. 2016; bytes and word pattern of GPT-2, Radford et al. 2019).

    Every byte is a token, so any text can be encoded. A pair is merged only if it occurs twice, so small texts give fewer tokens than
    `vocab_size`. The same texts give the same tokenizer, in any order and with any number of threads.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return SubwordTokenizer(inner, END)


def loads(text: str, eot_id: int) -> Tokenizer:
    """Return the tokenizer whose ``dumps`` wrote `text`."""
    if text == ByteTokenizer().dumps():
        return ByteTokenizer()
    from tokenizers import Tokenizer as Inner

    inner = Inner.from_str(text)
    end_token = inner.id_to_token(eot_id)
    assert end_token is not None, f"a stored tokenizer without token {eot_id}"
    return SubwordTokenizer(inner, end_token)


def load_pretrained(settings: PretrainedTokenizer) -> SubwordTokenizer:
    """Return the tokenizer of `settings`. Raises DataError if it is unavailable or has no end token."""
    from tokenizers import Tokenizer as Inner

    path = find_pretrained(settings)
    try:
        inner = Inner.from_str(read_bounded(path, MAX_BYTES).decode("utf-8"))
    except OSError as error:
        raise DataError(f"tokenizer.path={settings.path}: cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the package raises bare Exception
        raise DataError(
            f"tokenizer.path={settings.path}: {path} is not a saved tokenizer ({error}); "
            "a tokenizer.json is what Tokenizer.save() of the tokenizers package writes"
        ) from error
    return SubwordTokenizer(inner, _end_token(inner, settings), f"tokenizer.path={settings.path}")


def _end_token(inner: tokenizers.Tokenizer, settings: PretrainedTokenizer) -> str:
    special = [token.content for token in inner.get_added_tokens_decoder().values() if token.special]
    has = f"its special tokens are {', '.join(special)}" if special else "it has no special tokens"
    if settings.end_token is not None:
        if inner.token_to_id(settings.end_token) is None:
            raise DataError(f"tokenizer.end_token={settings.end_token} is not a token of {settings.path}; {has}")
        return settings.end_token
    for token in USUAL_ENDS:
        if inner.token_to_id(token) is not None:
            return token
    raise DataError(
        f"tokenizer.path={settings.path}: no token is known to end a document ({has}): name one with tokenizer.end_token='...'"
    )


def find_pretrained(settings: PretrainedTokenizer) -> Path:
    """Return the path of the tokenizer.json, fetched from the Hub if needed. Raises DataError, within 10 s without a network."""
    assert settings.path is not None
    path = Path(settings.path).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return path
    if settings.path.endswith(".json") or settings.path.count("/") > 1 or settings.path.startswith(("/", ".", "~")):
        raise DataError(f"tokenizer.path={settings.path}: there is no file {path}")

    return fetch_tokenizer(settings.path, settings.revision)
