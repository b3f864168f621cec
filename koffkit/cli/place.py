"""Options of commands that run a model: device, dtype, batch size, and how closely its files are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..devices import DTYPES, require_kind


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--device`; its availability is checked once torch is loaded."""

    def known(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
        if name is not None:
            require_kind(name)
        return name

    option = click.option(
        "--device",
        callback=known,
        help="cpu, cuda, cuda:1, mps, ...  [default: the accelerator of the machine, or cpu]",
    )
    return option(command)


def verify_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--verify`."""
    option = click.option(
        "--verify",
        is_flag=True,
        help="Read every byte of the backbone's weights before use, not samples alone.",
    )
    return option(command)


def dtype_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--dtype`, with `auto` for the dtype of the stored weights."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", *DTYPES]),
        default=default,
        show_default=True,
        help="Type of the weights; auto: as they are stored.",
    )


def batch_size_option(default: int, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--batch-size`.

    Args:
        what: what a batch is made of, for the help.
    """
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help=f"{what} at a time.",
    )
