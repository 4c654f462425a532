"""Stopping when asked to, after the step at hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Set by SIGTERM and SIGINT; the trainer looks at it after every step."""

    signal: int = 0  # 0: nobody asked


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first SIGINT into a request; a second SIGINT stops at once."""
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

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
