"""Options of `koffkit serve` that have no effect as the command is given: they are refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping

import click
from click.core import ParameterSource

from ..errors import UsageError

NO_WEIGHTS = "no weights are loaded here; give the other server its own option"
NO_MEMORIES = "no memories are loaded here; leave it out"
BEFORE_ANOTHER = {
    "max_batch": "the other server computes the rows; give it its own limit (llama-server -np, vllm serve "
    "--max-num-seqs)",
    "rescan": "the memories are those there were at the start; start the other server and this one again "
    "after a change",
    "allow_admin": "the memories are those there were at the start; add them to the run, export again, and "
    "start both servers again",
    "memory_budget": NO_MEMORIES,
    "host_memory_budget": NO_MEMORIES,
    "device": NO_WEIGHTS,
    "dtype": NO_WEIGHTS,
    "verify": "no weights are loaded here; check the export with `koffkit verify`",
}
"""With `--upstream`, by parameter: why, and the remedy."""
BEFORE_LLAMA = {
    "upstream_backbone": "llama-server knows no models by name, `none` is the bare backbone all the same; "
    "leave it out",
}
BEFORE_VLLM = {
    "max_queue": "requests are passed on at once and wait there; leave it out",
    "max_tokens": "what a client asks for is passed on as it is; give the other server its own limit (vllm "
    "serve --max-model-len)",
}
ALONE = {
    "upstream_backbone": "nobody else answers; give --upstream, too, or leave it out",
    "upstream_export": "nobody else answers; give --upstream, too, or leave it out",
}


def require_effect(context: click.Context, *, upstream: bool, llama: bool) -> None:
    """Refuse the first option on the command line that has no effect.

    Args:
        context: of the command.
        upstream: another server answers.
        llama: it is llama-server.

    Raises:
        UsageError: with the option, why it has none, and the remedy.
    """
    if not upstream:
        _refuse(context, ALONE, "without --upstream")
    elif llama:
        _refuse(context, BEFORE_ANOTHER | BEFORE_LLAMA, "before llama-server (--upstream)")
    else:
        _refuse(context, BEFORE_ANOTHER | BEFORE_VLLM, "before another server of OpenAI's API (--upstream)")


def _refuse(context: click.Context, idle: Mapping[str, str], where: str) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name in idle:
            raise UsageError(f"{parameter.opts[0]}: has no effect {where}: {idle[name]}.")
