"""A handful of the points of `make torture`."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from .faults import Faults
from .trial import Report, torture
from .world import World, content, koffkit, litter
from .writers import RACES, Races, _judge, race


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("torture") / "world")


@pytest.mark.parametrize(
    ("name", "points"),
    [("compress", 1), ("export", 1), ("add", 1), ("collect", 12), ("remove", 3), ("compact", 1)],
)
def test_a_fault_anywhere_loses_nothing(world: World, name: str, points: int) -> None:
    report = torture(world, world.commands[name], points, random.Random(name))
    assert report.tried == points
    assert report.operations > 10
    assert report.findings == []


@pytest.mark.parametrize("fault", ["EIO", "SIGKILL"])
def test_a_memory_is_not_compacted_twice(world: World, fault: str) -> None:
    """Broken off between the two memories, and the same command again."""
    command = world.commands["compact"]
    whole = world.copy(world.root / "whole")
    ended, seen = koffkit(command.arguments, whole, Faults(whole))
    assert ended.code == 0
    second = next(at for at, (kind, place) in enumerate(seen) if kind == "mkdir" and ".south." in place)
    broken = world.copy(world.root / "broken")
    ended, _ = koffkit(command.arguments, broken, Faults(broken, second, fault))
    assert ended.code in (5, -9)
    before = (broken / "out/memories/north/memory.json").read_bytes()
    again, _ = koffkit(command.arguments, broken)
    assert again.code == 0
    assert "memory north has been compacted like this already" in again.err
    assert (broken / "out/memories/north/memory.json").read_bytes() == before
    assert content(broken, command.results) == content(whole, command.results)
    assert litter(broken) == []


def test_what_goes_wrong_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a `memory remove` that deletes in place, files of the memory are missing after a kill."""
    import shutil

    from koffkit.memories import manage

    monkeypatch.setattr(manage, "discard", shutil.rmtree)
    report: Report = torture(world, world.commands["remove"], 8, random.Random(0))
    assert report.half_published


@pytest.mark.parametrize("name", RACES)
def test_of_two_writers_one_wins(world: World, name: str) -> None:
    report = race(world, name, 1, random.Random(name))
    assert report.findings == []
    assert report.refused + report.late == 1


@pytest.mark.parametrize(
    ("ended", "finding"),
    [
        (((0, ""), (0, "")), "exit codes"),
        (((0, ""), (1, "Traceback (most recent call last)")), "a traceback"),
        (((0, ""), (2, "Error: something else")), "refused without the process"),
    ],
)
def test_what_two_writers_must_not_do_is_reported(ended: tuple[tuple[int, str], ...], finding: str) -> None:
    report = Races()
    _judge("round", [SimpleNamespace(code=code, err=err) for code, err in ended], report)
    assert finding in report.findings[0]


def test_a_writer_that_is_told_who_is_at_it_is_no_finding() -> None:
    report = Races()
    told = SimpleNamespace(code=2, err="Error: out: process 7 on here is writing it")
    _judge("round", [told, SimpleNamespace(code=0, err="")], report)
    assert report.findings == []
    assert report.refused == 1
