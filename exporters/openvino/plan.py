"""What an export will write; what cannot be carried is refused here, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

from ...artefact.routes import Carries
from ...progress import Progress
from ...run.finished import FinishedRun
from ..toolkit import MergePlan, plan_merge, require_carried
from .options import OpenvinoOptions
from .runtime import require_extra
from .tokenizer import Tokenizer, convert_tokenizer


@dataclass(frozen=True, kw_only=True)
class OpenvinoPlan:
    """What is exported.

    Attributes:
        run: the run; of a merged memory, with the widths of the result.
        options: as given.
        tokenizer: as OpenVINO has it.
        merge: the memory that goes into the weights; None: there is none.
        has_kv: whether memories have a KV half, and it is carried.
    """

    run: FinishedRun
    options: OpenvinoOptions
    tokenizer: Tokenizer
    merge: MergePlan | None
    has_kv: bool


def plan_openvino(
    run: FinishedRun, options: OpenvinoOptions, carries: Carries, progress: Progress
) -> OpenvinoPlan:
    """Check that OpenVINO can do what this run learned.

    Args:
        run: the run to export.
        options: what to write.
        carries: the exporter's declaration.
        progress: told of what will not be as it was.

    Raises:
        UsageError: it cannot, or the extra is not installed; the text has the remedy.
        DataError: the base's tokenizer does not load.
    """
    require_extra()
    merge = None if options.merge is None else plan_merge(run, options.merge)
    run = run if merge is None else merge.run
    facts = require_carried(carries, run, "openvino", merged=merge is not None)
    has_kv = options.kv and facts.kv != "none"
    if facts.kv != "none" and not has_kv:
        progress.warn(
            "KV memories are left out (kv=false); figures of whole memories do not hold for this export."
        )
    tokenizer = convert_tokenizer(run.spec.folder)
    for text in tokenizer.differences():
        progress.warn(
            f"tokenizer: OpenVINO's differs from transformers' on {text!r}; send token ids where that "
            "matters."
        )
    return OpenvinoPlan(run=run, options=options, tokenizer=tokenizer, merge=merge, has_kv=has_kv)
