"""The gate's last step: vLLM itself on the exported folder, where a build of it for CPUs lies beside koffkit.

One for accelerators is not run: it takes memory that others may be using there, and computes float32 in ways
that were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

from ...artefact.bundle import Bundle
from ...checkpoint.spec import ModelSpec
from ..toolkit import Draft, ParityFigures
from ..toolkit.exact import ExactLogits
from ..toolkit.programs import GREEDY, answers_of, compared, require_answers, silent_tokens

PACKAGE = "vllm"


def cpu_build() -> str | None:
    """Name and version of a vLLM for CPUs; None: there is none."""
    if find_spec(PACKAGE) is None:
        return None
    name = packages_distributions().get(PACKAGE, [PACKAGE])[0]
    build = f"{name} {version(name)}"
    return build if "cpu" in build else None


class EngineCheck:
    """What vLLM is to say; made while koffkit can still read the backbone's config.

    Args:
        draft: the export.
        bundles: its memories; none if one is part of the weights.
        figures: of the parity gate.
        build: of vLLM.
    """

    def __init__(self, draft: Draft, bundles: Sequence[Bundle], figures: ParityFigures, build: str) -> None:
        self._draft, self._figures, self._build = draft, figures, build
        self._names = [None, *(bundle.domain for bundle in bundles)]
        self._exact, self._silent = ExactLogits(draft.backbone, bundles), silent_tokens(draft.backbone)
        halves = [bundle.info.kv.tokens for bundle in bundles if bundle.info.kv is not None]
        room = int(ModelSpec.open(draft.backbone).config["max_position_embeddings"])
        self._count = min(GREEDY, room - len(figures.golden.tokens) - max(halves, default=0))

    def run(self) -> None:
        """Let vLLM write text, bare and with every memory, and compare the likeliest tokens of each step.

        Raises:
            IntegrityError: a log-probability differs by more than rounding explains.
        """
        progress, tokens = self._draft.progress, list(self._figures.golden.tokens)
        progress.message("running vLLM on what was written")
        questions = {
            "tokens": tokens,
            "memories": self._names,
            "suppress": self._silent,
            "new_tokens": self._count,
        }
        told, reason = answers_of(f"{__package__}.run", self._draft.folder, questions)
        if told is None:
            progress.warn(
                f"format vllm: {self._build} is installed, but could not run the export ({reason}). "
                "The files hold what koffkit computes; whether your vLLM reads them was not tried."
            )
            return
        for name, answer in zip(self._names, told, strict=True):
            logits = self._exact.logits([*tokens, *answer["ids"]], name)[len(tokens) - 1 : -1]
            found = compared(logits, answer, self._silent)
            require_answers(name or "none", found, self._figures, "vLLM", self._build)
