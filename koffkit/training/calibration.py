"""Text that the unpruned model is shown without learning from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.batch import Batch
from ..selectors import Calibration
from .context import Context, watched


def calibration(context: Context, label: str, batches: Sequence[Batch]) -> Calibration:
    """What a selector is given.

    Args:
        context: see `Context`.
        label: the work's name, for progress.
        batches: sequences.
    """
    device = context.accelerator.device

    def shown() -> Iterator[Batch]:
        for batch in watched(label, batches, context):
            yield batch.to(device)

    recipe = context.loaded.recipe
    return Calibration(
        student=context.student,
        batches=shown,
        autocast=context.accelerator.autocast,
        seed=recipe.seed,
        chunk_tokens=recipe.distill.chunk_tokens,
        warn=context.progress.warn,
    )


def calibration_batches(
    context: Context, count: int, batch_size: int, sources: Sequence[str | None]
) -> list[Batch]:
    """`count` batches of training text of every source, in turn.

    Args:
        context: see `Context`.
        count: batches of each.
        batch_size: sequences in a batch.
        sources: domains, and None for retention text.
    """
    recipe, corpus = context.loaded.recipe, context.corpus
    streams = [corpus.retention if domain is None else corpus.train[domain] for domain in sources]
    return [
        stream.batch(visit, batch_size, recipe.sequence_length, recipe.seed)
        for visit in range(count)
        for stream in streams
        if stream is not None
    ]
