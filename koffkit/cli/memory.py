"""`koffkit memory add|list|remove|compact`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, quiet_libraries, stdout

NOT_ROUTED = "The router does not know it: --memory auto never picks it, --memory {name} does."


@click.group("memory")
def command() -> None:
    """Add, list, remove and compact the memories of an export. The backbone and every other memory stay as they are, byte for byte."""


@command.command("add")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--text", multiple=True, metavar="GLOB", help="Text files; a blank line separates documents. Repeatable.")
@click.option("--jsonl", multiple=True, metavar="GLOB", help="JSON-lines files, one document a line. Repeatable.")
@click.option("--field", help="Field of a jsonl document that holds the text.  [default: text]")
@click.option("--prompt-field", help="With --answer-field: also report recall.")
@click.option("--answer-field", help="What the prompt must be completed with.")
@click.option("--base", type=click.Path(path_type=Path), help="The unpruned model.  [default: where the manifest says]")
@click.option("--set", "overrides", multiple=True, metavar="a.b=VALUE", help="Change a setting of the export's recipe; repeatable.")
@click.option("--resume", is_flag=True, help="Continue an interrupted command.")
@json_option
def add(
    export: Path, name: str, text: tuple[str, ...], jsonl: tuple[str, ...], base: Path | None, overrides: tuple[str, ...], resume: bool,
    as_json: bool, **fields: str | None,
) -> None:  # fmt: skip
    """Learn a memory for the new domain NAME on the backbone of EXPORT, taught by the unpruned model."""
    from ..artefact import open_export

    open_export(export)
    source = _source(text, jsonl, fields)
    quiet_libraries()
    from ..memories.add import add_memory

    progress = RichProgress()
    with progress.live():
        result = add_memory(export, name, source, base=base, overrides=overrides, resume=resume, progress=progress)
    if as_json:
        emit(result)
        return
    from ..report.table import results_table

    console = stdout()
    console.print(results_table({"domains": {name: result["figures"]}, "mean": {}}))
    routed = "The router knows this name from the export." if result["in_router"] else NOT_ROUTED.format(name=name)
    console.print(f"{export}: memory {name}, {result['parameters']:,} parameters, {result['bytes']:,} bytes. {routed}", markup=False)


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
            raise UsageError(f"--{next(iter(given)).replace('_', '-')} goes with --jsonl; text files have no fields.")
        return {"text": list(text)}
    if ("prompt_field" in given) != ("answer_field" in given):
        raise UsageError("--prompt-field and --answer-field go together: give both or neither.")
    return {"jsonl": list(jsonl), **given}


@command.command("list")
@click.argument("export", type=click.Path(path_type=Path))
@json_option
def list_(export: Path, as_json: bool) -> None:
    """The memories of EXPORT: sizes, origin, whether the router knows them, figures."""
    from ..memories.manage import list_memories

    found = list_memories(export)
    if as_json:
        emit(found)
        return
    from ..report.memories import memories_table

    console = stdout()
    console.print(memories_table(found["memories"]))
    unknown = [name for name, row in found["memories"].items() if not row["in_router"]]
    if found["router"] and unknown:
        console.print(f"Not known to the router, so never picked by --memory auto: {', '.join(unknown)}.", markup=False)
    if found["removed"]:
        console.print(f"Removed since the export: {', '.join(found['removed'])}.", markup=False)


@command.command("remove")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("name")
@json_option
def remove(export: Path, name: str, as_json: bool) -> None:
    """Delete the memory NAME of EXPORT."""
    from ..memories.manage import remove_memory

    result = remove_memory(export, name)
    emit(result) if as_json else click.echo(f"{export}: memory {name} removed, {result['bytes']:,} bytes.")
