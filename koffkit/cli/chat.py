"""`koffkit chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import KoffkitError, UsageError
from .console import RichProgress, quiet_libraries, say
from .generate import require_memory, sampling
from .place import device_option, dtype_option, verify_option

if TYPE_CHECKING:
    from ..runtime.conversation import Conversation

HELP = """/memory NAME   answer with this memory from now on: a name, auto (the router decides) or none
/memories      what there is
/reset         begin a new conversation
/quit          end; so does the end of the input"""


@click.command("chat")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--memory", help="auto (the router decides), none, or a domain.  [default: auto, or none]")
@click.option("--system", help="What the conversation begins with, for models that read such a message.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="Sample.  [default: 0, the likeliest token]"
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Sample from the likeliest tokens.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of sampling.")
@device_option
@dtype_option("auto")
@verify_option
def command(
    export: Path,
    memory: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    device: str | None,
    dtype: str,
    verify: bool,
) -> None:
    """Talk to EXPORT. The memory can change between two turns: `/memory NAME`; `/help` says what else there
    is. Ctrl-C stops an answer, not the conversation."""
    if not export.is_dir():
        raise UsageError(f"{export}: no such folder.")
    if memory is not None:
        require_memory(export, memory)
    quiet_libraries()
    from ..devices import find_device
    from ..runtime.conversation import Conversation
    from ..runtime.model import KoffModel

    RichProgress().message(f"loading {export}")
    model = KoffModel.from_pretrained(export, device=find_device(device), dtype=dtype, verify=verify)
    options = sampling(temperature, top_p, seed) | {"max_new_tokens": max_new_tokens}
    if memory is None:
        memory = "auto" if model.has_router else "none"
    talk = Conversation(model, None if memory == "none" else memory, system, options)
    say(f"memory {memory}; /help says what can be said beside text", err=True)
    if not talk.has_template:
        say("this model has no chat template: it continues the text", err=True)
    _converse(talk)


def _converse(talk: Conversation) -> None:
    """Until the input ends."""
    while True:
        try:
            line = _next_line()
        except (EOFError, KeyboardInterrupt):
            return
        if line.startswith("/"):
            if not _obeyed(talk, line):
                return
        elif line:
            try:
                _answer(talk, line)
            except KoffkitError as error:
                say(f"Error: {error} /reset begins a new conversation.", err=True)


def _next_line() -> str:
    if sys.stdin.isatty():
        import readline  # noqa: F401  # lines can be edited

        return input("> ").strip()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _obeyed(talk: Conversation, line: str) -> bool:
    """Do what a line with a slash says; False: end."""
    word, _, rest = line.partition(" ")
    name = rest.strip()
    if word in ("/quit", "/exit"):
        return False
    if word == "/reset":
        talk.forget()
    elif word == "/memories":
        say(
            ", ".join(["auto" if talk.model.has_router else "", "none", *talk.model.domains]).lstrip(", "),
            err=True,
        )
    elif word == "/memory" and name:
        try:
            talk.use(None if name == "none" else name)
        except UsageError as error:
            say(f"Error: {error}", err=True)
    else:
        say(HELP, err=True)
        return True
    say(f"memory {talk.memory or 'none'}, {len(talk.turns)} messages so far", err=True)
    return True


def _answer(talk: Conversation, line: str) -> None:
    memory, odds = talk.choose(line)
    sure = "" if odds is None else f", the router is {odds:.0%} sure"
    say(f"[{memory or 'no memory'}{sure}]", err=True)

    def write(text: str) -> None:
        say(text, nl=False)
        sys.stdout.flush()

    answer = talk.say(line, memory, write)
    say(" [stopped]" if answer.stopped else "")
