"""Files that are either whole or absent."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_JSON = 64 << 20  # bytes of a file that holds one value
MOST_LINES = 4 << 30  # of a file with one a line
DEEPEST = 100  # lists and objects within each other
_made: list[Path] = []  # folders of the present command, the inner ones after the outer ones


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents for the output of a command; where that is refused, those still empty go again.

    Raises OSError.
    """
    new = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(new))


def settle_folders(*, refused: bool) -> None:
    """Remove the folders that a refused command made and left empty; keep those of others."""
    while _made:
        folder = _made.pop()
        if refused:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def atomic_write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write `data` aside in the same folder, flush it to disk and rename it to `path`: no reader sees half a file.

    `durable=False` leaves the flush to the operating system, for what may be lost in a power cut.
    """
    write_together({path: data}, durable=durable)


def write_together(files: Mapping[Path, bytes | str], *, durable: bool = True) -> None:
    """The same for files that belong together: on a full disk none of them is written."""
    aside: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            handle, temporary = _aside(path)
            aside[path] = Path(temporary)
            _fill(handle, data.encode() if isinstance(data, str) else data, path, durable)
            os.chmod(temporary, 0o666 & ~_umask())
        for path, temporary_path in aside.items():
            os.replace(temporary_path, path)
    except BaseException:
        for temporary_path in aside.values():
            with suppress(
                OSError
            ):  # the folder may have gone, or become read-only: the first reason is the one to tell
                temporary_path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files} if durable else ():
        _sync_folder(folder)


def _aside(path: Path) -> tuple[int, str]:
    """Open a new file beside `path`; an OSError names `path`, the file that it is for."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        error.filename = str(path)
        raise


def _fill(handle: int, raw: bytes, path: Path, durable: bool) -> None:
    """Write `raw` to an open file and flush it to disk if `durable`; an OSError names `path`, the file that it is for."""
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:  # of a write, which knows no name
            error.filename = str(path)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file that nobody else writes: all of it, or on an error (a full disk) nothing.

    A torn last line that a killed writer left is closed first, so that it spoils no other.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        left = memoryview(b"\n" * torn + line + b"\n")
        try:
            while left:  # the last block of a disk takes a part of a line, and says no to the rest
                if not (written := os.write(fd, left)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                left = left[written:]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(fd, size)
            error.filename = str(path)
            raise
    finally:
        os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left aside in a folder in which nobody else writes now."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Have a new name outlive a power cut too, where the file system can."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _umask() -> int:
    """mkstemp makes files private; a shared results folder wants the user's usual mode."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file of `most` bytes at most; raises OSError for a larger one, which nobody here has written."""
    if (size := path.stat().st_size) > most:
        raise OSError(errno.EFBIG, f"{size:,} bytes, and {most:,} at most are read", str(path))
    return path.read_bytes()


def file_stem(name: str) -> str:
    """`name` as that of a file; where it has other signs or is long, a hash tells it from others that would look the same."""
    stem = re.sub(r"[^\w-]", "_", name)
    return stem if stem == name and len(stem) <= 80 else f"{stem[:80]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The value of a JSON file. Raises OSError and ValueError, whatever stands there."""
    return parsed(read_bounded(path, most))


def parsed(raw: bytes) -> Any:
    """JSON; raises ValueError, also for a value nested so deeply that whoever walks through it would fail."""
    try:
        value = json.loads(raw)
        if raw.count(b"[") + raw.count(b"{") <= DEEPEST or not _deeper(value, DEEPEST):
            return value
    except RecursionError:
        pass
    raise ValueError(f"more than {DEEPEST} lists and objects within each other")


def _deeper(value: Any, than: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return than < 0 or any(_deeper(item, than - 1) for item in inner if isinstance(item, dict | list))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    A last line that was torn by a kill is dropped; damage anywhere else raises ValueError naming the file and line.
    """
    lines = read_bounded(path, MOST_LINES).split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parsed(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was killed inside this line
                break
            raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
        rows.append(row)
    return rows
