"""The gate of the format: PEFT and transformers on what was written, against the golden logits of
koffkit's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...artefact.bundle import Bundle
from ...artefact.names import CARTRIDGE
from ...artefact.parts import Golden
from ..toolkit import Draft, ParityFigures
from ..toolkit.stock import check_stock, last_logits, load_stock

if TYPE_CHECKING:
    from torch import Tensor


def check_consumer(
    draft: Draft, bundles: Sequence[Bundle], figures: ParityFigures, *, quantised: bool = False
) -> None:
    """Load every memory with PEFT and transformers, as the README says, and compare logits.

    Args:
        draft: the export, with backbone and memories written.
        bundles: the memories.
        figures: of the parity gate.
        quantised: the backbone is.

    Raises:
        IntegrityError: a logit differs by more than rounding explains.
    """

    def logits(bundle: Bundle, golden: Golden) -> Tensor:
        return _logits(draft.backbone, bundle.path, golden, quantised)

    check_stock(draft, bundles, figures, logits, format_name="peft", software="PEFT")


def _logits(backbone: Path, memory: Path, golden: Golden, quantised: bool) -> Tensor:
    """Logits after the last golden token with a whole memory in stock software."""
    from peft import PeftModel

    model = load_stock(backbone, quantised=quantised)
    has_lora, cartridge = (memory / "adapter_config.json").is_file(), memory / CARTRIDGE
    if has_lora and cartridge.is_dir():
        model.load_adapter(str(memory))
    elif has_lora:
        model = PeftModel.from_pretrained(model, str(memory))
    if cartridge.is_dir():
        model = PeftModel.from_pretrained(model, str(cartridge))
    return last_logits(model, golden)
