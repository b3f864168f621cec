"""A sign of life: when a command has printed nothing for a while, it says what it is still at."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

import click

from ..report.duration import duration

FIRST, LONGEST = 5.0, 30.0
"""Seconds of silence before the first sign, and the most between two; in between they double."""
LOOK_EVERY = 0.5
_KEY = "koffkit.heartbeat"


class Heartbeat:
    """Speaks when nothing else has.

    Args:
        speak: prints a line.

    Attributes:
        resting: whether something on the terminal moves by itself at the moment.
    """

    def __init__(self, speak: Callable[[str], None]) -> None:
        self._speak = speak
        self.resting: Callable[[], bool] = lambda: False
        self._over = Event()
        self._what = "loading libraries"
        self.printed()

    def at(self, what: str) -> None:
        """Note what the command is at, which is not printed."""
        self._what = what

    def printed(self) -> None:
        """Note that something was printed just now."""
        self._silent_since = time.monotonic()
        self._wait = FIRST
        self._next = self._silent_since + FIRST

    def beat(self) -> None:
        """Speak if it is time to."""
        now = time.monotonic()
        if now < self._next or self.resting():
            return
        self._speak(f"still {self._what} ({duration(now - self._silent_since)})")
        self._wait = min(2 * self._wait, LONGEST)
        self._next = now + self._wait

    def start(self) -> None:
        """Look at the clock on a thread of its own until `stop`."""
        Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Be silent from now on."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            with suppress(OSError, ValueError):  # stderr is closed
                self.beat()


def heartbeat() -> Heartbeat | None:
    """That of the running command, if it has one."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.find_root().meta.get(_KEY)


def rest() -> None:
    """No more signs of life: from now on the command waits for others, as a server does."""
    if beating := heartbeat():
        beating.stop()


def begin(speak: Callable[[str], None]) -> None:
    """Start the heartbeat of the running command, which ends with it; outside of a command nothing happens.

    Args:
        speak: prints a line; it is called on another thread.
    """
    context = click.get_current_context(silent=True)
    if context is None or heartbeat() is not None:
        return
    root = context.find_root()
    root.meta[_KEY] = beating = Heartbeat(speak)
    beating.start()
    root.call_on_close(beating.stop)
