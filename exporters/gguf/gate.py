"""The gate of the format: llama-server on what was written, where it can be run here, against koffkit's own
log-probabilities in float64.

Legend: T steps, V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.manifest import Consumer
from ...checkpoint.files import load_tokenizer
from ...errors import IntegrityError
from ..toolkit import Draft, ParityFigures
from ..toolkit.exact import ExactLogits, limit_of
from .serving import Serving

if TYPE_CHECKING:
    from torch import Tensor

    from ...artefact.bundle import Bundle

PACKAGE = "xllamacpp"
GREEDY = 64
TOP = 100
SECONDS = 900


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
    silent, sentinels = _silent(checkpoint), [kv.tokens for kv in serving.kv.values()]
    count = min(GREEDY, serving.context - len(tokens) - max(sentinels, default=0))
    told = _asked(draft, {"tokens": tokens, "memories": names, "suppress": silent, "new_tokens": count})
    if told is None:
        return None
    exact = (serving.type, serving.cache_type) == ("f32", "f32")
    reference, found = ExactLogits(checkpoint, bundles), dict[str, list[Any]]()
    for name, answer in zip(names, told, strict=True):
        steps = reference.logits([*tokens, *answer["ids"]], name)[len(tokens) - 1 : -1]
        found[name or "none"] = _compared(steps.log_softmax(-1), answer, silent)
        if exact:
            limit = 2 * limit_of(figures, name or "none")  # a difference of two logits
            _require_same(name or "none", found[name or "none"], limit)
    return Consumer(
        versions={PACKAGE: version(PACKAGE)},
        weights=weights,
        max_abs={name: worst for name, (worst, _, _) in found.items()},
        kl={name: kl for name, (_, kl, _) in found.items()},
        greedy={name: equal for name, (_, _, equal) in found.items()},
        tokens=count,
    )


def _asked(draft: Draft, wanted: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What llama-server wrote, in a process of its own; None: it could not be run."""
    with tempfile.TemporaryDirectory(prefix="koffkit-llama-") as folder:
        questions, answers = Path(folder) / "questions.json", Path(folder) / "answers.json"
        questions.write_text(json.dumps({**wanted, "top": TOP}), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            f"{__package__}.run",
            str(draft.folder),
            str(questions),
            str(answers),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            reason = f"no answer in {SECONDS} s"
        if answers.is_file():
            found: list[dict[str, Any]] = json.loads(answers.read_text(encoding="utf-8"))
            return found
    draft.progress.warn(
        f"format gguf: {PACKAGE} {version(PACKAGE)} is installed, but could not run the export ({reason}). "
        "The files hold what koffkit computes; whether your llama.cpp reads them (state_version) was "
        "not tried."
    )
    return None


def _compared(steps: Tensor, answer: dict[str, Any], silent: list[int]) -> list[Any]:
    """The largest difference of a log-probability, KL in nats a token, and how many tokens are float64's.

    Args:
        steps: log-probabilities [T, V] in float64.
        answer: `ids` [T], and `top` [T][n] of an id and its log-probability.
        silent: ids that are never chosen; the others' probabilities are what they are all the same.
    """
    import torch

    worst, kl = torch.zeros(()).double(), 0.0
    for step, top in zip(steps, answer["top"], strict=True):
        ids, said = zip(*top, strict=True)
        exact = step[list(ids)]  # JSON has no NaN: it is null
        off = exact - torch.tensor([float("nan") if value is None else value for value in said]).double()
        worst = torch.maximum(worst, off.abs().max())  # NaN stays NaN
        kl += float((exact.exp() * off).sum()) / len(steps)
    steps[:, torch.tensor(silent, dtype=torch.long)] = -torch.inf
    equal = int((steps.argmax(-1) == torch.tensor(answer["ids"])).sum())
    return [float(worst), max(0.0, kl), equal]


def _require_same(name: str, found: list[Any], limit: float) -> None:
    worst, _, equal = found
    if worst <= limit:
        return
    raise IntegrityError(
        f"memory {name}: in llama-server a log-probability differs by {worst:.3g} from koffkit's (limit "
        f"{limit:.3g}; {equal} greedy tokens are equal); nothing was published. Export with --format "
        f"hf, and report this with the version of {PACKAGE}: {version(PACKAGE)}."
    )


def _silent(checkpoint: Path) -> list[int]:
    """Tokens that end or mark something, for a text that ends says nothing of what would follow; and parts of
    characters, of which llama-server tells no probabilities."""
    tokenizer = load_tokenizer(checkpoint)
    size = int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids |= set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[index] for index in range(size)])
    ids |= {index for index, text in enumerate(texts) if "\ufffd" in text}
    return sorted(index for index in ids if index < size)
