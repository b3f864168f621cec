"""The gate of the format: llama-server on what was written, where it can be run here, against koffkit's own
log-probabilities in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...artefact.manifest import Consumer
from ..toolkit import Draft, ParityFigures
from ..toolkit.exact import ExactLogits
from ..toolkit.programs import GREEDY, answers_of, compared, require_answers, silent_tokens
from .serving import Serving

if TYPE_CHECKING:
    from ...artefact.bundle import Bundle

PACKAGE = "xllamacpp"


def check_export(
    draft: Draft,
    checkpoint: Path,
    bundles: Sequence[Bundle],
    serving: Serving,
    weights: str,
    figures: ParityFigures,
) -> Consumer | None:
    """Let llama-server write text, bare and with every memory, and compare the likeliest tokens of each
    step. Matrices and cache in float32 may be off by 20 times the noise floor; other types are only measured.

    Args:
        draft: the export, with its files written.
        checkpoint: that it was made from.
        bundles: its memories; none if one is part of the weights, which is then all that is asked for.
        serving: what was written.
        weights: the option `type`.
        figures: of the parity gate.

    Returns:
        what was measured; None: llama-server cannot be run here, and where it should, a warning says so.

    Raises:
        IntegrityError: a log-probability differs by more than rounding explains.
    """
    if find_spec(PACKAGE) is None:
        return None
    draft.progress.message("running llama-server on what was written")
    tokens, names = list(figures.golden.tokens), [None, *(bundle.domain for bundle in bundles)]
    silent, sentinels = silent_tokens(checkpoint), [kv.tokens for kv in serving.kv.values()]
    count = min(GREEDY, serving.context - len(tokens) - max(sentinels, default=0))
    questions = {"tokens": tokens, "memories": names, "suppress": silent, "new_tokens": count}
    told, reason = answers_of(f"{__package__}.run", draft.folder, questions)
    if told is None:
        draft.progress.warn(
            f"format gguf: {PACKAGE} {version(PACKAGE)} is installed, but could not run the export "
            f"({reason}). The files hold what koffkit computes; whether your llama.cpp reads them "
            "(state_version) was not tried."
        )
        return None
    exact = (serving.type, serving.cache_type) == ("f32", "f32")
    reference, found = ExactLogits(checkpoint, bundles), dict[str, tuple[float, float, int]]()
    for name, answer in zip(names, told, strict=True):
        condition = name or "none"
        logits = reference.logits([*tokens, *answer["ids"]], name)[len(tokens) - 1 : -1]
        found[condition] = compared(logits, answer, silent)
        if exact or math.isnan(found[condition][0]):
            package = f"{PACKAGE}: {version(PACKAGE)}"
            require_answers(condition, found[condition], figures, "llama-server", package)
    return Consumer(
        versions={PACKAGE: version(PACKAGE)},
        weights=weights,
        max_abs={name: worst for name, (worst, _, _) in found.items()},
        kl={name: kl for name, (_, kl, _) in found.items()},
        greedy={name: equal for name, (_, _, equal) in found.items()},
        tokens=count,
    )
