"""What an export will write; all that llama.cpp cannot do is refused here, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ...errors import UsageError
from ...progress import Progress
from ...run.finished import FinishedRun
from ..toolkit import MergePlan, plan_merge
from .options import GgufOptions
from .target import OTHER_ROUTE, Target, target_of
from .tokenizer import FALLBACK, Vocabulary, read_vocabulary


@dataclass(frozen=True, kw_only=True)
class GgufPlan:
    """What is exported.

    Attributes:
        run: the run; of a merged memory, with the widths of the result.
        options: as given.
        target: what the backbone becomes.
        vocabulary: its tokenizer.
        merge: the memory that goes into the weights; None: there is none.
        has_kv: whether state files are written.
    """

    run: FinishedRun
    options: GgufOptions
    target: Target
    vocabulary: Vocabulary
    merge: MergePlan | None
    has_kv: bool

    @property
    def domains(self) -> list[str]:
        """The memories that are written, whole or in part."""
        return list(self.run.memories) if self.merge is None else [self.merge.memory.domain]


def plan_gguf(run: FinishedRun, options: GgufOptions, progress: Progress) -> GgufPlan:
    """Check that llama.cpp can do what this run learned.

    Args:
        run: the run to export.
        options: what to write.
        progress: told of what will not be as it was.

    Raises:
        UsageError: it cannot, or the extra is not installed; the text has the remedy.
        DataError: the base's tokenizer does not load.
    """
    if find_spec("gguf") is None:
        raise UsageError("--format gguf: the extra is not installed; pip install 'koffkit[gguf]'.")
    merge = None if options.merge is None else plan_merge(run, options.merge)
    if merge is None:
        _require_no_neurons(run)
    has_kv = options.kv and run.recipe["memory"]["kv"] is not None
    if has_kv:
        _require_every_layer(run)
    run = run if merge is None else merge.run
    target = target_of(run)
    vocabulary = read_vocabulary(run.spec.folder, int(target.config["vocab_size"]), options.pre_tokenizer)
    plan = GgufPlan(
        run=run, options=options, target=target, vocabulary=vocabulary, merge=merge, has_kv=has_kv
    )
    if has_kv:
        vocabulary.sentinels(len(plan.domains))
    _warn(plan, progress)
    return plan


def _require_no_neurons(run: FinishedRun) -> None:
    if run.recipe["memory"].get("neurons") is not None:
        raise UsageError(
            "--format gguf: memory.neurons: llama.cpp has no place for restored neurons beside the weights; "
            f"make them part of the weights with --merge NAME (there is {', '.join(run.memories)}), or "
            f"{OTHER_ROUTE}."
        )


def _require_every_layer(run: FinishedRun) -> None:
    layers, count = run.state.memory_layers, run.spec.num_layers
    if len(layers) != count:
        raise UsageError(
            f"--format gguf: memory.layers: KV memories are in {len(layers)} of {count} layers; llama.cpp's "
            "cache has the same tokens in every layer. Compress with memory.layers: all, or leave KV "
            "memories out with -o kv=false."
        )


def _warn(plan: GgufPlan, progress: Progress) -> None:
    """Tell what will be different in llama.cpp."""
    if not plan.vocabulary.recognised:
        progress.warn(
            "tokenizer: koffkit does not know llama.cpp's name for how it splits text, and writes "
            f"{FALLBACK!r}; text may be split differently there. Name it with -o pre_tokenizer=NAME, or send "
            "token ids."
        )
    window = plan.target.window
    if window is not None and window < int(plan.target.config["max_position_embeddings"]):
        progress.warn(
            f"sliding_window: {window}; llama.cpp has none for this family, so the file's context ends there."
        )
    if plan.run.recipe["memory"]["kv"] is not None and not plan.has_kv:
        progress.warn(
            "KV memories are left out (kv=false); figures of whole memories do not hold for this export."
        )
