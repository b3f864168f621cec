"""`koffkit memory add|list|remove|compact`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, quiet_libraries, say, stdout
from .place import device_option

NOT_ROUTED = "The router does not know it: --memory auto never picks it, --memory {name} does."


@click.group("memory")
def command() -> None:
    """Add, list, remove and compact the memories of an export. The backbone and every other memory stay as
    they are, byte for byte."""


@command.command("add")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("name")
@click.option(
    "--text", multiple=True, metavar="GLOB", help="Text files; a blank line separates documents. Repeatable."
)
@click.option(
    "--jsonl", multiple=True, metavar="GLOB", help="JSON-lines files, one document a line. Repeatable."
)
@click.option("--field", help="Field of a jsonl document that holds the text.  [default: text]")
@click.option("--prompt-field", help="With --answer-field: also report recall.")
@click.option("--answer-field", help="What the prompt must be completed with.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The unpruned model.  [default: where the manifest says]"
)
@click.option(
    "--against",
    multiple=True,
    metavar="GLOB",
    help="Text the router must not take for NAME. Repeatable.  [default: that of the others]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="a.b=VALUE",
    help="Change a setting of the export's recipe; repeatable.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted command.")
@json_option
def add(
    export: Path,
    name: str,
    text: tuple[str, ...],
    jsonl: tuple[str, ...],
    base: Path | None,
    against: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
    as_json: bool,
    **fields: str | None,
) -> None:
    """Learn a memory for the new domain NAME on the backbone of EXPORT, taught by the unpruned model."""
    from ..artefact.export import open_export
    from ..memories.add import add_memory, free_place, work_folder

    opened = open_export(export)
    source = _source(text, jsonl, fields)
    free_place(opened, name, work_folder(opened, name))
    quiet_libraries()
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
            progress=progress,
        )
    if as_json:
        emit(result)
        return
    from ..report.table import results_table

    console = stdout()
    console.print(results_table({"domains": {name: result["figures"]}, "mean": {}}))
    console.print(
        f"{export}: memory {name}, {result['parameters']:,} parameters, {result['bytes']:,} bytes.",
        markup=False,
    )
    console.print(_routing(name, result), markup=False)


def _routing(name: str, result: dict[str, Any]) -> str:
    """What `--memory auto` will do with the new memory."""
    found = result["routing"]
    if found is not None:
        return (
            f"The router learned it: it picks {name} for {found['recognised']:.1%} of {found['documents']:,} "
            "held-out documents of its own "
            f"and {found['mistaken']:.1%} of {found['other_documents']:,} others."
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
        console.print(
            f"Not known to the router, so never picked by --memory auto: {', '.join(unknown)}.", markup=False
        )
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
    emit(result) if as_json else say(f"{export}: memory {name} removed, {result['bytes']:,} bytes.")


@command.command("compact")
@click.argument("path", type=click.Path(path_type=Path), metavar="EXPORT[/NAME]")
@click.option(
    "--rank", type=click.IntRange(min=1), help="LoRA rank of every module.  [default: as --energy says]"
)
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the squared norm each module keeps.  [default: 1]",
)
@click.option(
    "--dtype",
    type=click.Choice(["int6", "int8", "float16", "float32"]),
    help="Type of the weights.  [default: int6]",
)
@click.option("--int8/--no-int8", default=None, help="Short for --dtype int8, --dtype float32.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the new bundles, one each.  [default: EXPORT-compact]",
)
@click.option("--in-place", is_flag=True, help="Replace the memories instead.")
@click.option(
    "--data",
    multiple=True,
    metavar="GLOB",
    help="Held-out text to measure the loss on; {name} is the memory's name. Repeatable.",
)
@click.option("--field", default="text", show_default=True, help="Field of a jsonl file that holds the text.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The unpruned model.  [default: where the manifest says]"
)
@device_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Sequences of --data at a time.  [default: 2,048 tokens' worth]",
)
@json_option
def compact(
    path: Path,
    rank: int | None,
    energy: float | None,
    dtype: str | None,
    int8: bool | None,
    output: Path | None,
    in_place: bool,
    data: tuple[str, ...],
    field: str,
    base: Path | None,
    device: str | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Shrink one memory or all of an export: lower LoRA ranks, smaller weights, and a statement of what it
    cost."""
    _exclusive("--rank", rank, "--energy", energy)
    _exclusive("--dtype", dtype, "--int8", int8)
    _exclusive("--output", output, "--in-place", in_place or None)
    if not path.exists() and not path.parent.is_dir():
        raise UsageError(f"{path}: no such folder.")
    quiet_libraries()
    from ..memories.compact import compact as compact_memories
    from ..memories.compact_bundle import Options

    if int8 is not None:
        dtype = "int8" if int8 else "float32"
    options = Options(rank=rank, energy=1.0 if energy is None else energy, dtype=dtype or "int6")
    progress = RichProgress()
    with progress.live():
        result = compact_memories(
            path,
            options,
            output=output,
            in_place=in_place,
            data=data,
            field=field,
            base=base,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    emit(result) if as_json else _say_compacted(result)


def _exclusive(first: str, first_value: object, second: str, second_value: object) -> None:
    if first_value is not None and second_value is not None:
        raise UsageError(f"{first} and {second} exclude each other; give one.")


def _say_compacted(result: dict[str, Any]) -> None:
    for name, row in result["memories"].items():
        kl = row["kl"]
        say(
            f"{name}: {row['bytes_before']:,} -> {row['bytes']:,} bytes ({row['ratio']:.0%}); KL to the "
            f"{kl['reference']} {kl['before']:.4f} -> {kl['after']:.4f} on {kl['tokens']:,} tokens."
        )
    say(f"{result['output']}: {len(result['memories'])} compact memories ({result['dtype']}).")
