"""`koffkit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..report.verdict import verdict_of
from .console import RichProgress, emit, json_option, print_results, print_verdict, quiet_libraries, say
from .place import batch_size_option, device_option, dtype_option, verify_option

if TYPE_CHECKING:
    from ..run.folder import RunFolder

PERPLEXITY = "perplexity"


@click.command("evaluate")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--task",
    default=PERPLEXITY,
    show_default=True,
    help="perplexity, or tasks of lm-eval, comma-separated: arc_easy,piqa (extra `eval`).",
)
@click.option(
    "--tasks-folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="YAML files of tasks of your own; only these are known then, and nothing is fetched.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each task.  [default: all]")
@click.option(
    "--few-shot", type=click.IntRange(min=0), help="Solved examples before a question.  [default: the task's]"
)
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
@verify_option
@json_option
def command(
    path: Path,
    task: str,
    tasks_folder: Path | None,
    limit: int | None,
    few_shot: int | None,
    memory: str,
    data: str | None,
    field: str,
    sequence_length: int,
    attend_across_documents: bool | None,
    device: str | None,
    dtype: str,
    batch_size: int,
    verify: bool,
    as_json: bool,
) -> None:
    """Figures of a run (from its evaluate stage); of an export or a plain model the perplexity on --data, or
    tasks of lm-eval."""
    from ..run.folder import RunFolder

    if not path.is_dir():
        raise UsageError(f"{path}: no such folder.")
    run = RunFolder(path)
    if run.exists:
        _show(path, _results(run, task), as_json)
        return
    if task != PERPLEXITY:
        result = _tasks(path, task, memory, tasks_folder, limit, few_shot, device, dtype, batch_size)
        emit(result) if as_json else _print_tasks(result)
        return
    if data is None:
        raise UsageError(f"{path}: give --data FILE, the text to measure the perplexity on.")
    _require(path, data, field, memory)
    quiet_libraries()
    from ..runtime.perplexity import perplexity

    progress = RichProgress()
    progress.message(f"measuring the perplexity on {data}")
    settings: dict[str, Any] = {"sequence_length": sequence_length, "field": field, "batch_size": batch_size}
    where: dict[str, Any] = {"device": device, "dtype": dtype, "verify": verify, "progress": progress}
    chosen = None if memory == "none" else memory
    with progress.live():
        figures = perplexity(
            path, data, chosen, attend_across_documents=attend_across_documents, **settings, **where
        )
    result = {"path": str(path), "task": task, "memory": memory, **figures}
    shown = "inf" if figures["perplexity"] is None else f"{figures['perplexity']:.3f}"
    emit(result) if as_json else say(f"perplexity {shown} on {figures['tokens']:,} tokens (memory {memory})")


def _results(run: RunFolder, task: str) -> dict[str, Any]:
    """The figures of a run.

    Raises:
        UsageError: it has none, or a task is asked for, which needs an export.
    """
    results = run.require_finished().results
    if task != PERPLEXITY:
        raise UsageError(f"{run.path}: --task needs an export or a model; export the run first.")
    if "domains" not in results:
        raise UsageError(f"{run.path}: this run has no evaluate stage; export it and give --data.")
    return results


def _tasks(
    path: Path,
    task: str,
    memory: str,
    folder: Path | None,
    limit: int | None,
    few_shot: int | None,
    device: str | None,
    dtype: str,
    batch_size: int,
) -> dict[str, Any]:
    """Run tasks of lm-eval."""
    from .generate import require_memory

    _require_model(path)
    require_memory(path, memory)
    quiet_libraries()
    from ..runtime.tasks import run_tasks

    progress = RichProgress()
    names = [name.strip() for name in task.split(",") if name.strip()]
    with progress.live():
        found = run_tasks(
            path,
            names,
            memory,
            folder=folder,
            limit=limit,
            few_shot=few_shot,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
        )
    return {"path": str(path), "task": task, "memory": memory, **found}


def _print_tasks(result: dict[str, Any]) -> None:
    for name, figures in result["results"].items():
        shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items() if isinstance(value, float))
        count = f" ({figures['questions']:,} questions)" if "questions" in figures else ""
        say(f"{name}: {shown}{count}")
    if result["picked"]:
        say("the router picked " + ", ".join(f"{name} {count}" for name, count in result["picked"].items()))


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
    from ..data.places import file_source, source_files
    from .generate import require_memory

    _require_model(path)
    require_memory(path, memory)
    source_files(file_source(data, field), Path.cwd(), "--data")


def _require_model(path: Path) -> None:
    from ..artefact.export import is_export

    if not is_export(path) and not (path / "config.json").is_file():
        raise UsageError(f"{path}: neither a run, an export nor a model; give one of them.")
