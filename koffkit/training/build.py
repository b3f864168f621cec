"""Building the context of stages from a recipe: data, device, teacher and student."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.weights import vocab_size
from ..checkpoint.files import load_tokenizer
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError
from ..masks.convert import as_gates
from ..masks.file import load_masks
from ..parallel import lean, ranks, sharding
from ..planning.plan import budget_of, check_layers, gated_layers
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe
from ..run.folder import RunFolder
from .context import Context

if TYPE_CHECKING:
    from ..data.corpus import Corpus
    from ..model.student import Student

DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"


def build_context(
    loaded: LoadedRecipe,
    run: RunFolder,
    base: ModelSpec,
    progress: Progress,
    backbone: Path | None = None,
    device: str | None = None,
    masks: Path | None = None,
    shard: bool = False,
) -> Context:
    """Tokenise the text, load the model, and give it the gates and memories of the recipe.

    Args:
        loaded: the recipe.
        run: the run folder.
        base: the unpruned base.
        progress: where to report.
        backbone: a sliced backbone to learn memories for, taught by `base`; None: the student is `base`.
        device: where to train; None: the accelerator of the machine, or the CPU without one.
        masks: what the backbone was sliced by, if that is known.
        shard: divide the frozen weights among the processes of the run.

    Raises:
        ResourceError: the device is not available.
        DataError: a source of text cannot be used.
        UsageError: a tracker is not installed.
        IntegrityError: what transformers loads is not what koffkit reads.
    """
    from ..model.student import Student
    from .waiting import PLACE

    recipe = loaded.recipe
    tokenizer = load_tokenizer(base.folder, trust_remote_code=recipe.base.trust_remote_code)
    corpus = _corpus(loaded, run, base, tokenizer, progress)
    accelerator = make_accelerator(recipe, run, device)
    if recipe.train.page_memories and accelerator.device == PLACE:
        raise UsageError(
            "train.page_memories: true, but the CPU computes, and memories would wait where they are; take "
            "it out, or choose an accelerator with --device."
        )
    progress.message(f"loading {recipe.base.model}")
    if shard:
        lean.free_at_once()
    model = _load(base, recipe, progress, shard)
    spec, teacher = base, None
    if backbone is not None:
        teacher = accelerator.prepare_model(Student(model, base, None, None), evaluation_mode=True)
        spec = ModelSpec.open(backbone, family=base.arch.model_type)
        model = _load(spec, recipe, progress, shard)
    student = _placed(make_student(recipe, spec, model, gated=backbone is None), accelerator, progress, shard)
    _start_memories(recipe, student, corpus)
    budget = budget_of(recipe, base)
    sliced_by = None if masks is None else as_gates(load_masks(masks, base))
    parts = (loaded, run, corpus, tokenizer, accelerator, student, budget, progress)
    return Context(*parts, teacher=teacher, backbone_masks=sliced_by)


def _placed(student: Student, accelerator: Any, progress: Progress, shard: bool) -> Student:
    """The student on its device, with `shard` divided among the processes of the run."""
    if shard:
        size = sharding.bytes_at_hand(student.model)
        learned = [] if student.memories is None else student.memories.lora_parameters()
        sharding.shard(student.model.model, student.decoder_layers, learned)
        sharding.to_device(student, accelerator.device)
        own = sharding.bytes_at_hand(student.model)
        progress.message(f"of {size:,} bytes of model and LoRA, each process holds about {own:,}")
    # evaluation_mode: no wrapper adds up gradients, the loop does
    placed: Student = accelerator.prepare_model(student, device_placement=not shard, evaluation_mode=True)
    return placed


def _corpus(
    loaded: LoadedRecipe, run: RunFolder, base: ModelSpec, tokenizer: Any, progress: Progress
) -> Corpus:
    from ..data.corpus import prepare
    from ..data.prepared import prepared

    with ranks.leader_first():
        if not ranks.leads():
            return prepared(loaded.recipe, tokenizer, run.data_dir)
        return prepare(
            loaded,
            tokenizer,
            run.data_dir,
            progress.message,
            warn=progress.warn,
            vocab_size=vocab_size(base.config),
            begun=run.metrics_file.is_file(),
        )


def _load(spec: ModelSpec, recipe: Recipe, progress: Progress, shard: bool) -> Any:
    """A frozen model, once it is known to be what its files hold."""
    from ..model.loaded import require_same_tensors
    from ..model.student import load_frozen

    trusted = recipe.base.trust_remote_code
    model = load_frozen(str(spec.folder), recipe.base.dtype, trust_remote_code=trusted, lean=shard)
    require_same_tensors(model, spec, progress, lean=shard)
    return model


def _start_memories(recipe: Recipe, student: Student, corpus: Corpus) -> None:
    """Initialise KV memories of `init: text` from the training text of each domain; a resumed run overwrites
    them from its checkpoint."""
    from ..model.text_memory import start_from_text

    kv, memories = recipe.memory.kv, student.memories
    if kv is not None and kv.init == "text" and memories is not None:
        for domain in memories.domains:
            start_from_text(
                memories, student.model, domain, corpus.train[domain].tokens[: kv.tokens].tolist()
            )


def make_student(recipe: Recipe, spec: ModelSpec, model: Any, *, gated: bool) -> Student:
    """A frozen model with the gates and memories of a recipe.

    Args:
        spec: the spec of this model.
        model: the transformers model.
        gated: whether masks are still to be learned.
    """
    from ..method.gates import initial_log_alpha
    from ..model.gating import Gates, gate_points
    from ..model.memory import Memories
    from ..model.student import Student
    from ..model.top_k_gates import TopKGates

    mask, memory = recipe.mask, recipe.memory
    gates: Gates | None = None
    if gated:
        points = gate_points(spec.arch, mask.structure_names, mask.placement)
        start = initial_log_alpha(mask.init_open, mask.start_temperature)
        if mask.gates == "top_k":
            gates = TopKGates(spec, points, budget_of(recipe, spec))
        else:
            gated_in = gated_layers(recipe, spec.num_layers)
            gates = Gates(spec, points, start, mask.start_temperature, gated_in)
    layers = check_layers(recipe, spec.num_layers)
    memories = Memories(model, spec.widths, recipe.domain_names, layers, memory.lora, memory.kv, recipe.seed)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, spec, gates, memories)


def make_accelerator(recipe: Recipe, run: RunFolder, device: str | None = None) -> Any:
    """Set up device placement, precision and trackers.

    Args:
        recipe: its `train` says with which precision and trackers.
        run: where trackers keep their files.
        device: `cpu`, `cuda:1`, ...; None: as accelerate chooses.

    Raises:
        UsageError: a tracker is not installed, or there is no such kind of device.
        ResourceError: the device is not available.
    """
    from accelerate import Accelerator

    trackers = recipe.train.trackers
    _check_trackers(trackers)
    with _device_of_accelerate(None if ranks.together() else device) as on_cpu:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=recipe.train.precision,
            log_with=trackers or None,
            project_dir=str(run.path),
        )
    if trackers:
        accelerator.init_trackers(recipe.name)
    return accelerator


@contextmanager
def _device_of_accelerate(device: str | None) -> Iterator[bool]:
    """Let an Accelerator made in the block use `device`; yields whether that is the CPU.

    accelerate keeps one state per process, which would impose precision and device of this run on the next;
    it takes a device from the environment alone.
    """
    from accelerate.state import AcceleratorState

    from ..devices import find_device

    AcceleratorState._reset_state(reset_partial_state=not ranks.together())
    if device is None:
        yield False
        return
    chosen, before = find_device(device), os.environ.get(DEVICE_VARIABLE)
    os.environ[DEVICE_VARIABLE] = str(chosen)
    try:
        yield chosen.type == "cpu"
    finally:
        if before is None:
            del os.environ[DEVICE_VARIABLE]
        else:
            os.environ[DEVICE_VARIABLE] = before


def _check_trackers(names: list[str]) -> None:
    """Refuse trackers that are not installed; accelerate would silently drop them."""
    from accelerate.tracking import get_available_trackers

    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise UsageError(
                f"train.trackers: {name!r} is not installed or not known to accelerate; pip install it, or "
                "remove it."
            )
