"""The command line: parses, calls, prints. Every command lives in a module of its own, imported when it is
used."""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from typing import Any

import click

from ..errors import KoffkitError, ResourceError
from .console import _JSON_KEY, emit

OUT_OF_MEMORY = (
    "out of memory; lower batch_size, sequence_length or distill.chunk_tokens, or set "
    "train.gradient_checkpointing: true; "
    "compress and memory add go on with --resume from its last checkpoint."
)
COMMANDS = {
    "compress": "Learn masks and memories from a recipe.",
    "export": "Slice a finished run into artefacts.",
    "evaluate": "Perplexity of a run, an export or a plain model.",
    "generate": "Complete a prompt with a memory.",
    "inspect": "Say what an artefact is and what can load it.",
    "verify": "Check digests, shapes and golden logits of an export.",
    "memory": "Add, list, remove and compact the memories of an export.",
    "recipe": "List, show and validate recipes.",
}


class LazyGroup(click.Group):
    """Knows its commands by name and one line of help, and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __name__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near and name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name[:60]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="koffkit")
def cli() -> None:
    """Split a pretrained LLM into one lean shared backbone and small swappable memories, and ship both."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point `koffkit`; ends the process with the exit code of the contract."""
    context: dict[str, Any] = {}
    try:
        with cli.make_context("koffkit", list(sys.argv[1:] if arguments is None else arguments)) as root:
            context = root.meta
            cli.invoke(root)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130, context)
    except KoffkitError as error:
        _fail(str(error), error.exit_code, context)
    except MemoryError:
        _fail(OUT_OF_MEMORY, ResourceError.exit_code, context)
    except RuntimeError as error:  # torch's own, recognised without importing torch
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        _fail(OUT_OF_MEMORY, ResourceError.exit_code, context)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        _fail(
            f"{error.filename or 'disk'}: {error.strerror}; choose another --output.",
            ResourceError.exit_code,
            context,
        )
    sys.exit(0)


def _fail(text: str, code: int, context: dict[str, Any]) -> None:
    click.echo(f"Error: {text}", err=True)
    if context.get(_JSON_KEY):
        emit({"error": text, "exit_code": code})
    sys.exit(code)
