"""What a run was expected to cost beside what it did cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .duration import duration

if TYPE_CHECKING:
    from rich.table import Table

BASES = {"probe": "real steps", "machine": "the machine's measured speed"}


class Costs(Protocol):
    """Of `run.json`: `basis`, seconds by stage, bytes of memory and of disk."""

    @property
    def basis(self) -> str: ...
    @property
    def seconds(self) -> Mapping[str, float | None]: ...
    @property
    def peak_memory(self) -> int: ...
    @property
    def disk(self) -> int: ...


def cost_rows(foreseen: Costs, spent: Costs) -> Iterator[tuple[str, str, str]]:
    """What, planned, and actual, as texts; `-` where one is not known."""
    for stage, seconds in spent.seconds.items():
        yield f"{stage}: time", _time(foreseen.seconds.get(stage)), _time(seconds)
    yield "peak memory", f"{foreseen.peak_memory:,} bytes", f"{spent.peak_memory:,} bytes"
    yield "disk", f"{foreseen.disk:,} bytes", f"{spent.disk:,} bytes"


def costs_table(foreseen: Costs, spent: Costs) -> Table:
    """For the terminal."""
    from rich.table import Table

    table = Table(
        title=f"planned (by {BASES.get(foreseen.basis, foreseen.basis)}) and actual", title_justify="left"
    )
    for column in ("what", "planned", "actual"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in cost_rows(foreseen, spent):
        table.add_row(*row)
    return table


def _time(seconds: Any) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
