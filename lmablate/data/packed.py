"""The user's files, opened: plain, compressed, or members of a zip archive. Nothing is unpacked to disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from lmablate.core.errors import DataError

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
_TEXTS = (
    ".txt",
    ".text",
    ".md",
)  # in an archive, whose members the user did not choose one by one; elsewhere any other name is text
# Refused: their syntax would be trained on, or they are not text.
OTHERS = (".csv", ".tsv", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".lzma", ".br", ".pdf", ".docx", ".epub", ".xlsx")
_FREE_BYTES = 1 << 30  # always allowed; beyond it, unpacked text may be MAX_RATIO as long as the file
MAX_RATIO = 500  # text compresses 3 to 20 times, similar rows 200 times, and a bomb 1,000 times and more
KNOWN = "text, .jsonl, .ndjson, .json, .parquet or .arrow, each also as .gz, .bz2, .xz, .zst or in a .zip"


class Part(NamedTuple):
    """A file being read: its name for messages, one of FORMATS' kinds or "text", and its unpacked bytes."""

    where: str
    kind: str
    file: BinaryIO


def parts(raw: BinaryIO, where: str, size: int) -> Iterator[Part]:
    """Yield the content of the file `where` of `size` bytes: itself, or the members of an archive, one at a time. Raises DataError for
    an unsupported format, and the archive readers' errors for a damaged one."""
    limit = _ByteLimit(where, size)
    if _suffix(where) == ".zip":
        yield from _members(raw, where, limit)
        return
    if (suffix := _suffix(plain_name(where))) in OTHERS:
        table = ", or read its folder with data=hub data.name=FOLDER" if suffix in (".csv", ".tsv") else ""
        raise DataError(
            f"{where}: {suffix} is not a format that is read ({KNOWN}): convert or unpack it, or leave it out{table}"
        )
    yield Part(where, kind_of(where), _unpacked(raw, where, limit))


def kind_of(name: str) -> str:
    """Return the format that the name of a file or a member stands for."""
    return FORMATS.get(_suffix(plain_name(name)), "text")


def plain_name(name: str) -> str:
    """Return `name` without the suffixes of compressed files."""
    while _suffix(name) in _READERS:
        name = name[: -len(_suffix(name))]
    return name


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _members(raw: BinaryIO, where: str, limit: _ByteLimit) -> Iterator[Part]:
    with zipfile.ZipFile(raw) as archive:
        members = [info for info in archive.infolist() if not (info.is_dir() or _is_litter(info.filename))]
        if not members:
            raise DataError(f"{where}: the archive is empty: leave it out of data.paths")
        kinds = [_member_kind(where, info, alone=len(members) == 1) for info in members]  # refuse before reading any
        for info, kind in zip(members, kinds, strict=True):
            with archive.open(info) as packed:
                member = _unpacked(_Bounded.buffered(packed, limit), info.filename, limit)
                yield Part(f"{where}/{info.filename}", kind, member)


def _is_litter(name: str) -> bool:
    """Return True for files that macOS adds to an archive."""
    return name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"


def _member_kind(where: str, info: zipfile.ZipInfo, *, alone: bool) -> str:
    if info.flag_bits & 1:
        raise DataError(f"{where}/{info.filename} is encrypted: unpack it with its password, and name the files in it")
    name = plain_name(info.filename)
    if alone and not _suffix(name):
        name = plain_name(where[: -len(".zip")])  # c.jsonl.zip with a member called c
    suffix = _suffix(name)
    if suffix not in FORMATS and suffix not in _TEXTS:
        raise DataError(
            f"{where}/{info.filename}: {suffix or 'a name without an ending'} is not a format that is read from an archive "
            f"({', '.join((*_TEXTS, *FORMATS))}): unpack it, and name the files to read"
        )
    return kind_of(name)


class _ByteLimit:
    """The number of bytes that may still be unpacked from a file of `size` bytes."""

    def __init__(self, where: str, size: int) -> None:
        self.where, self.size = where, size
        self.left = max(_FREE_BYTES, MAX_RATIO * size)

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise DataError(
                f"{self.where}: {self.size:,} bytes unpack to more than {MAX_RATIO} times as many, which no text does: "
                "unpack it yourself if it is what it should be, or leave it out"
            )


class _Bounded(io.RawIOBase):
    """Unpacked bytes, limited by `limit`."""

    def __init__(self, file: Any, limit: _ByteLimit) -> None:
        self.file, self.limit = file, limit

    @classmethod
    def buffered(cls, file: Any, limit: _ByteLimit) -> BinaryIO:
        return io.BufferedReader(cls(file, limit), 1 << 20)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n: int = self.file.readinto(buffer)
        self.limit.spend(n)
        return n


def _unpacked(raw: BinaryIO, name: str, limit: _ByteLimit) -> BinaryIO:
    """The bytes under the compressions that the suffixes of `name` state."""
    while reader := _READERS.get(suffix := _suffix(name)):
        raw = _Bounded.buffered(reader(raw), limit)
        name = name[: -len(suffix)]
    return raw


def _zstd(raw: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.input_stream(raw, compression="zstd")


_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
