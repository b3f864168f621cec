"""`koffkit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..report.verdict import verdict_of
from .console import RichProgress, emit, json_option, print_results, print_verdict, quiet_libraries, say
from .place import batch_size_option, device_option, dtype_option


@click.command("evaluate")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(["perplexity"]), default="perplexity", show_default=True)
@click.option(
    "--memory", default="none", show_default=True, help="auto (the router decides), none, or a domain."
)
@click.option("--data", help="Text or jsonl file, or a glob. A run needs none: it has its held-out text.")
@click.option("--field", default="text", show_default=True, help="Field of a jsonl file that holds the text.")
@click.option("--sequence-length", default=512, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--attend-across-documents/--documents-apart",
    default=None,
    help="Do tokens attend to earlier documents of their sequence? By default as in the export's recipe.",
)
@device_option
@dtype_option("float32")
@batch_size_option(4, "Sequences")
@json_option
def command(
    path: Path,
    task: str,
    memory: str,
    data: str | None,
    field: str,
    sequence_length: int,
    attend_across_documents: bool | None,
    device: str | None,
    dtype: str,
    batch_size: int,
    as_json: bool,
) -> None:
    """Figures of a run (from its evaluate stage), or the perplexity of an export or a plain model on
    --data."""
    from ..run.folder import RunFolder

    if not path.is_dir():
        raise UsageError(f"{path}: no such folder.")
    run = RunFolder(path)
    if run.exists:
        results = run.require_finished().results
        if "domains" not in results:
            raise UsageError(f"{path}: this run has no evaluate stage; export it and give --data.")
        _show(path, results, as_json)
        return
    if data is None:
        raise UsageError(f"{path}: give --data FILE, the text to measure the perplexity on.")
    chosen = None if memory == "none" else memory
    _require(path, data, field, memory)
    quiet_libraries()
    from ..runtime.perplexity import perplexity

    progress = RichProgress()
    progress.message(f"measuring the perplexity on {data}")
    with progress.live():
        figures = perplexity(
            path,
            data,
            chosen,
            sequence_length=sequence_length,
            field=field,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            attend_across_documents=attend_across_documents,
            progress=progress,
        )
    result = {"path": str(path), "task": task, "memory": memory, **figures}
    shown = "inf" if figures["perplexity"] is None else f"{figures['perplexity']:.3f}"
    emit(result) if as_json else say(f"perplexity {shown} on {figures['tokens']:,} tokens (memory {memory})")


def _show(path: Path, results: dict[str, Any], as_json: bool) -> None:
    """The figures of a run, and what they mean."""
    verdict = verdict_of(results).to_json()
    if as_json:
        emit({"path": str(path), "results": results, "verdict": verdict})
        return
    print_results(results)
    print_verdict(verdict)


def _require(path: Path, data: str, field: str, memory: str) -> None:
    """A typing error must not cost the seconds of loading.

    Raises:
        DataError: no file is there.
        UsageError: there is neither an export nor a model, or it has no such memory.
    """
    from ..artefact.export import is_export
    from ..data.places import file_source, source_files
    from .generate import require_memory

    if not is_export(path) and not (path / "config.json").is_file():
        raise UsageError(f"{path}: neither a run, an export nor a model; give one of them.")
    require_memory(path, memory)
    source_files(file_source(data, field), Path.cwd(), "--data")
