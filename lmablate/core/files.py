"""Write files atomically and read them with limits."""

import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_JSON = 64 << 20  # largest JSON file in bytes
MOST_LINES = 4 << 30  # largest JSONL file in bytes
DEEPEST = 100  # levels of nested lists and objects
_made: list[Path] = []  # folders that the present command made, outer ones first


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents for the output of a command. `settle_folders` removes empty ones of a refused
    command. Raises OSError."""
    new = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(new))


def settle_folders(*, refused: bool) -> None:
    """Remove the folders that a refused command made and left empty."""
    while _made:
        folder = _made.pop()
        if refused:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def atomic_write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write `data` to a temporary file in the same folder, flush it to disk and rename it, so that no reader sees half
    a file. `durable=False` leaves the flush to the operating system, for files that may be lost in a power cut."""
    write_together({path: data}, durable=durable)


def write_together(files: Mapping[Path, bytes | str], *, durable: bool = True) -> None:
    """Write several files atomically: on a full disk none of them is written."""
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
            with suppress(OSError):  # the folder may be gone or read-only: the first error is the one to report
                temporary_path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files} if durable else ():
        _sync_folder(folder)


def _aside(path: Path) -> tuple[int, str]:
    """Open a temporary file next to `path`. An OSError names `path` itself."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        error.filename = str(path)
        raise


def _fill(handle: int, raw: bytes, path: Path, durable: bool) -> None:
    """Write `raw` to an open file, and flush it to disk if `durable`. An OSError names `path` itself."""
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:  # errors of a write carry no name
            error.filename = str(path)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file with no other writer: all of it, or on an error (a full disk) nothing. A torn last line
    of a killed writer is ended first, so that it damages no other line."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        left = memoryview(b"\n" * torn + line + b"\n")
        try:
            while left:  # the last block of a full disk takes only a part of a line
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
    """Remove the temporary files of killed writers from a folder with no other writer now."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that a new name survives a power cut, where the file system supports it."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _umask() -> int:
    """Return the umask. mkstemp makes files private, and a shared results folder needs the usual mode."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes. Raises OSError for a larger one, which cannot be ours."""
    if (size := path.stat().st_size) > most:
        raise OSError(errno.EFBIG, f"{size:,} bytes, and {most:,} at most are read", str(path))
    return path.read_bytes()


def file_stem(name: str) -> str:
    """Return `name` as a file name. If it has other characters or is long, a hash keeps it distinct."""
    stem = re.sub(r"[^\w-]", "_", name)
    return stem if stem == name and len(stem) <= 80 else f"{stem[:80]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def finite(value: Any) -> Any:
    """Return `value` with every non-finite number replaced by None, since JSON cannot write it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return the value of a JSON file. Raises OSError and ValueError, whatever the content."""
    return parsed(read_bounded(path, most))


def parsed(raw: bytes) -> Any:
    """Return the value of JSON text. Raises ValueError, also for nesting so deep that walking it would fail."""
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
    """Read a file with one JSON object a line. A last line that was torn by a kill is dropped; damage anywhere else
    raises ValueError naming the file and line."""
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
            if number == len(lines):  # without a newline: the writer was killed within this line
                break
            raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
        rows.append(row)
    return rows
