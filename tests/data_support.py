"""Settings and small texts for the tests of lmablate.data."""

import random
from pathlib import Path
from typing import Any

import yaml

from lmablate.core.paths import CONF_DIR
from lmablate.data.documents import Corpus, collect
from lmablate.schema.data import (
    BpeTokenizer,
    BytesTokenizer,
    FilesData,
    HubData,
    KjvData,
    PretrainedTokenizer,
    SotuData,
    SyntheticData,
)


def defaults(name: str) -> dict[str, Any]:
    """The values of a file in conf/, e.g. ``data/files``."""
    return yaml.safe_load((CONF_DIR / f"{name}.yaml").read_text())


def files(paths: str | Path | list[str], **changes: Any) -> FilesData:
    return FilesData(
        **{
            **defaults("data/files"),
            "paths": paths if isinstance(paths, list) else str(paths),
            "val_bytes": 1000,
            **changes,
        }
    )


def hub(**changes: Any) -> HubData:
    return HubData(**{**defaults("data/hub"), "val_bytes": 1000, **changes})


def synthetic(**changes: Any) -> SyntheticData:
    small = {"n_documents": 60, "document_length": 50, "val_bytes": 300}
    return SyntheticData(**{**defaults("data/synthetic"), **small, **changes})


def kjv(**changes: Any) -> KjvData:
    return KjvData(**{**defaults("data/kjv"), **changes})


def sotu(**changes: Any) -> SotuData:
    return SotuData(**{**defaults("data/sotu"), **changes})


def bpe(vocab_size: int = 300) -> BpeTokenizer:
    return BpeTokenizer(kind="bpe", vocab_size=vocab_size)


def byte_level() -> BytesTokenizer:
    return BytesTokenizer(**defaults("tokenizer/bytes"))


def pretrained(path: str | Path, **changes: Any) -> PretrainedTokenizer:
    return PretrainedTokenizer(**{**defaults("tokenizer/pretrained"), "path": str(path), **changes})


_WORDS = "the light of day wasn't long; naïve café über 日本 語 and 42 birds sang twice  twice\n".split(" ")


def texts(count: int, *, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of a few common words, ASCII and not, none equal to another."""
    draw = random.Random(seed)
    return [f"{seed}.{i} " + " ".join(draw.choices(_WORDS, k=words)) for i in range(count)]


def write(folder: Path, documents: list[str], name: str = "{}.txt") -> Path:
    """One text file a document; returns the glob that matches them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(documents):
        (folder / name.format(i)).write_text(text, encoding="utf-8", newline="")
    return folder / name.format("*")


def gather(folder: Path, documents: list[str], *, val_fraction: float = 0.2, val_bytes: int = 500) -> Corpus:
    """`documents` in canonical order, split and cut."""
    encoded = [text.encode() for text in documents]
    folder.mkdir(exist_ok=True)
    return collect(encoded, folder / "spool", where="test", val_fraction=val_fraction, val_bytes=val_bytes)


def stores(cache: Path) -> list[Path]:
    """The finished token stores of a cache."""
    return [path for path in (cache / "stores").iterdir() if not path.name.startswith(".")]
