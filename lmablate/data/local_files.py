"""The user's files: text, JSONL, Parquet and Arrow, also compressed and in zip archives."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lmablate.core.errors import DataError, first_line
from lmablate.data.arrow import ipc_texts, parquet_texts
from lmablate.data.documents import Document
from lmablate.data.json_rows import json_texts
from lmablate.data.packed import OTHERS, kind_of, parts, plain_name
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.data.tally import Tally
from lmablate.schema.data import FilesData

# Magic bytes of formats, for files whose name lacks the suffix.
_MARKS = {
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"PK\3\4": ".zip",
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
SAVED = ("dataset_dict.json", "state.json")  # save_to_disk of ``datasets``: of several splits, of one


class LocalFiles:
    """Documents from files: one per row of JSON, Parquet or Arrow; any other file is text and one document."""

    entropy_floor = None
    held_out = None

    def __init__(self, settings: FilesData) -> None:
        self.tally = Tally(settings.text_field, skip=bool(settings.skip_bad_lines))
        self.where = f"data.paths={', '.join(settings.patterns)}"
        self.paths = _matching(settings.patterns)

    def stamp(self) -> Stamp:
        return stamp_files(self.paths)

    def documents(self) -> Iterator[Document]:
        """Yield the documents. Raises DataError with the file that cannot be read, and the line if there are lines."""
        return file_texts(self.paths, self.tally)

    def notices(self) -> list[str]:
        return [f"{self.where}: {notice}" for notice in self.tally.notices()]


def file_texts(paths: Iterable[Path], tally: Tally) -> Iterator[Document]:
    """Yield the documents of files of any supported format; only a text file is read into memory whole."""
    for path in paths:
        with _as_data_error(str(path)), path.open("rb", buffering=1 << 20) as file:
            yield from open_texts(file, str(path), path.stat().st_size, tally)


def open_texts(file: BinaryIO, where: str, size: int, tally: Tally) -> Iterator[Document]:
    """Yield the documents of one open file of `size` bytes; the suffix of its name, `where`, sets the format."""
    for part in parts(file, where, size):
        tally.begin(part.where)
        yield from _READERS[part.kind](part.file, tally)
        tally.end()


@contextlib.contextmanager
def _as_data_error(where: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the format readers may raise anything
        raise DataError(f"{where}: cannot be read: {first_line(error)}") from error


def _whole_text(file: BinaryIO, tally: Tally) -> Iterator[bytes]:
    """The content of a text file, with newlines normalised and without byte order mark, like Python's text files."""
    raw = file.read()
    for mark, suffix in _MARKS.items():
        if raw.startswith(mark):
            raise DataError(f"{tally.where} is a {suffix} file by its content: let its name end with {suffix}")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        wide = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
        raise DataError(
            f"{tally.where} is not UTF-8 text (near byte {error.start}): convert it, e.g. with "
            f"iconv -f {wide} -t utf-8, or leave it out of data.paths"
        ) from error
    if b"\0" in raw:
        raise DataError(f"{tally.where} is not text: it has zero bytes; leave it out of data.paths")
    if _is_json_lines(raw, tally.field):
        raise DataError(
            f"{tally.where} holds JSON with the field {tally.field}, and its syntax would be trained on: let its name end with .jsonl"
        )
    yield raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_json_lines(raw: bytes, field: str) -> bool:
    """Return True if the first line is an object with this field."""
    if not raw.startswith(b"{"):
        return False
    try:
        row = json.loads(raw.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    return field in row


_READERS: dict[str, Callable[[BinaryIO, Tally], Iterator[Document]]] = {
    "json": json_texts,
    "parquet": parquet_texts,
    "arrow": ipc_texts,
    "text": _whole_text,
}


def _matching(patterns: list[str]) -> list[Path]:
    """The files that match `patterns`, each once, sorted by name; folders are ignored."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True)]
        files = [path for path in matches if path.is_file()]
        if not files and (folder := next((path for path in matches if path.is_dir()), None)):
            raise DataError(f"data.paths={pattern} is a folder: {_instead(pattern.rstrip('/'), folder)}")
        if not files:
            raise DataError(f"data.paths={pattern} matches no file (looked from {Path.cwd()})")
        found.update({os.path.abspath(path): path for path in files})
    paths = [found[name] for name in sorted(found)]
    for path in paths:
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} cannot be read: permission denied; change its mode or leave it out of data.paths")
    return paths


def _instead(pattern: str, folder: Path) -> str:
    """How to name the content of `folder`: as a saved dataset, or by the glob that fits most files, data formats first."""
    if any((folder / name).is_file() for name in SAVED):
        return f"save_to_disk wrote it, so read it with data=hub data.name='{pattern}'"
    endings: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for path in itertools.islice(folder.rglob("*"), 10_000):
            plain = Path(plain_name(path.name))
            ending = path.name[len(plain.stem) :]
            if ending and plain.suffix.lower() not in OTHERS and path.is_file():
                endings["*" + ending if path.parent == folder else "**/*" + ending] += 1
    best = max(endings, key=lambda one: (kind_of(f"x{one}") != "text", endings[one]), default="*.txt")
    return f"say which files, e.g. data.paths='{pattern}/{best}'"
