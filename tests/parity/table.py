"""The whole conformance suite as a table: `make conformance`."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from koffkit.arch import supported
from koffkit.cli.console import quiet_libraries
from koffkit.errors import UsageError

from .conformance import STRUCTURES, TOLERANCE, build, cases, differences, repaired
from .neurons import COLUMN, neuron_cases, neuron_differences

Worst = dict[tuple[str, str], float]


def main() -> None:
    quiet_libraries()
    warnings.filterwarnings("ignore")
    worst: dict[tuple[str, str], float] = {}
    count = refused = 0
    for case in (*cases(), *repaired()):
        with tempfile.TemporaryDirectory() as root:
            try:
                found = differences(build(case, Path(root)), Path(root))
            except UsageError:
                if not case.refused:
                    raise
                refused += 1
                continue
        count += len(found)
        worst[case.family, case.structure] = max(
            worst.get((case.family, case.structure), 0.0), *found.values()
        )
        print(f"{case.name}: {max(found.values()):.1e}", file=sys.stderr)  # noqa: T201
    for neuron_case in neuron_cases():
        with tempfile.TemporaryDirectory() as root:
            found = neuron_differences(build(neuron_case, Path(root)), Path(root))
        count += len(found)
        worst[neuron_case.family, COLUMN] = max(worst.get((neuron_case.family, COLUMN), 0.0), *found.values())
    _print(worst, count, refused)
    sys.exit(max(worst.values()) > TOLERANCE)


def _print(worst: Worst, count: int, refused: int) -> None:
    table = Table(
        title="masked == sliced: max |logit difference| (both layouts, tied and untied, four conditions)"
    )
    table.add_column("architecture")
    for structure in (*STRUCTURES, COLUMN):
        table.add_column(structure, justify="right")
    for family in supported():
        cells = (
            f"{worst[family, structure]:.1e}" if (family, structure) in worst else "refused"
            for structure in (*STRUCTURES, COLUMN)
        )
        table.add_row(family, *cells)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{count} cases, {refused} exports refused by design, worst {max(worst.values()):.1e} (limit "
        f"{TOLERANCE:g})"
    )


if __name__ == "__main__":
    main()
