"""Reporting the progress of long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives the progress of a long run; the command line displays it."""

    def message(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def start(self, stage: str, total: int, done: int) -> None: ...

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None: ...


class Silent:
    """A `Progress` that says nothing."""

    def message(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def start(self, stage: str, total: int, done: int) -> None: ...

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None: ...
