"""Stop on a signal, after the current step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ORPHAN_SECONDS = 120  # for a run to finish its step after its parent was killed


class StopRequest:
    """The flag that SIGTERM and SIGINT set; the trainer checks it after every step."""

    signal: int = 0  # 0: no request


@contextmanager
def request_stop_on_signal(on_request: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Turn SIGTERM and the first SIGINT into a request in this context; a second SIGINT stops at once. `on_request` is
    called with the first signal. A run whose parent is dead, so that nothing would kill it if it hangs, is ended by the
    kernel after ORPHAN_SECONDS."""
    request = StopRequest()
    parent = os.getppid()

    def handle(number: int, frame: Any) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, request.signal = not request.signal, number
        if first:
            on_request()
        if os.getppid() != parent:
            signal.alarm(ORPHAN_SECONDS)  # nothing catches SIGALRM

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may set handlers
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
