"""A finished run, loaded so that its models can be asked: the base, its masks and, where wanted, memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..artefact.bundle import MemoryFolder
from ..artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, KV_MEMORY, MEMORY_FILE, NEURONS
from ..checkpoint.files import load_tokenizer
from ..data.corpus import Corpus
from ..data.prepared import prepared
from ..devices import find_device
from ..errors import UsageError
from ..masks.convert import as_gates
from ..masks.slicing import ADAPTER_PREFIX
from ..model.bundles import load_kv, load_neurons, load_tensors
from ..model.memory import Memories
from ..model.student import Student, load_frozen
from ..progress import Progress
from ..recipe.schema import Recipe
from ..run.finished import FinishedRun
from ..training.build import make_student

READ = {MEMORY_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, KV_MEMORY, NEURONS}
"""Files of a memory that `load_memories` reads."""


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A finished run with its models in memory.

    Args:
        student: without masks and memory the unpruned model.
        gates: its masks, 0 or 1, [L, U] by structure.
        corpus: the tokens it learned from.
        device: where token ids must be.
    """

    run: FinishedRun
    recipe: Recipe
    student: Student
    gates: dict[str, Tensor]
    corpus: Corpus
    tokenizer: Any
    device: torch.device


def open_run(
    run: FinishedRun, progress: Progress, *, device: str | None = None, dtype: str = "float32"
) -> OpenedRun:
    """Load the models of a run.

    Args:
        device: kind of device; None: the accelerator of the machine, or the CPU.
        dtype: of the weights.

    Raises:
        UsageError: the recipe is of another version of koffkit.
        DataError: the tokens that the run learned from are gone.
    """
    try:
        recipe = Recipe.model_validate(run.recipe)
    except ValidationError:
        raise UsageError(
            f"{run.path}: its recipe is of another version of koffkit; compress again to analyse it."
        ) from None
    place = find_device(device)
    progress.message(f"loading {recipe.base.model}")
    trusted = recipe.base.trust_remote_code
    tokenizer = load_tokenizer(run.spec.folder, trust_remote_code=trusted)
    model = load_frozen(str(run.spec.folder), dtype, trust_remote_code=trusted)
    student = make_student(recipe, run.spec, model, gated=False).to(place).eval()
    if student.memories is not None:
        student.memories.keep_layers(list(run.state.memory_layers))
    if run.repair is not None:
        student.repair(run.repair.tensors)
    return OpenedRun(
        run=run,
        recipe=recipe,
        student=student,
        gates={name: gates.to(place) for name, gates in as_gates(run.masks).items()},
        corpus=prepared(recipe, tokenizer, run.folder.data_dir),
        tokenizer=tokenizer,
        device=torch.device(place),
    )


def load_memories(opened: OpenedRun) -> Memories | None:
    """Give the student the memories that the run learned; None: it learned none.

    Raises:
        UsageError: a memory has a part that this does not read.
        IntegrityError: a memory does not fit the base.
    """
    memories = opened.student.memories
    if memories is None or not opened.run.memories:
        return None
    for domain, path in opened.run.memories.items():
        unknown = sorted(file.name for file in path.iterdir() if file.name not in READ)
        if unknown:
            raise UsageError(f"{path / unknown[0]}: a memory with such a part cannot be tried here.")
        _load_memory(opened, memories, MemoryFolder(path, domain))
    return memories


def _load_memory(opened: OpenedRun, memories: Memories, folder: MemoryFolder) -> None:
    from peft import set_peft_model_state_dict

    spec, model = opened.run.spec, opened.student.model
    if folder.adapter_file is not None:
        tensors = load_tensors(folder.adapter_file)
        state = {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in tensors.items()}
        set_peft_model_state_dict(model, state, adapter_name=memories.slot(folder.domain))
    kv = load_kv(folder, spec.widths)
    if kv:
        memories.set_kv(folder.domain, {layer: (pair.key, pair.value) for layer, pair in kv.items()})
    neurons = load_neurons(folder, spec.num_layers, spec.shape.hidden)
    if neurons:
        placed = {layer: part.to(opened.device) for layer, part in neurons.items()}
        memories.set_neurons(folder.domain, placed, tuned=False)
