"""Reliable handling of Ctrl-C and SIGTERM: an exception alone can be lost in a callback of a library."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(*, at_once: bool, answer: str = "") -> Iterator[Callable[[], bool]]:
    """Handle SIGINT and SIGTERM while the block runs; a second signal acts as if there were no handler.

    Args:
        at_once: also raise KeyboardInterrupt at once; otherwise the block itself decides when to stop.
        answer: printed on stderr as soon as the user asks to stop.

    Yields:
        A function that says whether the user has asked to stop.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop_requested.is_set
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop_requested.set()
        put_back()
        if answer:
            with contextlib.suppress(OSError):
                os.write(2, f"\n{answer}\n".encode())  # not through a stream, which may be in use
        if at_once:
            raise KeyboardInterrupt

    for number in NUMBERS:
        signal.signal(number, handle)
    try:
        yield stop_requested.is_set
    finally:
        put_back()
