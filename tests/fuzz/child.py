"""One command in a fork of this process: its streams, its environment and its end as ``python -m`` has them, without the imports."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib
import io
import os
import pty
import runpy
import select
import signal
import struct
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import NamedTuple

from fuzz.breaking import Line, concerns_the_folder, do_damage

# What takes long to import. Not what reads the environment or the working folder as it is imported: matplotlib, wandb.
HEAVY = """
    torch pandas scipy.stats pydantic hydra.main hydra._internal.utils omegaconf rich.console rich.table rich.live
    tokenizers datasets jinja2 lmablate.config.composition lmablate.launcher.jobs lmablate.runs.run
    lmablate.training.trainer lmablate.results.load
    lmablate.launcher.scheduler lmablate.sweeper.plugin lmablate.budget.measured lmablate.runs.evaluate_run
    lmablate.stats.planning lmablate.decoding.generate lmablate.claims.evidence
""".split()
KEPT = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "PYTHONPATH")


class Outcome(NamedTuple):
    """What became of a line; `code` is None where it did not end in time."""

    code: int | None
    output: str
    errors: str
    seconds: float


def prepare() -> None:
    """Import what most commands import."""
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names = [name for name in names if not name.startswith("jemalloc")]  # pyarrow's, which minds forks itself
    if len(names) > 1:
        raise RuntimeError(f"a process that forks has one thread, and this has {', '.join(names)}")


def environment(root: Path, line: Line) -> dict[str, str]:
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    own |= {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "LMABLATE_CACHE": str(root / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    own |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "USER": "me"}
    for name, value in line.environment.items():
        if value is None:
            own.pop(name, None)
        else:
            own[name] = value
    return own


def carry_out(line: Line, root: Path, limit: float) -> Outcome:
    """Run a line in `root`, of which nobody else knows; returns what became of it. It hangs after `limit` seconds of processor time,
    or four times as long by the clock: on a busy machine a line that works gets little of each second."""
    paths = [root / "stdout", root / "stderr"]
    for path in paths:
        path.write_bytes(b"")
    master, slave = pty.openpty() if line.streams == "pty" else (-1, -1)
    if slave >= 0:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, line.columns, 0, 0))
    sys.stdout.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            _streams(line.streams, paths, slave, master)
            code = _as_command(line, root, limit)
        finally:
            os._exit(code)
    shown = b""
    if slave >= 0:
        os.close(slave)
    status: int | None = None
    while (
        status is None
        and time.monotonic() - began < 4 * limit
        and (time.monotonic() - began < limit or _processor_seconds(pid) < limit)
    ):
        if master >= 0 and select.select([master], [], [], 0.01)[0]:
            shown += _read(master)
        elif master < 0:
            time.sleep(0.005)
        ended, got = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(got) if ended else None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.waitpid(pid, 0)
    if master >= 0:
        while select.select([master], [], [], 0)[0] and (more := _read(master)):
            shown += more
        os.close(master)
    output, errors = (path.read_bytes().decode("utf-8", "backslashreplace") for path in paths)
    return Outcome(status, output + shown.decode("utf-8", "backslashreplace"), errors, time.monotonic() - began)


def _processor_seconds(session: int) -> float:
    """Return the processor time of the processes of a session, and of those that they have waited for."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError as error:  # Linux says so where nobody has the other end any more
        if error.errno == errno.EIO:
            time.sleep(0.005)
            return b""
        raise


def _streams(kind: str, paths: list[Path], slave: int, master: int) -> None:
    """Give this process its session and streams."""
    os.setsid()
    if kind == "pty":
        os.close(master)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in (0, 1, 2):
            os.dup2(slave, number)
        if slave > 2:
            os.close(slave)
    else:
        _to(0, os.devnull, os.O_RDONLY)
        for number, path in zip((1, 2), paths, strict=True):
            _to(number, str(path), os.O_WRONLY)
        if kind == "full":
            _to(1, "/dev/full", os.O_WRONLY)
        elif kind == "left":
            reading, writing = os.pipe()
            os.dup2(writing, 1)
            os.close(reading)
            os.close(writing)
        closed = {"closed": (1,), "stderr closed": (2,), "both closed": (1, 2), "no input": (0,)}.get(kind, ())
        for number in closed:
            os.close(number)


def _to(number: int, path: str, flags: int) -> None:
    fd = os.open(path, flags)
    os.dup2(fd, number)
    os.close(fd)


def _as_command(line: Line, root: Path, limit: float) -> int:
    """Become ``python -m MODULE WORDS``; returns the exit code that it would have."""
    os.chdir(root / "work")
    for damage in line.damages:
        if concerns_the_folder(damage):
            do_damage(damage, root / "work")
    own = environment(root, line)
    os.environ.clear()
    os.environ.update(own)
    tempfile.tempdir = None
    encoding, _, errors = own.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, encoding, errors)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for module in [name for name in sys.modules if name.partition(".")[0] == "fuzz"] + [line.module]:
        sys.modules.pop(module, None)
    sys.modules.pop(f"{line.module}.__main__", None)
    try:
        sys.path[0] = os.getcwd()
    except OSError:
        sys.path[0] = ""
    importlib.invalidate_caches()
    sys.argv = [line.module, *line.words]
    sys.excepthook = sys.__excepthook__
    return _ended(_code(line.module))


def _stream(number: int, encoding: str, errors: str) -> io.TextIOWrapper | None:
    try:
        os.fstat(number)
    except OSError:
        return None
    raw = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
    handler = errors or ("backslashreplace" if number == 2 else "strict")
    return io.TextIOWrapper(raw, encoding=encoding, errors=handler, line_buffering=number == 2 or os.isatty(number))


def _code(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _ended(code: int) -> int:
    """What the interpreter does at its end, and says where the last words cannot be written."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                os.write(2, f"Exception ignored on flushing sys.{name}: {error}\n".encode())
            code = 120
    return code & 0xFF
