"""Ctrl-C and SIGTERM, noticed for certain: an exception alone can be lost in a callback of a library."""

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
    """Yields a function that says whether the user asked to stop; a second signal acts as it would without
    this.

    Args:
        at_once: also raise KeyboardInterrupt where the program is; otherwise the block stops when it is ready
            to.
        answer: said on stderr at once when the user asks to stop.
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
                os.write(2, f"\n{answer}\n".encode())  # nothing that could be busy with a line of its own
        if at_once:
            raise KeyboardInterrupt

    for number in NUMBERS:
        signal.signal(number, handle)
    try:
        yield stop_requested.is_set
    finally:
        put_back()
