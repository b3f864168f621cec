from __future__ import annotations

import os
import signal
import time
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


def test_a_second_ctrl_c_stops_now() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(at_once=False, answer="x"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
