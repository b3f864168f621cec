"""Learned placement of memories: the layer whose memory matters least loses it, until the rest fits the bytes
(left open by the paper; ours).

All layers carry memory in `learn_masks`; the loss is then that of training, on training text, under the
finished mask. Unlike one gate per layer, backward elimination notices that two layers can replace each other,
so that either may lose its memory but not both.
"""

from __future__ import annotations

import torch

from ..errors import Interrupted
from ..masks.masks import Masks
from ..masks.slicing import widths_of
from ..parallel import ranks
from ..planning.peak import BYTES
from ..planning.plan import layer_memory_parameters
from .loop import DistillationLoop

BATCHES = 2
"""Batches per domain and round."""


@torch.no_grad()
def layers_worth_keeping(loop: DistillationLoop, masks: Masks, most_bytes: int) -> list[int]:
    """The layers whose memories stay; one memory then takes at most `most_bytes`, in float32 at the widths of
    the backbone.

    Args:
        loop: the loop that trained the memories.
        masks: the finished masks.
        most_bytes: the most bytes of one memory.

    Raises:
        Interrupted: SIGINT.
    """
    student, progress = loop.context.student, loop.context.progress
    sizes = [
        layer_memory_parameters(loop.recipe, student.spec.shape, widths) * BYTES["float32"]
        for widths in widths_of(student.spec, masks)
    ]
    kept = list(range(student.spec.num_layers))
    progress.start("placement", len(kept) - 1, 0)
    while sum(sizes[layer] for layer in kept) > most_bytes and len(kept) > 1:
        losses = losses_without(loop, kept)
        kept.remove(ranks.of_leader(min(losses, key=lambda layer: losses[layer])))
        progress.advance("placement", len(sizes) - len(kept), {})
    return kept


def losses_without(loop: DistillationLoop, kept: list[int]) -> dict[int, float]:
    """The loss, summed over batches, without the memory of one of the `kept` layers, by that layer."""
    context, memories = loop.context, loop.context.student.memories
    assert memories is not None
    losses = dict.fromkeys(kept, 0.0)
    for domain in context.corpus.domains:
        for visit in range(BATCHES):
            batch = loop.batch_of(domain, visit)
            for layer in kept:
                if context.stop():
                    raise Interrupted(
                        "interrupted while choosing layers for the memories; continue with the same command "
                        "and --resume."
                    )
                memories.keep_layers([other for other in kept if other != layer])
                losses[layer] += loop.distillation(batch, domain, context.masks)[1]["loss"]
    return losses
