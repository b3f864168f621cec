"""Reporting the progress of long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives the progress of a long run; the command line displays it."""

    def message(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def start(self, stage: str, total: int, done: int) -> None:
        """A piece of work begins.

        Args:
            stage: its name.
            total: steps in all.
            done: steps that are done already, as in a run that is resumed.
        """
        ...

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        """Some of it is done.

        Args:
            stage: the name given to `start`.
            done: steps that are done by now.
            figures: what was measured, by the names of `metrics.jsonl`.
        """
        ...


class Silent:
    """A `Progress` that says nothing."""

    def message(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def start(self, stage: str, total: int, done: int) -> None: ...

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None: ...


class StepCounter:
    """One piece of work that several parts of the code do in turn: each calls it once for every step done.

    Args:
        progress: where to report.
        stage: the work's name.
        total: steps in all.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._done = progress, stage, 0
        progress.start(stage, total, 0)

    def __call__(self) -> None:
        self._done += 1
        self._progress.advance(self._stage, self._done, {})
