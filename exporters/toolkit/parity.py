"""The gate before publishing: masked == sliced (method, invariant 1), for no memory and for every memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...artefact.bundle import Bundle, MemoryFolder, open_bundle
from ...artefact.manifest import NoiseFloor, Parity
from ...artefact.parts import Golden
from ...memories.bundle import set_golden
from ...progress import StepCounter
from .publishing import Draft

if TYPE_CHECKING:
    from ...parity.compare import Difference


OTHER_STEPS = 4
"""Beside the layers of three models: finding the base's weights, the comparison, golden logits, rounding."""


@dataclass(frozen=True)
class ParityFigures:
    """The comparison as recorded in the manifest, and the golden logits without a memory."""

    parity: Parity
    golden: Golden


def check_parity(draft: Draft, bundles: list[Bundle]) -> ParityFigures:
    """Compare the masked base, as transformers reads it, and the sliced model on the probe tokens, and record
    golden logits of the sliced side: those of each memory go into its `memory.json`.

    Args:
        draft: the export, with its backbone written.
        bundles: the written memories.

    Raises:
        IntegrityError: a difference is above the tolerance, or not a number.
    """
    import torch

    from ...model.loaded import LoadedWeights
    from ...parity.compare import NO_MEMORY, compare, require_same
    from ...parity.probe import Probe, golden

    draft.progress.message("checking parity")
    run, domains = draft.run, [bundle.domain for bundle in bundles]
    step = StepCounter(draft.progress, "parity", 3 * run.spec.num_layers + OTHER_STEPS)
    with draft.timed("parity"):
        learned = [MemoryFolder(run.memories[domain], domain) for domain in domains]
        sliced = Probe(draft.backbone, bundles, layer_done=step)
        tokens, rows = sliced.tokens(), [None, *domains]
        hidden = sliced.hidden(tokens, rows)
        with LoadedWeights(run.spec.folder) as loaded:
            step()
            masked = Probe(
                run.spec.folder, learned, run.masks, loaded=loaded, repair=run.repair, layer_done=step
            )
            differences = require_same(
                sliced, hidden, masked, masked.hidden(tokens, rows), domains, "nothing was published"
            )
            del masked
        step()
        plain, *others = [Golden(tokens=tokens, **logits) for logits in golden(sliced, hidden)]
        for bundle, logits in zip(bundles, others, strict=True):
            set_golden(open_bundle(bundle.path), logits)
        step()
        single = Probe(draft.backbone, sliced.memories, dtype=torch.float32, layer_done=step)
        rounding = compare(sliced, hidden, single, single.hidden(tokens, rows))
        step()
    noise = dict(zip([NO_MEMORY, *domains], rounding, strict=True))
    return ParityFigures(summary(len(tokens), differences, noise), plain)


def summary(tokens: int, differences: Mapping[str, Difference], rounding: Mapping[str, Difference]) -> Parity:
    """By condition: the largest |logit| and the largest |logit difference| in float64, whose limit is
    `tolerance` times the former; and the noise floor, the effect of float32 rounding on the sliced
    backbone."""
    from ...parity.compare import TOLERANCE

    return Parity(
        dtype="float64",
        tokens=tokens,
        tolerance=TOLERANCE,
        max_logit={name: value.max_logit for name, value in differences.items()},
        max_abs={name: value.max_abs for name, value in differences.items()},
        noise_floor=NoiseFloor(
            dtype="float32",
            max_abs={name: value.max_abs for name, value in rounding.items()},
            kl={name: value.kl for name, value in rounding.items()},
        ),
    )
