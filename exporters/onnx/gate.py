"""The gate of the format: ONNX Runtime on what was written, against koffkit's own logits in float64.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle
from ...checkpoint.spec import ModelSpec
from ...errors import IntegrityError
from ..toolkit.exact import FLOORS, LEAST

if TYPE_CHECKING:
    from ...parity.probe import Probe

NEW_TOKENS = 64
WITHOUT = "none"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The comparison in one condition.

    Attributes:
        tokens: written greedily, each with the cache of those before it.
        equal: of these the likeliest in float64, too; another one was within twice the limit of it.
        max_abs: largest |difference| of a logit to float64.
        floor: the same for koffkit in float32.
        limit: of the former.
    """

    tokens: int
    equal: int
    max_abs: float
    floor: float
    limit: float


def check_consumer(export: Path, checkpoint: Path, bundles: Sequence[Bundle]) -> dict[str, Measured]:
    """Write text with every memory and without one, and compare all logits on the way.

    Args:
        export: the folder with graph and adapters.
        checkpoint: the backbone that the graph was traced from.
        bundles: its memories.

    Returns:
        the comparisons by domain; `none`: no memory.

    Raises:
        IntegrityError: a logit differs by more than rounding explains.
    """
    import torch

    from ...parity.probe import Probe
    from .files import adapter_path
    from .generate import Backbone

    exact, single = Probe(checkpoint, bundles), Probe(checkpoint, bundles, dtype=torch.float32)
    longest = int(ModelSpec.open(checkpoint).config["max_position_embeddings"])
    model = Backbone(export, threads=torch.get_num_threads())
    measured = {}
    for domain in (None, *(bundle.domain for bundle in bundles)):
        model.attach(None if domain is None else adapter_path(export, domain))
        found = _compare(model, exact, single, domain, longest)
        _require_same(found, domain or WITHOUT)
        measured[domain or WITHOUT] = found
    return measured


def _compare(model: Any, exact: Probe, single: Probe, domain: str | None, longest: int) -> Measured:
    import torch

    from ...parity.probe import probe_tokens

    prompt = probe_tokens(exact.vocabulary)
    count = max(1, min(NEW_TOKENS, longest - len(prompt)))
    ids, parts, cache, new = list(prompt), [], model.empty(), list(prompt)
    for _ in range(count):
        logits, cache = model.step(new, cache)
        parts.append(torch.from_numpy(logits))
        new = [int(logits[-1].argmax())]
        ids += new
    ours, read = torch.cat(parts), ids[:-1]
    hidden, rounded = exact.hidden(read, [domain])[0], single.hidden(read, [domain])[0]
    floor = largest = 0.0
    worst = torch.zeros((), dtype=torch.float64)
    best = torch.full((len(read),), -torch.inf, dtype=torch.float64)
    chosen = torch.zeros(len(read), dtype=torch.float64)
    following = torch.tensor(ids[1:])
    for (first, part), (_, other) in zip(exact.logits(hidden), single.logits(rounded), strict=True):
        there = ours[:, first : first + part.shape[-1]].double()
        worst = torch.maximum(worst, (there - part).abs().max())  # NaN stays NaN
        floor, largest = max(floor, _largest(other.double() - part)), max(largest, _largest(part))
        best = torch.maximum(best, part.max(-1).values)
        inside = (following >= first) & (following < first + part.shape[-1])
        chosen[inside] = part[inside, following[inside] - first]
    limit = max(FLOORS * floor, LEAST * largest)
    equal = int((best == chosen)[-count:].sum())
    return Measured(tokens=count, equal=equal, max_abs=float(worst), floor=floor, limit=limit)


def _largest(values: Any) -> float:
    """The largest |value|; NaN if there is one."""
    return float(values.abs().max())


def _require_same(found: Measured, domain: str) -> None:
    if not found.max_abs <= found.limit:
        raise IntegrityError(
            f"memory {domain}: in ONNX Runtime its logits differ by {found.max_abs:.3g} from koffkit's "
            f"(limit {found.limit:.3g}); nothing was published. Export with --format hf, and "
            "report this with the versions of onnxruntime, onnxscript and transformers (`koffkit doctor`)."
        )
