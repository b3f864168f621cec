"""`koffkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, quiet_libraries, say
from .place import device_option

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
@click.option(
    "--analyses",
    is_flag=True,
    help="Of a run: compute the analyses, which needs the base; they stay in the run.",
)
@click.option(
    "--completions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a run: let the models complete N held-out texts of each domain, which needs the base; the texts "
    "stay in the run.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="OTHER_RUN",
    help="Of a run: show another run beside it, for example row prune_less of an ablation.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The unpruned model.  [default: where the run found it]",
)
@device_option
@json_option
def command(
    path: Path,
    output: Path | None,
    analyses: bool,
    completions: int | None,
    baseline: Path | None,
    base: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Write one HTML file about PATH, a run or an export: what was won, what it cost, how to load it.

    The file needs nothing else: no network, no other file.
    """
    from ..report.page.render import chart_library, render
    from ..storage.files import write_atomically

    RichProgress().message(f"reading {path}")
    library = chart_library()
    if analyses or completions is not None:
        if baseline is not None:
            _facts(path, baseline)  # refuse what cannot be compared before minutes of work
        _compute(path, analyses, completions, base, device)
    facts = _facts(path, baseline)
    page = render(facts, library)
    target = output or _default(path, facts)
    write_atomically(target, page)
    result = {"path": str(path), "output": str(target), "bytes": target.stat().st_size}
    emit(result) if as_json else say(f"{target}: {result['bytes']:,} bytes; open it in a browser.")


def _compute(
    path: Path, analyses: bool, completions: int | None, base: Path | None, device: str | None
) -> None:
    """Ask the models of a run, and keep what they say in it.

    Raises:
        UsageError: this is not a finished run.
        DataError: its base is not there.
    """
    from ..run.finished import FinishedRun
    from ..storage.files import write_json
    from ..storage.lock import writing_in

    quiet_libraries()
    progress = RichProgress()
    run = FinishedRun.open(path, base)
    with writing_in(path), progress.live():
        if analyses:
            from ..analysis.analyse import analyse

            write_json(run.folder.analyses_file, analyse(run, progress, device=device))
        if completions is not None:
            from ..analysis.completions import complete

            found = complete(run, completions, progress, device=device)
            write_json(run.folder.completions_file, found)


def _facts(path: Path, baseline: Path | None) -> PageFacts:
    """What the page shows.

    Raises:
        UsageError: there is neither a run nor an export, or the baseline is nothing to compare it with.
    """
    from ..artefact.export import is_export
    from ..run.folder import RunFolder

    if not path.is_dir():
        raise UsageError(f"{path}: no such folder.")
    if is_export(path):
        if baseline is not None:
            raise UsageError(f"--baseline: {path} is an export; name the run that it was made from.")
        from ..runtime.report_of_export import facts_of_export

        return facts_of_export(path)
    if RunFolder(path).exists:
        from ..runtime.report_of_run import facts_of_run

        return facts_of_run(RunFolder(path), None if baseline is None else RunFolder(baseline))
    raise UsageError(f"{path}: neither a run nor an export; name the folder of one.")


def _default(path: Path, facts: PageFacts) -> Path:
    from ..run.folder import RunFolder

    if facts.kind == "run":
        return RunFolder(path).report_file
    whole = path.resolve()  # an export lists its files: the page lies beside it
    return whole.with_name(f"{whole.name}-report.html")
