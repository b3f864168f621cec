"""`-q`, `-v` and `--log-file`: options of every command that control its messages."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import ResourceError

_KEY = "koffkit.verbosity"


@dataclass
class Verbosity:
    """How much is printed on stderr, and the file that everything is logged to."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    mute: bool = False
    """One of several processes, of which only the first speaks."""

    def log(self, text: str) -> None:
        """Append a line with the time to the log file, if there is one."""
        if self.log_file is None:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(f"{now} {line}\n" for line in text.splitlines()))

    def log_error(self, text: str, error: BaseException | None) -> None:
        """Log an error with its traceback."""
        where = "" if error is None else "".join(traceback.format_exception(error))
        self.log(f"Error: {text}\n{where}")


def verbosity() -> Verbosity:
    """The settings of the running command."""
    context = click.get_current_context(silent=True)
    return Verbosity() if context is None else of(context.find_root().meta)


def of(meta: dict[str, Any]) -> Verbosity:
    """The settings in the `meta` of a root context."""
    settings: Verbosity = meta.setdefault(_KEY, Verbosity())
    return settings


def with_verbosity(command: click.Command) -> click.Command:
    """Add the options to a command, or to every command of a group."""
    if not any(option.name == "quiet" for option in command.params):
        command.params += [
            click.Option(
                ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_quiet, help="Only warnings."
            ),
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_verbose,
                help="Also where an error came from.",
            ),
            click.Option(
                ["--log-file"],
                type=click.Path(path_type=Path, dir_okay=False),
                expose_value=False,
                callback=_log_file,
                help="Append all messages to this file.",
            ),
        ]
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_verbosity(inner)
    return command


def _quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    of(context.find_root().meta).quiet |= value


def _verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    of(context.find_root().meta).verbose |= value


def _log_file(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    settings = of(context.find_root().meta)
    if value is None or settings.mute:
        return
    settings.log_file = value
    try:
        settings.log(f"koffkit {context.command_path}")
    except OSError as error:
        settings.log_file = None
        raise ResourceError(f"--log-file {value}: {error.strerror}; choose another.") from None
