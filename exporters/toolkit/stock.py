"""Stock software on what was written, against the golden logits of koffkit's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle, open_bundle
from ...artefact.parts import Golden
from ...errors import IntegrityError
from .exact import limit_of
from .machine import free_memory
from .parity import ParityFigures
from .publishing import Draft

if TYPE_CHECKING:
    from torch import Tensor


def check_stock(
    draft: Draft,
    bundles: Sequence[Bundle],
    figures: ParityFigures,
    logits: Callable[[Bundle, Golden], Tensor],
    *,
    format_name: str,
    software: str,
) -> None:
    """Hold what stock software computes with every memory against koffkit's golden logits: in float32, or, of
    quantised weights, in the type that goes with them, whose rounding is allowed for.

    A backbone for which this machine has not enough memory is not loaded, and a warning says so.

    Args:
        draft: the export, with backbone and memories written.
        bundles: the memories.
        figures: of the parity gate.
        logits: of a memory those after the last golden token, [V], in the type that they were computed in.
        format_name: of the export.
        software: that `logits` runs, in words.

    Raises:
        IntegrityError: a logit differs by more than rounding explains.
    """
    if not bundles:
        return
    needed, free = 4 * draft.run.spec.num_parameters, free_memory()
    if needed > free:
        draft.progress.warn(
            f"format {format_name}: {needed / 1e9:.0f} GB are needed to run the backbone in {software}, "
            f"{free / 1e9:.0f} GB are free; what was written is as koffkit computes it, but {software} did "
            "not run on it."
        )
        return
    draft.progress.message(f"running {software} on what was written")
    with draft.timed(format_name):
        for bundle in bundles:
            golden = open_bundle(bundle.path).info.golden
            assert golden is not None
            _require_same(bundle.domain, logits(bundle, golden), golden, figures, software)


def _require_same(domain: str, found: Tensor, golden: Golden, figures: ParityFigures, software: str) -> None:
    import torch

    coarser = torch.finfo(found.dtype).eps / torch.finfo(torch.float32).eps
    limit = coarser * limit_of(figures, domain)
    differences = found[list(golden.ids)].double() - torch.tensor(golden.logits, dtype=torch.float64)
    off = float(differences.abs().max())  # NaN stays NaN
    if not off <= limit:
        raise IntegrityError(
            f"memory {domain}: in {software} its logits differ by {off:.3g} from koffkit's (limit "
            f"{limit:.3g}); nothing was published. Export with --format hf, and report this with the "
            "versions of peft and transformers (`koffkit doctor`)."
        )


def load_stock(backbone: Path, *, quantised: bool) -> Any:
    """The model of a backbone in transformers: in float32, or, quantised, as it is stored."""
    import torch
    from transformers import AutoModelForCausalLM

    from ... import sliced  # noqa: F401  # instead of running the code that lies in the folder

    dtype: Any = "auto" if quantised else torch.float32
    return AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype).eval()


def last_logits(model: Any, golden: Golden, before: int = 0, **options: Any) -> Tensor:
    """Logits [V] after the last golden token.

    Args:
        model: of transformers, or of PEFT.
        golden: whose tokens it reads.
        before: positions in a cache that it is given.
        options: what it is called with beside tokens and attention mask.
    """
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers
        ids = torch.tensor([golden.tokens])
        seen = torch.ones(1, before + ids.shape[1], dtype=torch.long)
        logits: Tensor = model.eval()(input_ids=ids, attention_mask=seen, **options).logits[0, -1]
    return logits
