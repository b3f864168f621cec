"""A finished run, loaded so that its models can be asked: the base, its masks and, where wanted, memories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, KV_MEMORY, MEMORY_FILE
from ..checkpoint.files import load_tokenizer
from ..data.corpus import Corpus, prepared
from ..devices import find_device
from ..errors import UsageError
from ..masks.convert import as_gates
from ..model.memory import Memories
from ..model.student import Student, load_frozen
from ..progress import Progress
from ..recipe.schema import Recipe
from ..run.finished import FinishedRun
from ..storage.tensors_file import read_tensors
from ..training.build import make_student

READ = {MEMORY_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, KV_MEMORY}
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
    """
    memories = opened.student.memories
    if memories is None or not memories.exist:
        return None
    for domain, folder in opened.run.memories.items():
        unknown = sorted(path.name for path in folder.iterdir() if path.name not in READ)
        if unknown:
            raise UsageError(f"{folder}: {unknown[0]}: completions with such memories are not supported.")
        _load_memory(opened.student.model, memories, domain, folder)
    return memories


def _load_memory(model: Any, memories: Memories, domain: str, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    if (folder / ADAPTER_WEIGHTS).is_file():
        tensors = read_tensors(folder / ADAPTER_WEIGHTS)
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
        set_peft_model_state_dict(model, state, adapter_name=memories.slot(domain))
    if (folder / KV_MEMORY).is_file():
        tensors = read_tensors(folder / KV_MEMORY)
        layers = sorted({int(name.split(".")[1]) for name in tensors})
        memories.set_kv(
            domain, {i: (tensors[f"layers.{i}.key"], tensors[f"layers.{i}.value"]) for i in layers}
        )
