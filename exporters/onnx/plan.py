"""What an export will write; all that it cannot be is refused here, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ...artefact.routes import Carries
from ...errors import UsageError
from ...run.finished import FinishedRun
from ..toolkit import MergePlan, plan_merge, require_carried
from .options import OnnxOptions

NEEDED = ("onnx", "onnxscript", "onnxruntime", "transformers.exporters.metadata")
"""The last one: the extra's floor of transformers, whose exporter has changed with every release."""


@dataclass(frozen=True, kw_only=True)
class OnnxPlan:
    """What is exported.

    Attributes:
        run: the run; of a merged memory, with the widths of the result.
        options: as given.
        merge: the memory that goes into the weights; None: there is none.
    """

    run: FinishedRun
    options: OnnxOptions
    merge: MergePlan | None


def plan_onnx(carries: Carries, run: FinishedRun, options: OnnxOptions) -> OnnxPlan:
    """Check that the graph can hold what the run learned.

    Args:
        carries: the exporter's declaration.
        run: the run to export.
        options: what to write.

    Raises:
        UsageError: it cannot, or the extra is not installed; the text has the remedy.
        IntegrityError: the memory to merge is damaged.
    """
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        raise UsageError(
            f"--format onnx: {', '.join(missing)}: the extra is not installed; pip install 'koffkit[onnx]'."
        )
    merge = None if options.merge is None else plan_merge(run, options.merge)
    run = run if merge is None else merge.run
    facts = require_carried(carries, run, "onnx", merged=merge is not None)
    if options.layout == "genai" and (facts.heads_differ or facts.heads_divided):
        raise UsageError(
            "--format onnx: layout: genai: onnxruntime-genai gives every layer a cache of the same shape, "
            "and this backbone's heads differ; export with -o layout=plain, or learn with "
            "mask.layout: uniform and whole heads."
        )
    return OnnxPlan(run=run, options=options, merge=merge)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False
