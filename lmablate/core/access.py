"""Files and folders of other users: what may not be entered or read is no crash, and is named with what helps.

``Path.exists`` and its kin raise PermissionError where a folder on the way may not be entered, and ``Path.glob`` leaves such a
folder out without a word. Whoever looks into a results or cache folder, which several people may share, asks here.
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
    """Whether something stands at `path`; None where that may not be known, a folder on the way being closed."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """The entries of a folder whose names fit, in order; none where there is no such folder. Raises PermissionError."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if fnmatch.fnmatchcase(name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def folders(place: Path) -> Iterator[tuple[Path, str]]:
    """The folders in `place` whose names begin with no dot, in order, each with why it may not be entered, or ""."""
    for path in listed(place):
        if not path.name.startswith(".") and path.is_dir():
            yield path, why_closed(path)


def why_closed(folder: Path) -> str:
    """Why a folder that is there may not be entered, or ""."""
    try:
        os.stat(os.path.join(folder, "."))  # Path would drop the dot
    except OSError:
        return closed(folder)
    return ""


def closed(path: Path) -> str:
    """What to say of something that may not be read, or of the folder above it that hides it: whose it is, and the remedy."""
    place, found = _nearest(path)
    return (
        f"permission denied: it belongs to {_owner(found)}, who can open it with chmod -R a+rX {place}, and with umask 022 what is "
        "written later"
    )


def reason(error: OSError) -> str:
    """An OSError in words, with the remedy where permission was denied."""
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
    """`path`, or the nearest place above it that can be asked about."""
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
