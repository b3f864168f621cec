"""Another program on what was written, in a process of its own: it writes text, and the likeliest tokens of
each step are held against koffkit's own log-probabilities in float64.

Legend: T steps, V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.files import CONFIG, load_tokenizer
from ...errors import IntegrityError
from .exact import limit_of
from .parity import ParityFigures

if TYPE_CHECKING:
    from torch import Tensor

GREEDY = 64
TOP = 100
SECONDS = 900


def answers_of(
    module: str, export: Path, questions: Mapping[str, Any]
) -> tuple[list[dict[str, Any]] | None, str]:
    """What a program wrote, by memory `ids` and `top`, and why it wrote nothing, if it did not (None).

    Args:
        module: is run as `python -m MODULE EXPORT QUESTIONS ANSWERS`, the last two being JSON files.
        export: the folder.
        questions: `tokens` of a prompt, `memories` (None: none), `suppress` (ids that are never chosen) and
            `new_tokens`; `top` is added, how many log-probabilities are wanted of each step.
    """
    with tempfile.TemporaryDirectory(prefix="koffkit-program-") as folder:
        asked, answers = Path(folder) / "questions.json", Path(folder) / "answers.json"
        asked.write_text(json.dumps({**questions, "top": TOP}), encoding="utf-8")
        command = [sys.executable, "-m", module, str(export), str(asked), str(answers)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            reason = f"no answer in {SECONDS} s"
        if not answers.is_file():
            return None, reason
        return json.loads(answers.read_text(encoding="utf-8")), reason


def compared(logits: Tensor, answer: Mapping[str, Any], silent: Sequence[int]) -> tuple[float, float, int]:
    """The largest difference of a log-probability, KL in nats a token, and how many tokens are float64's.

    Args:
        logits: [T, V] in float64.
        answer: `ids` [T], and `top` [T][n] of an id and its log-probability.
        silent: ids that are never chosen; the others' probabilities are what they are all the same.
    """
    import torch

    steps, worst, kl = logits.log_softmax(-1), torch.zeros(()).double(), 0.0
    for step, top in zip(steps, answer["top"], strict=True):
        ids, said = zip(*top, strict=True)
        exact = step[list(ids)]  # JSON has no NaN: it is null
        off = exact - torch.tensor([float("nan") if value is None else value for value in said]).double()
        worst = torch.maximum(worst, off.abs().max())  # NaN stays NaN
        kl += float((exact.exp() * off).sum()) / len(steps)
    steps[:, torch.tensor(silent, dtype=torch.long)] = -torch.inf
    equal = int((steps.argmax(-1) == torch.tensor(answer["ids"])).sum())
    return float(worst), max(kl, 0.0), equal  # NaN stays NaN


def require_answers(
    condition: str, found: tuple[float, float, int], figures: ParityFigures, program: str, package: str
) -> None:
    """Refuse text whose log-probabilities are off by more than 20 times the noise floor of a logit.

    Args:
        condition: `none`, or a domain.
        found: see `compared`.
        figures: of the parity gate.
        program: its name.
        package: whose version is to be reported, with that version.

    Raises:
        IntegrityError: one is.
    """
    worst, _, equal = found
    limit = 2 * limit_of(figures, condition)  # a difference of two logits
    if not worst <= limit:
        raise IntegrityError(
            f"memory {condition}: in {program} a log-probability differs by {worst:.3g} from koffkit's "
            f"(limit {limit:.3g}; {equal} greedy tokens are equal); nothing was published. Export with "
            f"--format hf, and report this with the version of {package}."
        )


def silent_tokens(checkpoint: Path) -> list[int]:
    """Tokens that end or mark something, for a text that ends says nothing of what would follow; and parts of
    characters, of which some programs tell no probabilities."""
    tokenizer = load_tokenizer(checkpoint)
    size = int(json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))["vocab_size"])
    ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids |= set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[index] for index in range(size)])
    ids |= {index for index, text in enumerate(texts) if "\ufffd" in text}
    return sorted(index for index in ids if index < size)
