"""The command line: parses, calls, prints. Every command lives in a module of its own, imported when it is
used."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import time
import traceback
from typing import Any

import click

from ..errors import KoffkitError, PeerLost, UsageError, near_name
from ..parallel import place as this_process
from .console import _JSON_KEY, ARGUMENTS, emit, say
from .failures import as_koffkit_error
from .verbosity import of, with_verbosity

PLATFORMS = ("linux", "darwin")
COMPLETION = "_KOFFKIT_COMPLETE"
COMMANDS = {
    "compress": "Learn masks and memories from a recipe.",
    "export": "Slice a finished run into artefacts.",
    "evaluate": "Perplexity of a run, an export or a plain model.",
    "generate": "Complete a prompt with a memory.",
    "chat": "Talk to an export; the memory can change in between.",
    "serve": "Serve an export to clients of OpenAI's API.",
    "inspect": "Say what an artefact is and what can load it.",
    "report": "One HTML file about a run or an export.",
    "verify": "Check digests, shapes and golden logits of an export.",
    "memory": "Add, list, replace, remove and compact the memories of an export.",
    "ablate": "Run a recipe and its baselines, and print one table.",
    "sweep": "Run a recipe over values of its fields, and print one table.",
    "restore": "Make the unpruned base again from an export that kept what was removed.",
    "push": "Upload an export to the hub.",
    "recipe": "List, show and validate recipes.",
    "doctor": "Say what this machine has that koffkit needs.",
}


SHARED = ("compress",)
"""Commands that several processes can work on together."""
SILENCE = 5.0
"""Seconds that a process leaves to the first one to say what went wrong, which mostly is the same; then the
launcher ends all."""


class LazyGroup(click.Group):
    """Knows its commands by name and one line of help, and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return with_verbosity(importlib.import_module(f".{cmd_name}", __name__).command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}; {near_name(args[0], COMMANDS)}")
        if this_process.num_processes() > 1 and args and args[0] not in (*SHARED, "--help", "-h"):
            raise UsageError(
                f"koffkit {args[0]} works in one process; start it without torchrun or accelerate launch (if "
                f"there is none, unset {', '.join(this_process.NAMES)})."
            )
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
    _complete_in_the_shell()
    context: dict[str, Any] = {}
    try:
        with cli.make_context("koffkit", list(sys.argv[1:] if arguments is None else arguments)) as root:
            context = root.meta
            context[ARGUMENTS] = list(sys.argv[1:] if arguments is None else arguments)
            settings = of(context)
            settings.mute = settings.quiet = this_process.rank() > 0
            _check_platform()
            cli.invoke(root)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        if of(context).mute:
            time.sleep(SILENCE)
        written = io.StringIO()
        error.show(written)
        say(written.getvalue(), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130, context)
    except KoffkitError as error:
        _fail(str(error), error.exit_code, context, error)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        known = as_koffkit_error(error)
        if known is None:
            if of(context).mute:
                time.sleep(SILENCE)
            of(context).log_error(str(error), error)
            raise
        _fail(str(known), known.exit_code, context, error)
    sys.exit(0)


def _complete_in_the_shell() -> None:
    """Answer a request for shell completion, which click passes in an environment variable; click's own
    `main`, which is not used here, would do this."""
    instruction = os.environ.get(COMPLETION)
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "koffkit", COMPLETION, instruction))


def _check_platform() -> None:
    """Refuse a system without the file locks and renames that runs and exports need.

    Raises:
        UsageError: this is neither Linux nor macOS.
    """
    if sys.platform not in PLATFORMS:
        raise UsageError(
            f"koffkit does not run on {sys.platform}: runs and exports need the file locks and renames of "
            "Linux and macOS; on Windows use WSL."
        )


def _fail(text: str, code: int, meta: dict[str, Any], error: BaseException | None = None) -> None:
    settings = of(meta)
    if isinstance(error, PeerLost) and this_process.by_own_launcher():
        sys.exit(code)  # the launcher knows more
    if settings.mute:
        time.sleep(SILENCE)
        text = f"process {this_process.rank()}: {text}"
    with contextlib.suppress(OSError):
        settings.log_error(text, error)
    if settings.verbose and error is not None:
        say("".join(traceback.format_exception(error)), err=True)
    say(f"Error: {text}", err=True)
    if meta.get(_JSON_KEY):
        emit({"error": text, "exit_code": code})
    sys.exit(code)
