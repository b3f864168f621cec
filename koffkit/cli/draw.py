"""Output on a terminal: consoles that text from a file cannot manipulate, and progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ..report.duration import duration
from .heartbeat import begin, heartbeat
from .text import visible
from .verbosity import verbosity

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 1000
SMOOTHING = 0.9
"""Weight of the previous value in the smoothed figure."""


def stderr() -> Console:
    """The console for progress and messages."""
    return _safe_console()(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """The console for results. Without a terminal, tables are as wide as they need to be."""
    console = _safe_console()(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


@cache
def _safe_console() -> type[Console]:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class SafeConsole(Console):
        """Prints text from files so that its control characters have no effect."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

    return SafeConsole


class RichProgress:
    """A `Progress` on stderr: a bar on a terminal, otherwise a line now and then."""

    LINE_EVERY = 5.0

    def __init__(self) -> None:
        self._console = stderr()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._totals: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._smooth: dict[str, float] = {}
        self._heldout: float | None = None
        self._began = 0.0, 0
        self._said = 0.0
        self._verbosity = verbosity()

    @contextmanager
    def live(self) -> Iterator[RichProgress]:
        """Show the bar while the block runs."""
        if not self._console.is_terminal or self._verbosity.quiet:
            yield self
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self._console) as self._bar:
            if beating := heartbeat():
                beating.resting = lambda: self._bar is not None and not self._bar.finished
            yield self
        self._bar = None

    def keep_alive(self) -> None:
        """From now on, say now and then what the command is still at if it prints nothing else."""
        if not self._verbosity.quiet:
            begin(self._print)

    def message(self, text: str) -> None:
        self._verbosity.log(text)
        if not self._verbosity.quiet:
            self._print(text)
        self._note(text, printed=True)

    def warn(self, text: str) -> None:
        if self._verbosity.mute:
            return
        self._verbosity.log(f"warning: {text}")
        self._console.print(f"warning: {text}", style="yellow", markup=False)
        if beating := heartbeat():
            beating.printed()

    def _print(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _note(self, what: str, *, printed: bool) -> None:
        if beating := heartbeat():
            beating.at(what)
            if printed:
                beating.printed()

    def expect(self, steps: Mapping[str, int]) -> None:
        """Set the number of steps of every stage of the run, for the remaining time."""
        self._left = dict(steps)

    def start(self, stage: str, total: int, done: int) -> None:
        self._totals[stage] = total
        self._smooth.clear()
        self._heldout = None
        self._began = time.monotonic(), done
        self._note(f"{stage} {done}/{total}", printed=False)
        for earlier in list(self._left):  # stages come in the order of the recipe
            if stage not in self._left or earlier == stage:
                break
            del self._left[earlier]
        if self._bar is not None:
            self._tasks[stage] = self._bar.add_task(visible(stage), total=total, completed=done, figures="")

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        total = self._totals[stage]
        shown = "  ".join([*self._shown(figures), *self._eta(stage, done)])
        line = f"{stage}: {done}/{total}  {shown}"
        if self._bar is not None:
            self._bar.update(self._tasks[stage], completed=done, figures=shown)
        if time.monotonic() - self._said > self.LINE_EVERY or (figures and done == total):
            self._said = time.monotonic()
            if self._bar is None:
                self.message(line)
            else:
                self._verbosity.log(line)
        self._note(f"{stage} {done}/{total}", printed=False)

    def _shown(self, figures: Mapping[str, Any]) -> Iterator[str]:
        """The smoothed KL, the expected sparsity with its target, and the speed."""
        if "kl" in figures:
            before = self._smooth.get("kl", figures["kl"])
            self._smooth["kl"] = SMOOTHING * before + (1 - SMOOTHING) * figures["kl"]
            yield f"kl {self._smooth['kl']:.4f}"
        if "heldout_kl" in figures:
            self._heldout = figures["heldout_kl"]
        if self._heldout is not None:
            yield f"held-out kl {self._heldout:.4f}"
        if "expected_sparsity" in figures:
            target = f" of {figures['sparsity']:.1%}" if "sparsity" in figures else ""
            yield f"sparsity {figures['expected_sparsity']:.1%}{target}"
        if "tokens_per_second" in figures:
            yield f"{figures['tokens_per_second']:,.0f} tokens/s"

    def _eta(self, stage: str, done: int) -> Iterator[str]:
        """The remaining time of this stage and those after it at the current speed."""
        began, first = self._began
        if stage not in self._left or done <= first:
            return
        others = sum(steps for name, steps in self._left.items() if name != stage)
        seconds = (time.monotonic() - began) / (done - first) * (self._totals[stage] - done + others)
        if seconds >= 1:
            yield f"about {duration(seconds)} left"
