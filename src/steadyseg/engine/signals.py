"""Signals that let a long run end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """The number of the signal that asked to stop, or 0."""

    number = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a wish to stop; the second acts as usual. Only in the main thread."""
    stop = Stop()
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        stop.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    if threading.current_thread() is threading.main_thread():
        before.update({number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield stop
    finally:
        restore()
