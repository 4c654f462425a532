"""Files of the user's: text, JSONL and Parquet, read through Hugging Face ``datasets`` without its cache."""

from __future__ import annotations

import codecs
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lmablate.data.arrow import first_line, quiet_datasets, texts
from lmablate.data.settings import FilesData
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.errors import DataError

_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet"}
_NUL = re.compile(rb"\0")


class LocalFiles:
    """A file of JSON lines (or one JSON list) or Parquet has a document a row, any other file is text and one document."""

    entropy_floor = None

    def __init__(self, settings: FilesData) -> None:
        self.field = settings.text_field
        self.where = f"data.paths={', '.join(settings.patterns)}"
        self.paths = _matching(settings.patterns)

    def stamp(self) -> Stamp:
        return stamp_files(self.paths)

    def documents(self) -> Iterator[memoryview]:
        """Raises DataError naming the file that cannot be read."""
        plain = [path for path in self.paths if _builder(path) == "text"]
        if plain:
            yield from self._text_files(plain)
        for path in self.paths:
            if _builder(path) != "text":
                yield from self._rows(path, _builder(path))

    def _text_files(self, paths: list[Path]) -> Iterator[memoryview]:
        """Each file whole; utf-8-sig drops the byte order mark that some editors write."""
        # One table a file, so one file is in memory at a time.
        options = {"sample_by": "document", "encoding": "utf-8-sig"}
        for number, document in enumerate(_load("text", paths, self.where, batch_size=1, column="text", **options)):
            if _NUL.search(document):
                raise DataError(f"{paths[number]} is not text: it has zero bytes; leave it out of data.paths")
            yield document

    def _rows(self, path: Path, builder: str) -> Iterator[memoryview]:
        options = {}
        if builder == "parquet":
            columns, rows = _parquet_shape(path)
            if rows == 0:  # the reader of `datasets` fails on it
                return
            options = {"columns": [self.field]} if self.field in columns else {}
        yield from _load(builder, [path], str(path), batch_size=256, column=self.field, **options)


def _load(
    builder: str, paths: list[Path], where: str, *, batch_size: int, column: str, **options: object
) -> Iterator[memoryview]:
    """Streamed, so that nothing is copied to the cache of ``datasets`` and memory holds a batch."""
    import datasets

    names = [glob.escape(str(path.absolute())) for path in paths]
    try:
        with quiet_datasets():
            rows = datasets.load_dataset(builder, data_files=names, split="train", streaming=True, **options)
            for table in rows.with_format("arrow").iter(batch_size=batch_size):
                yield from texts(table, column, where)
    except DataError:
        raise
    except StopIteration:  # an empty file
        return
    except Exception as error:  # whatever the readers of the formats raise
        for path in paths:
            _check_utf8(path)
        raise DataError(f"{where}: cannot be read: {first_line(error)}") from error


def _builder(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _BUILDERS.get(suffixes[-1], "text") if suffixes else "text"


def _matching(patterns: list[str]) -> list[Path]:
    """The files that `patterns` match, each once, in order of name; folders are passed over."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True)]
        files = [path for path in matches if path.is_file()]
        if not files and any(path.is_dir() for path in matches):
            raise DataError(
                f"data.paths={pattern} is a folder: say which files, e.g. data.paths='{pattern.rstrip('/')}/*.txt'"
            )
        if not files:
            raise DataError(f"data.paths={pattern} matches no file (looked from {Path.cwd()})")
        found.update({os.path.abspath(path): path for path in files})
    paths = [found[name] for name in sorted(found)]
    for path in paths:
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} cannot be read: permission denied; change its mode or leave it out of data.paths")
    return paths


def _parquet_shape(path: Path) -> tuple[list[str], int | None]:
    """Names of the columns and number of rows, or nothing if it cannot be read: the reader that follows says why."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow.names, file.metadata.num_rows
    except Exception:
        return [], None


def _check_utf8(path: Path) -> None:
    """Raise DataError if `path` is an uncompressed file of text that is not UTF-8, saying where."""
    if path.suffix.lower() in _COMPRESSED or _builder(path) == "parquet":
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
                done += len(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text (near byte {done + error.start}): convert it, e.g. with "
                "iconv -f latin1 -t utf-8, or leave it out of data.paths"
            ) from error
