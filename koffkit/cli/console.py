"""What the user sees: progress and messages on stderr; results, or one JSON object with `--json`, on
stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from .draw import RichProgress, stdout
from .heartbeat import heartbeat
from .text import json_text, visible

_JSON_KEY = "koffkit.json"
ARGUMENTS = "koffkit.arguments"
"""Where the root context keeps the arguments of the command line."""


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--json`, which the error handler honours too."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
        if value:
            context.find_root().meta[_JSON_KEY] = True
        return value

    option = click.option(
        "--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="One JSON object on stdout."
    )
    return option(command)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """A line on stdout or stderr."""
    if beating := heartbeat():
        beating.printed()
    click.echo(visible(text), err=err, nl=nl)


def emit(result: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Print the JSON object of a command. All JSON on stdout goes through here."""
    sys.stdout.write(json_text(result, indent=indent) + "\n")


def print_results(results: Mapping[str, Any]) -> None:
    """Print the results of the stages `evaluate` and `route` of a run."""
    from ..report.table import results_table, retention_table, router_summary, router_table

    console = stdout()
    if "domains" in results:
        console.print(results_table(results))
    if "retention" in results:
        console.print(retention_table(results["retention"]))
    if "router" in results:
        console.print(router_table(results["router"]))
        console.print(router_summary(results["router"]))


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """Print a verdict as `--json` has it: what was won, and loudly what to be warned of."""
    console = stdout()
    for line in verdict["lines"]:
        console.print(line, markup=False)
    for warning in verdict["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False)


KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What limits the kernels that torch on a CPU compiles for products of matrices in half precision and keeps:
one for every number of rows, up to a megabyte each, and by default 1,024 in each of two caches."""
KERNELS = 128
"""Enough for every batch of a server that decodes; what prompts of all lengths add is let go again."""


def quiet_libraries() -> None:
    """Import the libraries, which takes seconds, with limits that they read then, and silence their progress
    bars and notices."""
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    progress = RichProgress()
    progress.keep_alive()
    if "torch" not in sys.modules:
        progress.message("loading torch and transformers")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


__all__ = [
    "ARGUMENTS",
    "RichProgress",
    "emit",
    "json_option",
    "print_results",
    "print_verdict",
    "quiet_libraries",
    "say",
    "stdout",
]
