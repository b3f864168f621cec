"""`koffkit verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import IntegrityError
from .console import RichProgress, emit, json_option, quiet_libraries, say


@click.command("verify")
@click.argument("export", type=click.Path(path_type=Path), metavar="EXPORT|RUN")
@json_option
def command(export: Path, as_json: bool) -> None:
    """Check digests, shapes and golden logits of EXPORT, or the digests of a finished RUN; exit code 4 and
    the file's name when something is off."""
    from ..artefact.export import is_export, open_export
    from ..run.folder import RunFolder

    is_run = RunFolder(export).exists and not is_export(export)
    if not is_run:
        open_export(export, any_format=True)
    quiet_libraries()
    from ..runtime.verify import verify_export, verify_run

    progress = RichProgress()
    progress.message("checking digests, shapes and golden logits")
    with progress.live():
        result = (verify_run if is_run else verify_export)(export, progress)
    if as_json:
        emit(result)
    elif result["ok"]:
        removed = f" Removed since the export: {', '.join(result['removed'])}." if result["removed"] else ""
        golden = f", golden logits of {', '.join(result['golden'])}" if result["golden"] else ""
        say(f"{export}: ok; {result['files']} files{golden}.{removed}")
    for problem in result["problems"]:
        say(f"Error: {problem}", err=True)
    if not result["ok"]:
        sys.exit(IntegrityError.exit_code)
