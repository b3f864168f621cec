"""How soon every command says something, and how soon its `--help` is there.

    python benchmarks/first_line.py [--repeat 3] [--run RUN --export EXPORT]

Every command starts in a process of its own, on local files, and is killed once it has printed its first
line; the least of the repeats counts. Without `--run` and `--export` a quickstart of a few steps makes both.
Run it on an idle machine: at most 1 s for a first line and 0.15 s for a help text are promised there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

FIRST_LINE, HELP = 1.0, 0.15
"""Limits in seconds."""
FEW_STEPS = {
    "stages.learn_masks.max_steps": 2,
    "stages.recover.max_steps": 2,
    "stages.route.epochs": 1,
    "stages.evaluate": {"max_tokens": 64, "swap": False, "recall_limit": 1},
}
TEXT = "river stone\n\n" * 200
COMMANDS = {
    "compress": "compress quickstart --output new",
    "compress --dry-run": "compress quickstart --dry-run",
    "export": "export run --output new",
    "evaluate RUN": "evaluate run",
    "evaluate EXPORT": "evaluate out --data text.txt",
    "generate": "generate out --prompt x --memory none",
    "chat": "chat out --memory none",
    "serve": "serve out --port 0",
    "push": "push out acme/lean --dry-run",
    "inspect RUN": "inspect run",
    "inspect EXPORT": "inspect out",
    "verify EXPORT": "verify out",
    "verify RUN": "verify run",
    "memory add": "memory add out xx --text text.txt",
    "memory list": "memory list out",
    "memory replace": "memory replace out {memory} --text text.txt",
    "memory remove": "memory remove out {memory}",
    "memory collect": "memory collect out found",
    "memory compact": "memory compact out --output new --data text.txt",
    "recipe list": "recipe list",
    "recipe show": "recipe show quickstart",
    "recipe validate": "recipe validate quickstart",
    "recipe schema": "recipe schema",
    "doctor": "doctor",
    "report": "report run --output new.html",
    "ablate": "ablate quickstart --rows koff --output new",
    "sweep": "sweep quickstart --set sequence_length=64,96 --output new",
    "restore": "restore out --output new",
}
"""The arguments by what they stand for; a command that is not installed is left out."""


def leaves(command: click.Command, path: str = "") -> Iterator[str]:
    """The commands below a group, as they are typed."""
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None:
            yield from leaves(inner, f"{path} {name}".strip())


def seconds_to_first_line(arguments: list[str], folder: Path) -> float:
    """Seconds from the start of a process to the end of its first line, on either stream.

    Raises:
        ClickException: it printed none, or an error.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "koffkit", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    line = process.stdout.readline().decode(errors="replace")
    taken = time.perf_counter() - began
    process.kill()
    process.communicate()
    if not line or line.startswith("Error"):
        raise click.ClickException(f"koffkit {' '.join(arguments)}: {line.strip() or 'printed nothing'}")
    return taken


def least(arguments: list[str], fresh: Path, repeat: int) -> float:
    """The shortest of some trials, each in a copy of the folder `fresh`."""
    taken = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(fresh, Path(place) / "here"))
            taken.append(seconds_to_first_line(arguments, folder))
    return min(taken)


def prepare(fresh: Path, run: Path | None, export: Path | None) -> str:
    """Put a run, an export and some text into a folder; returns the name of one of its memories."""
    import koffkit

    if run is None or export is None:
        run, export = fresh / "run", fresh / "out"
        koffkit.compress("quickstart", run, set=FEW_STEPS)
        koffkit.export(run, export)
    else:
        shutil.copytree(run, fresh / "run")
        shutil.copytree(export, fresh / "out")
    (fresh / "text.txt").write_text(TEXT, encoding="utf-8")
    shutil.copytree(fresh / "out" / "memories", fresh / "found")
    return min(path.name for path in (fresh / "out" / "memories").iterdir())


def measure(fresh: Path, memory: str, repeat: int) -> Iterator[tuple[str, float, float]]:
    """`(what, seconds, limit)` for every command and every help text."""
    from koffkit.cli import cli

    known = list(leaves(cli))
    for what, text in COMMANDS.items():
        if any(what.startswith(name) for name in known):
            yield what, least(text.format(memory=memory).split(), fresh, repeat), FIRST_LINE
    yield "--help", least(["--help"], fresh, repeat), HELP
    for name in known:
        yield f"{name} --help", least([*name.split(), "--help"], fresh, repeat), HELP


def unmeasured() -> list[str]:
    """Commands that `COMMANDS` says nothing about."""
    from koffkit.cli import cli

    return [name for name in leaves(cli) if not any(what.startswith(name) for what in COMMANDS)]


@click.command(help=__doc__)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--run", type=click.Path(path_type=Path, exists=True))
@click.option("--export", type=click.Path(path_type=Path, exists=True))
def main(repeat: int, run: Path | None, export: Path | None) -> None:
    click.echo(f"load of the machine: {os.getloadavg()[0]:.1f} for {os.cpu_count()} processors")
    slow = 0
    with tempfile.TemporaryDirectory() as place:
        fresh = Path(place) / "fresh"
        fresh.mkdir()
        memory = prepare(fresh, run, export)
        for what, seconds, limit in measure(fresh, memory, repeat):
            slow += seconds > limit
            click.echo(
                f"{what:<24} {seconds:6.2f} s{'' if seconds <= limit else f'   more than {limit:g} s'}"
            )
    for name in unmeasured():
        click.echo(f"{name:<24} not measured; add it to COMMANDS")
    click.echo(f"{slow} too slow")


if __name__ == "__main__":
    main()
