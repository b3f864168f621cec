"""State of a module for the duration of one call, invisible to other threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_STATE: ContextVar[Mapping[nn.Module, Any] | None] = ContextVar("koffkit_per_call", default=None)


def of_this_call(module: nn.Module) -> Any:
    """The state that `for_this_call` gave `module` in this thread; None outside such a call."""
    state = _STATE.get()
    return None if state is None else state.get(module)


@contextmanager
def for_this_call(state: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Give modules their state until the block ends.

    Only for calls without a backward pass: autograd may recompute a checkpointed layer in a thread of its
    own, which sees nothing of this.
    """
    token = _STATE.set(state)
    try:
        yield
    finally:
        _STATE.reset(token)
