"""A number that is none passes no gate, wherever it stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from koffkit.exporters.toolkit.programs import compared
from koffkit.exporters.toolkit.stock import _require_same

from koffkit.errors import IntegrityError

FIGURES: Any = SimpleNamespace(
    parity=SimpleNamespace(noise_floor=SimpleNamespace(max_abs={"north": 1e-6}), max_logit={"north": 1.0})
)
GOLDEN: Any = SimpleNamespace(ids=[0, 2], logits=[1.0, 3.0])


def test_logits_of_stock_software() -> None:
    _require_same("north", torch.tensor([1.0, 2.0, 3.0]), GOLDEN, FIGURES, "PEFT")
    for wrong in (torch.nan, 3.1):
        with pytest.raises(IntegrityError, match="memory north: in PEFT its logits differ by"):
            _require_same("north", torch.tensor([1.0, 2.0, wrong]), GOLDEN, FIGURES, "PEFT")


def test_probabilities_of_a_program() -> None:
    logits = torch.zeros(2, 4, dtype=torch.float64)
    said = float(logits.log_softmax(-1)[0, 0])
    top = [[(0, said), (1, said)], [(0, said), (1, None)]]
    worst, kl, _ = compared(logits, {"ids": [0, 0], "top": top}, [])
    assert worst != worst and kl != kl
    worst, kl, equal = compared(logits, {"ids": [0, 0], "top": top[:1] * 2}, [])
    assert (worst, equal) == (pytest.approx(0, abs=1e-6), 2) and kl < 1e-6
