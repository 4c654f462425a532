"""Look at files and folders that several users share, and explain denied access with its remedy.

``Path.exists`` and similar methods raise PermissionError below a folder that may not be entered, and ``Path.glob``
silently skips such a folder. All code that looks into a results or cache folder uses these functions instead.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path

DENIED = (errno.EACCES, errno.EPERM)


def there(path: Path) -> bool | None:
    """Return whether `path` exists; None if a closed folder above it hides that."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the matching entries of a folder in order; empty without such a folder. Raises PermissionError."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if fnmatch.fnmatchcase(name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def folders(place: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders in `place` in order, without hidden ones, each with why it may not be entered, or ""."""
    for path in listed(place):
        if not path.name.startswith(".") and path.is_dir():
            yield path, why_closed(path)


def why_closed(folder: Path) -> str:
    """Return why an existing folder may not be entered, or ""."""
    try:
        os.stat(os.path.join(folder, "."))  # Path would drop the dot
    except OSError:
        return closed(folder)
    return ""


def closed(path: Path) -> str:
    """Return the message for a path that may not be read, or is hidden by a folder above it: its owner, and the remedy."""
    try:
        os.stat(path)
    except PermissionError:
        pass
    except OSError as error:  # such as a link to itself
        return reason(error)
    place, found = _nearest(path)
    return (
        f"permission denied: it belongs to {_owner(found)}, who can open it with chmod -R a+rX {place}, and with umask 022 what is "
        "written later"
    )


def reason(error: OSError) -> str:
    """Return the message of an OSError, with the remedy if permission was denied."""
    if error.errno not in DENIED or not error.filename:
        return error.strerror or str(error)
    path = Path(os.fsdecode(error.filename))
    place, found = _nearest(path)
    if not _readable(path if there(path) else path.parent):
        return closed(path)
    if not place.is_dir():
        place, found = _nearest(place.parent)
    return (
        f"permission denied: {place} belongs to {_owner(found)}, who can share it with a common group, chmod -R g+rwX {place} and "
        "umask 002"
    )


def _nearest(path: Path) -> tuple[Path, os.stat_result]:
    """Return `path`, or the nearest folder above it that can be examined."""
    for place in (path, *path.parents):
        try:
            return place, os.stat(place)
        except OSError:
            continue
    return path.absolute().parent, os.stat(os.sep)  # the current folder was removed


def _readable(path: Path) -> bool:
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            path.open("rb").close()
    except OSError:
        return False
    return True


def _owner(found: os.stat_result) -> str:
    import pwd

    try:
        name = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        name = f"user {found.st_uid}"
    return f"{name} (mode {stat.S_IMODE(found.st_mode):03o})"
