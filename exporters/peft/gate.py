"""The gate of the format: PEFT and transformers on what was written, against the golden logits of
koffkit's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle, open_bundle
from ...artefact.names import CARTRIDGE
from ...artefact.parts import Golden
from ...errors import IntegrityError
from ..toolkit import Draft, ParityFigures
from ..toolkit.machine import free_memory

if TYPE_CHECKING:
    from torch import Tensor

FLOORS = 10
"""How many times what float32 rounding does to koffkit's own logits PEFT's may differ by."""
LEAST = 1e-5
"""Of the largest |logit|: a limit that float32 can always be held to."""


def check_consumer(
    draft: Draft, bundles: Sequence[Bundle], figures: ParityFigures, *, quantised: bool = False
) -> None:
    """Load every memory with PEFT and transformers, as the README says, and compare logits: in float32, or,
    quantised, in the type that goes with the weights, whose rounding is allowed for.

    A backbone for which this machine has not enough memory is not loaded, and a warning says so.

    Args:
        draft: the export, with backbone and memories written.
        bundles: the memories.
        figures: of the parity gate.
        quantised: the backbone is.

    Raises:
        IntegrityError: a logit differs by more than rounding explains.
    """
    if not bundles:
        return
    needed, free = 4 * draft.run.spec.num_parameters, free_memory()
    if needed > free:
        draft.progress.warn(
            f"format peft: {needed / 1e9:.0f} GB are needed to run the backbone in PEFT, {free / 1e9:.0f} GB "
            "are free; what was written is as koffkit computes it, but PEFT was not run on it."
        )
        return
    draft.progress.message("running PEFT on what was written")
    with draft.timed("peft"):
        for bundle in bundles:
            golden = open_bundle(bundle.path).info.golden
            assert golden is not None
            logits, coarser = _logits(draft.backbone, bundle.path, golden, quantised)
            noise = figures.parity.noise_floor
            floor = 0.0 if noise is None else noise.max_abs[bundle.domain]
            limit = coarser * max(FLOORS * floor, LEAST * figures.parity.max_logit[bundle.domain])
            off = max(
                abs(float(logits[token]) - value)
                for token, value in zip(golden.ids, golden.logits, strict=True)
            )
            if not off <= limit:
                raise IntegrityError(
                    f"memory {bundle.domain}: in PEFT its logits differ by {off:.3g} from koffkit's (limit "
                    f"{limit:.3g}); nothing was published. Export with --format hf, and report this with the "
                    "versions of peft and transformers (`koffkit doctor`)."
                )


def _logits(backbone: Path, memory: Path, golden: Golden, quantised: bool) -> tuple[Tensor, float]:
    """Logits after the last golden token with a whole memory in stock software, and how much coarser than
    float32 their type is."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ... import sliced  # noqa: F401  # instead of running the code that lies in the folder

    model: Any = AutoModelForCausalLM.from_pretrained(
        backbone, dtype="auto" if quantised else torch.float32
    ).eval()
    has_lora, cartridge = (memory / "adapter_config.json").is_file(), memory / CARTRIDGE
    if has_lora and cartridge.is_dir():
        model.load_adapter(str(memory))
    elif has_lora:
        model = PeftModel.from_pretrained(model, str(memory))
    if cartridge.is_dir():
        model = PeftModel.from_pretrained(model, str(cartridge))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers
        ids = torch.tensor([golden.tokens])
        logits: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    return logits.float(), torch.finfo(logits.dtype).eps / torch.finfo(torch.float32).eps
