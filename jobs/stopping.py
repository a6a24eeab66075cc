"""Signals: the first asks for a clean stop, the second ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by a signal, read between tasks."""

    reason: str | None = None
    number: int = 0

    def __call__(self) -> str | None:
        """Why the run should stop, or None."""
        return self.reason


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a stop between tasks, for the length of the block."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.reason, request.number = f"stopped by {signal.Signals(number).name}", number

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
