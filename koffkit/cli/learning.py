"""`koffkit memory add|replace`: what learns a memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, print_verdict, quiet_libraries, stdout
from .place import device_option

NOT_ROUTED = "The router does not know it: --memory auto never picks it, --memory {name} does."
OPTIONS = (
    click.option(
        "--text",
        multiple=True,
        metavar="GLOB",
        help="Text files; a blank line separates documents. Repeatable.",
    ),
    click.option(
        "--jsonl", multiple=True, metavar="GLOB", help="JSON-lines files, one document a line. Repeatable."
    ),
    click.option("--field", help="Field of a jsonl document that holds the text.  [default: text]"),
    click.option("--prompt-field", help="With --answer-field: also report recall."),
    click.option("--answer-field", help="What the prompt must be completed with."),
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="The unpruned model.  [default: where the manifest says]",
    ),
    click.option(
        "--against",
        multiple=True,
        metavar="GLOB",
        help="Text the router must not take for NAME. Repeatable.  [default: that of the others]",
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="a.b=VALUE",
        help="Change a setting of the export's recipe; repeatable.",
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted command."),
    device_option,
)


def learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The export, the memory's name, its text, and how it is learned."""
    for option in reversed(OPTIONS):
        command = option(command)
    name = click.argument("name")
    return click.argument("export", type=click.Path(path_type=Path))(name(json_option(command)))


@click.command("add")
@learning_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write it as FOLDER/NAME and nothing into EXPORT; `memory collect` takes it from there.",
)
def add(export: Path, name: str, **options: Any) -> None:
    """Learn a memory for the new domain NAME on the backbone of EXPORT, taught by the unpruned model."""
    _learn(export, name, replace=False, **options)


@click.command("replace")
@learning_options
def replace(export: Path, name: str, **options: Any) -> None:
    """Learn the memory NAME of EXPORT anew. The present one stays in use until the new one is whole; then the
    two are swapped in one step."""
    _learn(export, name, replace=True, **options)


def _learn(
    export: Path,
    name: str,
    *,
    replace: bool,
    text: tuple[str, ...],
    jsonl: tuple[str, ...],
    base: Path | None,
    against: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
    device: str | None,
    as_json: bool,
    output: Path | None = None,
    **fields: str | None,
) -> None:
    from ..artefact.export import open_export
    from ..data.places import source_files
    from ..devices import require_device
    from ..memories.add import add_memory, free_place, taken_place, work_folder
    from ..recipe.schema import Source

    opened = open_export(export)
    source = _source(text, jsonl, fields)
    if replace:
        taken_place(opened, name)
    else:
        free_place(opened, name, work_folder(opened, name), output)
    source_files(Source.model_validate(source), Path.cwd(), "--text" if text else "--jsonl")  # are there
    quiet_libraries()
    require_device(device)
    progress = RichProgress()
    with progress.live():
        result = add_memory(
            export,
            name,
            source,
            base=base,
            against=against,
            overrides=overrides,
            resume=resume,
            replace=replace,
            output=output,
            device=device,
            progress=progress,
        )
    emit(result) if as_json else _print(export, name, result, output)


def _print(export: Path, name: str, result: dict[str, Any], output: Path | None) -> None:
    from ..report.table import results_table

    console = stdout()
    console.print(results_table({"domains": {name: result["figures"]}, "mean": {}}))
    place = export if output is None else result["path"]
    console.print(
        f"{place}: memory {name}, {result['parameters']:,} parameters, {result['bytes']:,} bytes.",
        markup=False,
    )
    console.print(_routing(name, result), markup=False)
    print_verdict(result["verdict"])
    if output is not None:
        console.print(
            f"It becomes part of the export with: koffkit memory collect {export} {output}", markup=False
        )


def _routing(name: str, result: dict[str, Any]) -> str:
    """What `--memory auto` will do with the new memory."""
    routing = result["routing"]
    if routing is not None:
        return (
            f"The router learned it: it picks {name} for {routing['recognised']:.1%} of "
            f"{routing['documents']:,} held-out documents of its own and "
            f"{routing['mistaken']:.1%} of {routing['other_documents']:,} others."
        )
    return (
        "The router knows this name from the export." if result["in_router"] else NOT_ROUTED.format(name=name)
    )


def _source(text: tuple[str, ...], jsonl: tuple[str, ...], fields: dict[str, str | None]) -> dict[str, Any]:
    """Fields of a recipe's source.

    Raises:
        UsageError: not exactly one kind of source, or a field without the kind it belongs to.
    """
    if bool(text) == bool(jsonl):
        raise UsageError("give the domain's text with either --text GLOB or --jsonl GLOB.")
    given = {key: value for key, value in fields.items() if value is not None}
    if text:
        if given:
            raise UsageError(
                f"--{next(iter(given)).replace('_', '-')} goes with --jsonl; text files have no fields."
            )
        return {"text": list(text)}
    if ("prompt_field" in given) != ("answer_field" in given):
        raise UsageError("--prompt-field and --answer-field go together: give both or neither.")
    return {"jsonl": list(jsonl), **given}
