"""`koffkit export`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import RichProgress, emit, json_option, quiet_libraries, stdout


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--format", "format_", default="hf", show_default=True, help="Exporter, as installed.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to make.  [default: exports/RUN-FORMAT]")
@json_option
def command(run: Path | None, format_: str, output: Path | None, as_json: bool) -> None:
    """Slice the finished RUN (by default the newest under ./runs) into artefacts that other software loads."""
    from ..run.folder import RunFolder, newest_finished

    folder = RunFolder(run) if run is not None else newest_finished()
    folder.require_finished()
    from ..exporters import find

    exporter = find(format_)
    quiet_libraries()
    target = output or Path("exports") / f"{folder.path.resolve().name}-{format_}"
    progress = RichProgress()
    with progress.live():
        result = exporter.export(folder, target, {}, progress)
    if as_json:
        emit(result)
        return
    backbone = result["backbone"]
    stdout().print(
        f"{target}: {backbone['parameters']:,} parameters, {backbone['bytes']:,} bytes ({backbone['class']}), "
        f"{len(result['domains'])} memories; largest logit difference {max(result['parity']['max_abs'].values()):.1e}.",
        markup=False,
    )
