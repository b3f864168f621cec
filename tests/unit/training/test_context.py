from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from koffkit.errors import Interrupted
from koffkit.training.context import watched


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def advance(self, *arguments: Any) -> None:
        self.calls.append(arguments)


def test_watched_work_says_how_far_it_is_and_stops_when_asked() -> None:
    heard, asked = Heard(), []
    context: Any = SimpleNamespace(progress=heard, stop=lambda: bool(asked))
    assert list(watched("warm start", [7, 8], context)) == [7, 8]
    assert heard.calls == [("warm start", 2, 0), ("warm start", 1, {}), ("warm start", 2, {})]
    items = watched("warm start", [7, 8], context)
    assert next(items) == 7
    asked.append(True)
    with pytest.raises(Interrupted, match="interrupted in warm start"):
        next(items)
