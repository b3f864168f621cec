"""What the user sees: progress and messages on stderr, results on stdout, and with `--json` one JSON object
there."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

_JSON_KEY = "koffkit.json"


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, remembered for the error handler too."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
        if value:
            context.find_root().meta[_JSON_KEY] = True
        return value

    option = click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="One JSON object on stdout."
    )
    return option(command)


def stderr() -> Console:
    """The console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def emit(result: Mapping[str, Any]) -> None:
    """The one JSON object."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def print_results(results: Mapping[str, Any]) -> None:
    """What the stages `evaluate` and `route` of a run found."""
    from ..report.table import results_table, router_summary, router_table

    console = stdout()
    if "domains" in results:
        console.print(results_table(results))
    if "router" in results:
        console.print(router_table(results["router"]))
        console.print(router_summary(results["router"]))


def quiet_libraries() -> None:
    """Keep the progress bars and notices of the libraries out of ours; call before they are imported."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


class RichProgress:
    """A `Progress` on stderr: a bar on a terminal, now and then a line elsewhere."""

    LINE_EVERY = 10.0

    def __init__(self) -> None:
        self._console = stderr()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._totals: dict[str, int] = {}
        self._said = 0.0

    @contextmanager
    def live(self) -> Iterator[RichProgress]:
        """Show the bar while the block runs."""
        if not self._console.is_terminal:
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
            yield self
        self._bar = None

    def message(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False)

    def start(self, stage: str, total: int, done: int) -> None:
        self._totals[stage] = total
        if self._bar is not None:
            self._tasks[stage] = self._bar.add_task(stage, total=total, completed=done, figures="")

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        shown = "  ".join(
            _figure(name, figures[name])
            for name in ("kl", "expected_sparsity", "tokens_per_second")
            if name in figures
        )
        if self._bar is not None:
            self._bar.update(self._tasks[stage], completed=done, figures=shown)
        elif time.monotonic() - self._said > self.LINE_EVERY or (figures and done == self._totals[stage]):
            self._said = time.monotonic()
            self.message(f"{stage}: {done}/{self._totals[stage]}  {shown}")


def _figure(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    return f"sparsity {value:.1%}" if name == "expected_sparsity" else f"{name} {value:.4f}"
