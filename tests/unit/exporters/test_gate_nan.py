"""A number that is none passes no gate, wherever it stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from koffkit.exporters.onnx.gate import _compare
from koffkit.exporters.toolkit.programs import compared
from koffkit.exporters.toolkit.stock import _require_same

from koffkit.errors import IntegrityError
from koffkit.parity import probe
from koffkit.parity.probe import distances_to_golden

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


class Known:
    """A probe that computes the same logits [T, 4] for whatever it reads."""

    vocabulary = (1, 2, 3)

    def hidden(self, tokens: Any, rows: Any) -> torch.Tensor:
        return torch.zeros(len(rows), len(tokens), 1)

    def logits(self, hidden: torch.Tensor) -> Any:
        values = torch.arange(4, dtype=torch.float64).expand(*hidden.shape[:-1], 4)
        yield 0, values[..., :2]
        yield 2, values[..., 2:]


def test_golden_logits() -> None:
    expected = {None: {"tokens": [1, 2], "ids": [0, 1], "logits": [0.5, torch.nan]}}
    found = distances_to_golden(cast(Any, Known()), expected)[None]
    assert found != found
    expected[None]["logits"] = [0.5, 1.0]
    assert distances_to_golden(cast(Any, Known()), expected) == {None: 0.5}


def test_logits_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def empty(self) -> None: ...

        def step(self, new: list[int], cache: None) -> tuple[np.ndarray, None]:
            logits = np.tile(np.arange(4, dtype=np.float32), (len(new), 1))
            logits[:, 1] = wrong
            return logits, None

    monkeypatch.setattr(probe, "probe_tokens", lambda vocabulary: [1, 2])
    for wrong in (np.nan, 1.0):
        found = _compare(Model(), cast(Any, Known()), cast(Any, Known()), None, 4)
        assert found.max_abs == 0 if wrong == 1.0 else found.max_abs != found.max_abs
