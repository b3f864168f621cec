"""What `koffkit ablate` and `koffkit sweep` share: options, running, and what they print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, print_verdict, quiet_libraries, stdout

if TYPE_CHECKING:
    from ..studies.study import Entry

SUMMARY, TABLE, FIGURE = "summary.json", "runs.csv", "figure.png"


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands."""
    options = (
        click.option("--seeds", default="0", show_default=True, help="Seeds, separated by commas."),
        click.option(
            "--output", type=click.Path(path_type=Path), help="Folder of the runs and of what they found."
        ),
        click.option(
            "--csv", "csv_file", type=click.Path(path_type=Path), help="Also write all figures here."
        ),
        click.option("--plot", type=click.Path(path_type=Path), help="Also draw the figures here."),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def numbers(seeds: str) -> list[int]:
    """Seeds from the command line.

    Raises:
        UsageError: one is not a whole number of at least 0, or comes twice.
    """
    parts = [part.strip() for part in seeds.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--seeds: {seeds!r}; give different whole numbers, for example 0,1,2.")
    return [int(part) for part in parts]


def carry_out(
    entries: Sequence[Entry],
    output: Path,
    title: str,
    meanings: Mapping[str, str],
    csv_file: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run a study and show what it found; what is known so far is written after every run.

    Raises:
        UsageError: `--plot` without matplotlib.
    """
    if plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot: drawing needs the extra: pip install 'koffkit[plot]'.")
    quiet_libraries()
    from ..report.study import draw_study, equal_size_verdict, study_table
    from ..storage.files import make_folder, write_atomically, write_json
    from ..studies.study import run_study
    from ..studies.summary import Found, csv_text, found, summary

    make_folder(output)
    progress, runs = RichProgress(), list[Found]()
    with progress.live():
        for entry, state in run_study(entries, progress):
            runs.append(found(entry, state))
            write_json(output / SUMMARY, summary(runs, meanings))
            write_atomically(output / TABLE, csv_text(runs))
    result = summary(runs, meanings)
    if csv_file is not None:
        write_atomically(csv_file, csv_text(runs))
    if plot is not None or find_spec("matplotlib") is not None:
        draw_study(result, plot or output / FIGURE, title)
    if as_json:
        emit({"output": str(output), "rows": result})
    else:
        stdout().print(study_table(result, title))
        print_verdict(equal_size_verdict(result))
