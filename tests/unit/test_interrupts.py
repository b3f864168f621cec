from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from koffkit.interrupts import interruptible


def test_ctrl_c_is_answered_at_once_and_the_step_goes_on(capfd: Any) -> None:
    with interruptible(at_once=False, answer="stopping after this step") as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert asked()
        assert capfd.readouterr().err == "\nstopping after this step\n"


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Python's own, which a shell that started the tests in the background has switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_now(default_handler: None) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(at_once=False, answer="x"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
