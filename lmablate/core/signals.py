"""Stopping when asked to, after the step at hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ORPHAN_SECONDS = 120  # for a run whose parent was killed to reach the end of its step


class StopRequest:
    """Set by SIGTERM and SIGINT; the trainer looks at it after every step."""

    signal: int = 0  # 0: nobody asked


@contextmanager
def asked_to_stop(on_request: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn SIGTERM and the first SIGINT into a request; a second SIGINT stops at once. `on_request` is called with the first.

    A run whose parent is dead, and which nobody can kill any more if it hangs, has ORPHAN_SECONDS: then the kernel ends it.
    """
    request = StopRequest()
    parent = os.getppid()

    def note(number: int, frame: Any) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, request.signal = not request.signal, number
        if first:
            on_request()
        if os.getppid() != parent:
            signal.alarm(ORPHAN_SECONDS)  # SIGALRM, which nothing catches

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: leave the signals to whoever owns them
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
