from __future__ import annotations

from typing import Any

import click
import pytest

from koffkit.cli.draw import RichProgress
from koffkit.cli.heartbeat import Heartbeat, begin, heartbeat, rest

from .conftest import Clock
from .test_draw import lines


@pytest.fixture
def spoken(clock: Clock) -> tuple[Heartbeat, list[str]]:
    said: list[str] = []
    return Heartbeat(said.append), said


def pass_time(beating: Heartbeat, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        beating.beat()


def test_it_speaks_up_in_silence_and_ever_less_often(
    spoken: tuple[Heartbeat, list[str]],
    clock: Clock,
) -> None:
    beating, said = spoken
    beating.at("loading torch")
    pass_time(beating, clock, 100)
    after = ("5 s", "15 s", "35 s", "1 min 5 s", "1 min 35 s")
    assert said == [f"still loading torch ({time})" for time in after]


def test_it_is_silent_while_others_speak_or_a_bar_moves(
    spoken: tuple[Heartbeat, list[str]],
    clock: Clock,
) -> None:
    beating, said = spoken
    for _ in range(20):
        pass_time(beating, clock, 4)
        beating.printed()
    beating.resting = lambda: True
    pass_time(beating, clock, 100)
    assert said == []


def test_a_command_tells_it_what_it_is_at(clock: Clock, capsys: Any) -> None:
    with click.Context(click.Command("x")):
        progress = RichProgress()
        progress.keep_alive()
        beating = heartbeat()
        assert beating is not None
        beating.stop()  # the test looks at the clock itself
        progress.message("loading the model")
        pass_time(beating, clock, 6)
        progress.start("parity", 4, 0)
        progress.advance("parity", 1, {})
        progress.advance("parity", 2, {})
        pass_time(beating, clock, 6)
    assert lines(capsys) == [
        "loading the model",
        "still loading the model (5 s)",
        "parity: 1/4",
        "still parity 2/4 (5 s)",
    ]


def test_it_ends_with_its_command() -> None:
    said: list[str] = []
    with click.Context(click.Command("x")):
        begin(said.append)
        beating = heartbeat()
        assert beating is not None
        assert not beating._over.is_set()
    assert beating._over.is_set()
    assert heartbeat() is None


def test_a_command_that_waits_for_others_is_silent(clock: Clock, capsys: Any) -> None:
    @click.command()
    def wait() -> None:
        RichProgress().keep_alive()
        beating = heartbeat()
        assert beating is not None and not beating._over.is_set()
        rest()
        assert beating._over.is_set()

    wait.main([], standalone_mode=False)


def test_outside_of_a_command_there_is_none() -> None:
    begin(print)
    assert heartbeat() is None
