"""Memories that do not train at a step wait in the CPU's memory, with their AdamW moments
(`train.page_memories`; ours). A step trains one, so an accelerator needs room for one and not for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model.memory import Memories

PLACE = torch.device("cpu")
"""Where memories wait."""


@contextmanager
def others_waiting(
    memories: Memories | None, optimizer: torch.optim.Optimizer | None, home: torch.device
) -> Iterator[None]:
    """In the block, only the memory that was attached last is at `home`; afterwards all are.

    Args:
        memories: of all domains, none of which has gradients when another is attached; None: nothing waits.
        optimizer: what trains them, whose moments move along; None: nothing is trained.
        home: the device that computes.
    """
    if memories is None or optimizer is None:
        yield
        return
    slots = {memories.slot(domain): domain for domain in memories.domains}
    tensors: dict[str, list[Tensor]] = {domain: [] for domain in memories.domains}
    for name, tensor in memories.tensors().items():
        (slot,) = slots.keys() & set(name.split("."))
        tensors[slots[slot]].append(tensor)
    here: list[str] = []

    def bring(domain: str) -> None:
        if here == [domain]:
            return
        for other in here:
            _move(tensors[other], optimizer, PLACE)
        _move(tensors[domain], optimizer, home)
        here[:] = [domain]

    memories.attach(None)
    for waiting in tensors.values():
        _move(waiting, optimizer, PLACE)
    memories.before_attaching = bring
    try:
        yield
    finally:
        memories.attach(None)
        memories.before_attaching = None
        for own in tensors.values():
            _move(own, optimizer, home)


def _move(tensors: list[Tensor], optimizer: torch.optim.Optimizer, where: torch.device) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(where)
            state = optimizer.state.get(tensor, {})
            state |= {name: value.to(where) for name, value in state.items() if value.ndim}  # not the step
