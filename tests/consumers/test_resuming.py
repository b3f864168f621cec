"""The table of consumers goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import __main__ as command
from . import table
from .asking import Case
from .table import Row

Asked = list[tuple[str, str]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What consumers were asked; they answer at once. The second case fails for the consumer `two`."""
    done: Asked = []

    def run(name: str, case: Case, _: Any) -> list[Row]:
        done.append((name, case.name))
        return [Row(case=case.name, equal=1, tokens=1, failed=(name, case.name) == ("two", "second"))]

    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(name)
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "run", run)
    return done


def never(_: Path) -> Any:
    raise AssertionError("a case is made that nobody is asked about")


def measure(*, cases: tuple[str, ...] = ("first", "second"), fresh: bool = False) -> None:
    makers: dict[str, Callable[[Path], Any]] = dict.fromkeys(cases, never)
    environments: Any = None
    command.run_all(["one", "two"], makers, environments, fresh)


def test_what_was_measured_is_not_asked_again(asked: Asked, tmp_path: Path) -> None:
    measure(cases=("first",))
    assert asked == [("one", "first"), ("two", "first")]
    asked.clear()
    measure()
    assert asked == [("one", "second"), ("two", "second")]
    assert [row.case for row in table.kept("one", ["second", "first"])] == ["second", "first"]
    asked.clear()
    measure()  # only where there was no answer
    assert asked == [("two", "second")]
    asked.clear()
    (tmp_path / "one.py").write_text("it asks otherwise now")
    measure()
    assert asked == [("one", "first"), ("one", "second"), ("two", "second")]
    asked.clear()
    measure(fresh=True)
    assert len(asked) == 4 and len(table.kept("one")) == 2


def test_an_interruption_loses_nothing(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = command.run

    def interrupted(name: str, case: Case, environments: Any) -> list[Row]:
        if (name, case.name) == ("two", "first"):
            raise KeyboardInterrupt
        found: list[Row] = answer(name, case, environments)
        return found

    monkeypatch.setattr(command, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure()
    monkeypatch.setattr(command, "run", answer)
    measure()
    assert asked == [("one", "first"), ("two", "first"), ("one", "second"), ("two", "second")]
