"""`koffkit restore`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import RichProgress, emit, json_option, quiet_libraries, say


@click.command("restore")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The unpruned model, where it is at hand: compare the result with it. It is not needed.",
)
@json_option
def command(export: Path, output: Path, base: Path | None, as_json: bool) -> None:
    """Make the unpruned model again from EXPORT: its backbone and all that was removed, which
    `koffkit export --keep-removed` keeps. The result has the digest of the base."""
    from ..artefact.export import open_export
    from ..storage.publish import require_free

    open_export(export)
    require_free(output)
    quiet_libraries()
    from ..runtime.restore import restore_base

    progress = RichProgress()
    with progress.live():
        result = restore_base(export, output, base=base, progress=progress)
    compared = "" if base is None else f", compared with {base}"
    if as_json:
        emit(result)
        return
    say(
        f"{output}: {result['base']} again, {result['tensors']:,} tensors, digest "
        f"{result['digest'][:12]}{compared}."
    )
