"""What koffkit costs beside the obvious other way, in one table: export, training step, decoding, attaching.

    python benchmarks/bench.py [--export FOLDER] [--model FOLDER] [--layers 14] [--quick]

Each figure is a ratio of two things that are timed in turns, by the benchmark that is named beside it; the
limits are those that we set ourselves. EXPORT has several memories; without it a quickstart of a few steps is
made. Let nothing else run beside it, or take --quick. Rows are said as they are measured. Exit code 1 if a
limit is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from first_line import FEW_STEPS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
QUICK = {
    "export_speed.py": ["--repeats", "1"],
    "sft.py": ["--rounds", "2"],
    "runtime.py": ["--rounds", "2", "--new-tokens", "8", "--cpu-time"],
}
"""What each benchmark is given with --quick."""


class Figure(NamedTuple):
    """One row: `least` says that the limit is a lower one."""

    what: str
    value: float
    limit: float
    program: str
    least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit


def printed(program: str, *arguments: str) -> Any:
    """What a benchmark prints as JSON."""
    command = [sys.executable, str(HERE / program), *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def quickstart(folder: Path) -> Path:
    """An export of the quickstart after a few steps."""
    import koffkit

    out = folder / "quickstart"
    if not out.exists():
        run = koffkit.compress("quickstart", folder / "run", set=FEW_STEPS, resume=True)
        koffkit.export(run, out)
    return out


def figures(export: Path, model: str, layers: int, folder: Path, quick: bool) -> Iterator[Figure]:
    made, less = folder / "export", QUICK if quick else dict[str, list[str]]()
    program = [sys.executable, str(HERE / "export_speed.py"), "--folder", str(made), "--layers", str(layers)]
    program += less.get("export_speed.py", [])
    subprocess.run(program, stdout=subprocess.DEVNULL, check=True)
    written = json.loads((made / "result.json").read_text())
    size = f"{written['base_bytes'] / 1e9:.1f} GB"
    yield Figure(f"export of {size} / cp -r and sync", written["ratio"], 2.0, "export_speed.py")
    yield Figure("peak RSS of the export, MB", written["peak_rss_bytes"] / 1e6, 600, "export_speed.py")
    steps = printed("sft.py", "--model", model, *less.get("sft.py", []))["steps"]
    yield Figure("step / step of PEFT's SFT", steps["uncached"]["against_sft"], 1.575, "sft.py")
    yield Figure("with a teacher cache", steps["cached"]["against_sft"], 1.05, "sft.py")
    found = printed("runtime.py", str(export), *less.get("runtime.py", []))
    batches, loading = found["batches"], found["loading"]
    yield Figure("decoding: a memory for each row / one", batches["mixed / one memory"], 1.1, "runtime.py")
    yield Figure(
        "decoding: PEFT's adapter_names / ours", batches["PEFT / mixed LoRA"], 1.5, "runtime.py", least=True
    )
    yield Figure("attaching, ms", loading["attach (ms)"], 1.0, "runtime.py")
    yield Figure("loading a memory / reading its bytes", loading["load / read"], 1.5, "runtime.py")


@click.command(help=__doc__)
@click.option("--export", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="embedded:base", show_default=True, help="Whose steps are timed.")
@click.option("--layers", default=14, show_default=True, help="Of the Llama that is exported, .15 GB each.")
@click.option("--folder", type=click.Path(path_type=Path), default="build/bench", show_default=True)
@click.option("--quick", is_flag=True, help="Few rounds; decoding and loading by the processor's time.")
def main(export: Path | None, model: str, layers: int, folder: Path, quick: bool) -> None:
    table = Table("", "measured", "limit", "by")
    missed = 0
    for figure in figures(export or quickstart(folder), model, layers, folder, quick):
        bound = f"{'>=' if figure.least else '<='} {figure.limit:g}"
        table.add_row(figure.what, f"{figure.value:.3g}", bound, f"benchmarks/{figure.program}")
        missed += not figure.is_met
        click.echo(f"{figure.what}: {figure.value:.3g} ({bound})", err=True)
    Console().print(table)
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
