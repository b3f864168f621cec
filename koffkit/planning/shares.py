"""How the sequences of a step are divided among the processes of a run, and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
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


def require_divisible(recipe: Recipe, processes: int, *, shard: bool) -> None:
    """Refuse a run that so many processes cannot divide.

    Args:
        recipe: the recipe. processes: how many there are.
        shard: they divide the base's weights too, so that all must go through the model equally often.

    Raises:
        UsageError: in a step a process would have nothing to do, or, with `shard`, less than another; or
            with `shard` weights of the base train.
    """
    for stage in recipe.stages:
        if isinstance(stage.options, Training):
            _require_rows(recipe, stage.name, stage.options, processes, shard)
            if shard and stage.options.lr.backbone is not None:
                raise UsageError(
                    f"stages.{stage.name}.lr.backbone: {stage.options.lr.backbone:g} trains weights that "
                    "--shard divides among the processes; set it to null, or leave --shard out, which gives "
                    "each the whole model."
                )


def _require_rows(recipe: Recipe, stage: str, options: Training, processes: int, shard: bool) -> None:
    parts, fields = recipe.train.gradient_accumulation, {f"stages.{stage}.batch_size": options.batch_size}
    if recipe.retention is not None and recipe.distill.retention_batch_size is not None:
        fields["distill.retention_batch_size"] = recipe.distill.retention_batch_size
    for field, rows in fields.items():
        if rows * parts < processes:
            raise UsageError(
                f"{field}: {rows} x train.gradient_accumulation: {parts} are {rows * parts} sequences a "
                f"step, too few for {processes} processes; start at most {rows * parts}, or raise either."
            )
        passes = {len(shares_of(parts, rows, rank, processes)) for rank in range(processes)}
        if shard and len(passes) > 1:
            raise UsageError(
                f"{field}: {rows} x train.gradient_accumulation: {parts} give {processes} processes "
                f"{min(passes)} to {max(passes)} batches each, which --shard cannot do; make "
                "gradient_accumulation a multiple of the processes, or 1."
            )
