"""The context of a stage: model, data, device and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn

from ..data.corpus import Corpus
from ..errors import Interrupted
from ..masks.convert import as_masks
from ..masks.file import save_masks, save_scores
from ..masks.masks import Masks, kept_counts
from ..masks.repair import Repair
from ..method.budget import Budget
from ..method.losses.base import Targets
from ..model.batch import Batch
from ..model.gating import GateValues
from ..model.lower_layers import LowerLayers
from ..model.student import Student
from ..model.top_k_gates import TopKGates
from ..parallel import ranks
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..run.folder import RunFolder
from .checkpoint import Checkpoint, restore
from .teaching import TeacherCache

T = TypeVar("T")
BACKBONE = "backbone."
"""What the names of the backbone's tensors begin with in a checkpoint."""


@dataclass
class Context:
    """Everything a stage may use.

    Args:
        masks: hard gates, [L, U] by structure; None until a stage has learned them.
        learned: fields of `run.json` that stages have settled.
        teacher: the unpruned model, if the student is a sliced backbone; None: the student with all gates off
            is the teacher.
        backbone_masks: the hard gates that a student was sliced by, if it is sliced and they are known.
        backbone: weights of the backbone that train now, by parameter name; empty: it is frozen.
        cache: what is known of the teacher; None: it is asked every time.
        shared: the folder for what several runs of a study compute alike; None: nothing is shared.
    """

    loaded: LoadedRecipe
    run: RunFolder
    corpus: Corpus
    tokenizer: Any
    accelerator: Accelerator
    student: Student
    budget: Budget
    progress: Progress
    stop: Callable[[], bool] = lambda: False
    masks: dict[str, Tensor] | None = None
    results: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Any] = field(default_factory=dict)
    teacher: Student | None = None
    backbone_masks: dict[str, Tensor] | None = None
    shared: Path | None = None
    cache: TeacherCache | None = None
    backbone: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def final_masks(self) -> dict[str, Tensor] | None:
        """What the backbone lacks, hard gates [L, U] by structure, whether the student is sliced or gated."""
        return self.masks if self.teacher is None else self.backbone_masks

    def unpruned(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, D] of the unpruned model; no structure prunes the head, so the student's
        `head` fits."""
        hidden: Tensor = (self.teacher or self.student)(input_ids, positions=positions)
        return hidden

    def taught(self, batch: Batch) -> Tensor | Targets:
        """What the student learns from on a batch: `unpruned`, or what the cache knows of it."""

        def unpruned() -> Tensor:
            return self.unpruned(batch.ids, batch.positions)

        if self.cache is None or batch.numbers is None:
            return unpruned()
        return self.cache.targets(batch, unpruned, self.student.head)

    def lower_layers(self, gate_values: GateValues | None, *, sampled: bool) -> LowerLayers:
        """The layers in which `unpruned` and the student compute the same; see `Student.lower_layers`."""
        if self.teacher is not None:  # the student is sliced: another model
            return LowerLayers([])
        return self.student.lower_layers(gate_values, sampled=sampled)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint: the memories, what trains of the backbone, and the gates even when
        they no longer change, because the masks follow from them."""
        memories, gates = self.student.memories, self.student.gates
        tensors = {} if memories is None else memories.tensors()
        if gates is not None:
            tensors |= {f"gates.{name}": value for name, value in gates.log_alpha.items()}
        if isinstance(gates, TopKGates):
            tensors |= {f"scales.{name}": value for name, value in gates.scale.items()}
        return tensors | {f"{BACKBONE}{name}": value for name, value in self.backbone.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Copy the values of a checkpoint into the memories and the gates; what it has of the backbone is for
        the stage that trains it.

        Raises:
            IntegrityError: the checkpoint belongs to another recipe.
        """
        memories, wanted = self.student.memories, self.loaded.recipe.memory.neurons
        if memories is not None and wanted is not None:
            memories.read_neurons(checkpoint.tensors, self.accelerator.device, tuned=wanted.tuned)
        restore(checkpoint.without(BACKBONE), self.tensors(), self.run.checkpoints_dir)

    def set_masks(self) -> Masks:
        """Project the learned scores onto the budget, write both into the run, repair what the recipe wants
        repaired, and use it all from now on."""
        from .repair import make_repair

        masks = self.project_masks()
        self.use_repair(make_repair(self, masks))
        return masks

    def resume_repair(self, learned: dict[str, Any] | None) -> None:
        """Use the repair that the stage of a checkpoint made, if it made one."""
        from .repair import read_repair

        if learned is not None:
            self.learned["repair"] = learned
            self.use_repair(read_repair(self, learned))

    def use_repair(self, repair: Repair | None) -> None:
        """Compute with the repair's tensors whenever the student is pruned."""
        if repair is not None:
            self.student.repair(repair.tensors)

    def project_masks(self) -> Masks:
        """Project the learned scores onto the budget, write both into the run, and use the masks."""
        gates = self.student.gates
        assert gates is not None
        ranks.take_from_leader(gates.parameters())  # one mask, whatever each process rounded
        self.masks = gates.hard(self.budget)
        masks = as_masks(self.masks)
        if ranks.leads():
            save_scores(gates.scores(), self.run.scores_file)
            save_masks(masks, self.run.masks_file)
        self.learned["budget"] = self.budget.realised(kept_counts(masks)).to_json()
        return masks

    def keep_layers(self, layers: list[int]) -> None:
        """Settle which layers carry memory from now on."""
        layers = ranks.of_leader(layers)
        if self.student.memories is not None:
            self.student.memories.keep_layers(layers)
            self.learned["memory_layers"] = layers

    def restore(
        self, checkpoint: Checkpoint, layers: list[int], repair: dict[str, Any] | None = None
    ) -> None:
        """Restore a checkpoint, and what earlier stages had settled.

        Args:
            checkpoint: the checkpoint.
            layers: layers that carry memory.
            repair: what `run.json` says of the repair; None: there is none.

        Raises:
            IntegrityError: the checkpoint belongs to another recipe, or the repair is damaged.
        """

        self.load(checkpoint)
        if self.student.gates is not None:
            self.project_masks()
            self.resume_repair(repair)
            self.keep_layers(layers)


def watched(name: str, items: Sequence[T], context: Context) -> Iterator[T]:
    """Iterate over items with progress, and stop between two of them when the user asks to.

    Args:
        name: the work's name, for progress.
        items: the items.
        context: see `Context`.

    Raises:
        Interrupted: the user asked to stop.
    """
    context.progress.start(name, len(items), 0)
    for done, item in enumerate(items, 1):
        if context.stop():
            raise Interrupted(f"interrupted in {name}; continue with the same command and --resume.")
        yield item
        context.progress.advance(name, done, {})
