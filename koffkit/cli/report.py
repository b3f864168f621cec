"""`koffkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .console import emit, json_option, say

if TYPE_CHECKING:
    from ..report.page.facts import PageFacts


@click.command("report")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Where to write it.  [default: report.html in a run; NAME-report.html beside an export]",
)
@json_option
def command(path: Path, output: Path | None, as_json: bool) -> None:
    """Write one HTML file about PATH, a run or an export: what was won, what it cost, how to load it.

    The file needs nothing else: no network, no other file.
    """
    from ..report.page.render import chart_library, render
    from ..storage.files import write_atomically

    facts = _facts(path)
    page = render(facts, chart_library())
    target = output or _default(path, facts)
    write_atomically(target, page)
    result = {"path": str(path), "output": str(target), "bytes": target.stat().st_size}
    emit(result) if as_json else say(f"{target}: {result['bytes']:,} bytes; open it in a browser.")


def _facts(path: Path) -> PageFacts:
    """What the page shows.

    Raises:
        UsageError: there is neither a run nor an export.
    """
    from ..artefact.export import is_export
    from ..run.folder import RunFolder

    if not path.is_dir():
        raise UsageError(f"{path}: no such folder.")
    if is_export(path):
        from ..runtime.report_of_export import facts_of_export

        return facts_of_export(path)
    if RunFolder(path).exists:
        from ..runtime.report_of_run import facts_of_run

        return facts_of_run(RunFolder(path))
    raise UsageError(f"{path}: neither a run nor an export; name the folder of one.")


def _default(path: Path, facts: PageFacts) -> Path:
    from ..run.folder import RunFolder

    if facts.kind == "run":
        return RunFolder(path).report_file
    whole = path.resolve()  # an export lists its files: the page lies beside it
    return whole.with_name(f"{whole.name}-report.html")
