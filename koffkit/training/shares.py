"""How the sequences of a step are divided among the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..parallel import ranks
from ..recipe.schema import Recipe
from ..recipe.training import Training


@dataclass(frozen=True)
class Share:
    """What one process computes of one part of a step.

    Args:
        part: of gradient accumulation.
        rows: of the part's batch.
        of: how many rows the part has in all.
    """

    part: int
    rows: slice
    of: int

    @property
    def whole(self) -> bool:
        """Whether it is all of the part."""
        return self.rows == slice(0, self.of)

    @property
    def fraction(self) -> float:
        """Of the part, 1.0 for all of it."""
        rows: int = self.rows.stop - self.rows.start
        return rows / self.of


def shares_of(parts: int, batch_size: int, rank: int, size: int) -> list[Share]:
    """The consecutive sequences of a step that a process computes; those of all processes make up the step.

    Args:
        parts: batches in a step (`train.gradient_accumulation`).
        batch_size: sequences in a batch.
        rank: of the process.
        size: how many processes there are.
    """
    first, last = (parts * batch_size * place // size for place in (rank, rank + 1))
    shares = []
    for part in range(parts):
        low, high = (min(max(row - part * batch_size, 0), batch_size) for row in (first, last))
        if low < high:
            shares.append(Share(part, slice(low, high), batch_size))
    return shares


def own_shares(recipe: Recipe, options: Training, *, retention: bool) -> list[Share]:
    """Those of this process in a step of a stage.

    Args:
        retention: in a step with retention text.
    """
    general = recipe.distill.retention_batch_size if retention else None
    batch_size = general or options.batch_size
    return shares_of(recipe.train.gradient_accumulation, batch_size, ranks.rank(), ranks.size())


def require_whole(stage: str, options: Training, shard: bool) -> None:
    """Refuse to train weights of which every process has a part.

    Args:
        stage: the stage's name. options: its options.
        shard: the processes divide the weights.

    Raises:
        UsageError: the stage trains the backbone.
    """
    if shard and options.lr.backbone is not None:
        raise UsageError(
            f"stages.{stage}.lr.backbone: {options.lr.backbone:g} trains weights that --shard divides "
            "among the processes; set it to null, or leave --shard out, which gives each the whole model."
        )


def require_rows(recipe: Recipe, stage: str, options: Training, *, in_step: bool) -> None:
    """Refuse more processes than a step has sequences.

    Args:
        in_step: the processes divide the weights, so that all must go through the model equally often.

    Raises:
        UsageError: a process would have nothing to do, or less than another.
    """
    parts, fields = recipe.train.gradient_accumulation, {f"stages.{stage}.batch_size": options.batch_size}
    if recipe.retention is not None and recipe.distill.retention_batch_size is not None:
        fields["distill.retention_batch_size"] = recipe.distill.retention_batch_size
    for field, rows in fields.items():
        if rows * parts < ranks.size():
            raise UsageError(
                f"{field}: {rows} x train.gradient_accumulation: {parts} are {rows * parts} sequences a "
                f"step, too few for {ranks.size()} processes; start at most {rows * parts}, or raise either."
            )
        passes = {len(shares_of(parts, rows, rank, ranks.size())) for rank in range(ranks.size())}
        if in_step and len(passes) > 1:
            raise UsageError(
                f"{field}: {rows} x train.gradient_accumulation: {parts} give {ranks.size()} processes "
                f"{min(passes)} to {max(passes)} batches each, which --shard cannot do; make "
                "gradient_accumulation a multiple of the processes, or 1."
            )
