"""`koffkit memory list|collect|remove|compact`; `add` and `replace` are in `learning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, quiet_libraries, say, stdout
from .learning import add, replace
from .place import device_option


@click.group("memory")
def command() -> None:
    """Add, collect, list, replace, remove and compact the memories of an export. The backbone and every
    other memory stay as they are, byte for byte."""


command.add_command(add)
command.add_command(replace)


@command.command("list")
@click.argument("export", type=click.Path(path_type=Path))
@json_option
def list_(export: Path, as_json: bool) -> None:
    """The memories of EXPORT: sizes, origin, whether the router knows them, figures."""
    from ..memories.manage import list_memories

    listing = list_memories(export)
    if as_json:
        emit(listing)
        return
    from ..report.memories import memories_table

    console = stdout()
    console.print(memories_table(listing["memories"]))
    unknown = [name for name, row in listing["memories"].items() if not row["in_router"]]
    if listing["router"] and unknown:
        console.print(
            f"Not known to the router, so never picked by --memory auto: {', '.join(unknown)}.", markup=False
        )
    if listing["removed"]:
        console.print(f"Removed since the export: {', '.join(listing['removed'])}.", markup=False)


@command.command("remove")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("name")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Move it to FOLDER/NAME; copied back to EXPORT/memories, it is there again.",
)
@json_option
def remove(export: Path, name: str, keep: Path | None, as_json: bool) -> None:
    """Delete the memory NAME of EXPORT, or keep it elsewhere."""
    from ..memories.manage import remove_memory

    result = remove_memory(export, name, keep)
    where = "" if keep is None else f", now in {result['kept']}"
    emit(result) if as_json else say(f"{export}: memory {name} removed, {result['bytes']:,} bytes{where}.")


@command.command("collect")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("folders", type=click.Path(path_type=Path), metavar="FOLDER...", nargs=-1, required=True)
@json_option
def collect(export: Path, folders: tuple[Path, ...], as_json: bool) -> None:
    """Take finished memories (`add --output`) into EXPORT and its manifest: all of them in one step, or none.
    FOLDER is a bundle or holds bundles; those that are there already are left out."""
    from ..memories.collect import collect_memories

    progress = RichProgress()
    with progress.live():
        result = collect_memories(export, folders, progress)
    emit(result) if as_json else _say_collected(result)


def _say_collected(result: dict[str, Any]) -> None:
    names = ", ".join(result["collected"]) or "nothing"
    already = f" (there already: {', '.join(result['already'])})" if result["already"] else ""
    total = len(result["memories"])
    say(f"{result['path']}: collected {names}, {result['bytes']:,} bytes{already}; memories in all: {total}.")
    if result["not_in_router"]:
        unknown = ", ".join(result["not_in_router"])
        say(f"Not known to the router, so never picked by --memory auto: {unknown}.")


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
