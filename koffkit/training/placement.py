"""Which layers carry memory, learned: the layer whose memory is missed least gives it up, until the rest fits
the bytes (the paper's open question; ours).

All layers carry memory in `learn_masks`; the loss is then that of training, on training text, under the
finished mask. Backward elimination sees what one gate a layer does not: that two layers can stand in for each
other, so that either may go but not both.
"""

from __future__ import annotations

import torch

from ..errors import Interrupted
from ..masks.masks import Masks
from ..masks.slicing import widths_of
from ..planning.plan import BYTES, layer_memory_parameters
from .loop import DistillationLoop

BATCHES = 2
"""Per domain and round."""


@torch.no_grad()
def layers_worth_keeping(loop: DistillationLoop, masks: Masks, most_bytes: int) -> list[int]:
    """The layers whose memories stay; one memory then takes at most `most_bytes`, in float32 at the widths of
    the backbone.

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
        kept.remove(min(losses, key=lambda layer: losses[layer]))
        progress.advance("placement", len(sizes) - len(kept), {})
    return kept


def losses_without(loop: DistillationLoop, kept: list[int]) -> dict[int, float]:
    """The loss, summed over batches, when one more of the `kept` layers has no memory, by that layer."""
    context, memories = loop.context, loop.context.student.memories
    assert memories is not None
    losses = dict.fromkeys(kept, 0.0)
    for domain in context.corpus.domains:
        for visit in range(BATCHES):
            batch, loss_mask = loop.batch_of(domain, visit)
            for layer in kept:
                if context.stop():
                    raise Interrupted(
                        "interrupted while choosing layers for the memories; continue with the same command "
                        "and --resume."
                    )
                memories.keep_layers([other for other in kept if other != layer])
                losses[layer] += loop.distillation(batch, loss_mask, domain, context.masks)[1]["loss"]
    return losses
