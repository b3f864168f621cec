"""The gate of the format: OpenVINO on what was written, against koffkit's own logits in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.manifest import Consumer
from ...errors import IntegrityError
from ..toolkit import Draft, ParityFigures
from ..toolkit.exact import ExactLogits, limit_of
from ..toolkit.machine import free_memory
from .run import Adapter, Exported, Pipeline
from .runtime import in_one_line, versions

if TYPE_CHECKING:
    from ...model.bundles import MemoryTensors

GREEDY = 64
"""Tokens that GenAI writes."""


def check_export(
    draft: Draft,
    checkpoint: Path,
    bundles: Sequence[MemoryTensors],
    adapters: Mapping[str, tuple[Path, Adapter]],
    figures: ParityFigures,
    weights: str,
) -> Consumer | None:
    """Run the IR in OpenVINO and GenAI's pipeline on it, bare and with every memory.

    The logits may differ by 10 times the float32 noise floor, and each of the tokens that GenAI chooses must
    be the one that float64 chooses, ties within that limit aside. Compressed weights are only measured.

    Args:
        draft: the export, with its backbone written.
        checkpoint: that it was made from.
        bundles: the memories.
        adapters: file and tensors of each memory, by name.
        figures: of the parity gate.
        weights: the option: `auto`, `int8` or `int4`.

    Returns:
        what was measured; None: this machine has not enough memory to run it, and a warning says so.

    Raises:
        IntegrityError: a logit or a token differs by more than rounding explains.
    """
    needed, free = 8 * draft.run.spec.num_parameters, free_memory()
    if needed > free:
        draft.progress.warn(
            f"format openvino: {needed / 1e9:.0f} GB are needed to run the export, {free / 1e9:.0f} GB are "
            "free; what was converted is as koffkit computes it, but OpenVINO was not run on it."
        )
        return None
    draft.progress.message("running OpenVINO on what was written")
    with draft.timed("openvino"), in_one_line("running what was written"):
        reference = ExactLogits(checkpoint, bundles)
        exact = weights == "auto"
        measured = _logits(draft.backbone, reference, adapters, figures, exact)
        greedy = _greedy(draft.backbone, reference, adapters, figures, exact)
    return Consumer(versions=versions(), weights=weights, **measured, greedy=greedy, tokens=GREEDY)


def _logits(
    folder: Path,
    reference: ExactLogits,
    adapters: Mapping[str, tuple[Path, Adapter]],
    figures: ParityFigures,
    exact: bool,
) -> dict[str, Any]:
    """Largest |difference| and KL of every condition."""
    import torch

    from ...parity.compare import NO_MEMORY

    exported = Exported(folder, [tensors for _, tensors in adapters.values()])
    tokens = figures.golden.tokens
    worst, kl = {}, {}
    for name in (None, *adapters):
        condition = name or NO_MEMORY
        expected = reference.logits(tokens, name)
        found = torch.from_numpy(
            exported.logits(tokens, None if name is None else adapters[name][1])
        ).double()
        worst[condition] = float((found - expected).abs().max())
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        kl[condition] = max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))
        limit = limit_of(figures, condition)
        if exact and not worst[condition] <= limit:
            raise IntegrityError(
                f"memory {condition}: in OpenVINO the logits differ by {worst[condition]:.3g} from koffkit's "
                f"(limit {limit:.3g}); {_otherwise()}"
            )
    return {"max_abs": worst, "kl": kl}


def _greedy(
    folder: Path,
    reference: ExactLogits,
    adapters: Mapping[str, tuple[Path, Adapter]],
    figures: ParityFigures,
    exact: bool,
) -> dict[str, int]:
    """How many of the tokens that GenAI writes float64 would choose, too, by condition."""
    import torch

    from ...parity.compare import NO_MEMORY

    pipeline = Pipeline(folder, {name: path for name, (path, _) in adapters.items()})
    tokens, equal = figures.golden.tokens, {}
    for name in (None, *adapters, None):  # the last: what a memory leaves behind
        condition = name or NO_MEMORY
        ids, score = pipeline.greedy(tokens, name, GREEDY)
        expected = reference.logits([*tokens, *ids], name)[len(tokens) - 1 : -1]
        chosen = expected.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        equal[condition] = int((expected.argmax(-1) == torch.tensor(ids)).sum())
        lost = float((expected.amax(-1) - chosen).max())
        off = abs(float((chosen - expected.logsumexp(-1)).sum()) - score) / len(ids)
        limit = 2 * limit_of(figures, condition)  # a difference of two logits
        most = max(off, lost)  # in this order NaN stays NaN
        if exact and not most <= limit:
            raise IntegrityError(
                f"memory {condition}: OpenVINO GenAI writes other text than koffkit ({equal[condition]} of "
                f"{GREEDY} greedy tokens equal; a logit is off by {most:.3g}, limit {limit:.3g}); "
                f"{_otherwise()}"
            )
    return equal


def _otherwise() -> str:
    return (
        "nothing was published. Export with --format hf, and report this with the versions of openvino and "
        f"transformers: {versions()}."
    )
