"""The sequences of a step that this process computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from koffkit.parallel import ranks
from koffkit.training.shares import own_shares

from ..planning.test_shares import recipe


def test_retention_steps_have_a_batch_size_of_their_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 2)
    given = recipe(tmp_path, 4, 1, retention=6)
    options = given.stages[0].options
    assert own_shares(given, options, retention=False)[0].rows == slice(0, 2)
    assert own_shares(given, options, retention=True)[0].rows == slice(0, 3)
