"""The cases are what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .cases import CASES


@pytest.mark.parametrize(
    ("name", "heads_differ"),
    [("llama, ragged neurons, heads too", False), ("llama, ragged neurons and heads", True)],
)
def test_what_is_ragged(name: str, heads_differ: bool, tmp_path: Path) -> None:
    made = CASES[name](tmp_path)
    layers = json.loads((made.export / "backbone" / "config.json").read_text())["sliced_layers"]
    heads, neurons = ({layer[key] for layer in layers} for key in ("kv_heads", "intermediate"))
    assert len(neurons) > 1 and min(heads) < 2  # of two
    assert (len(heads) > 1) == heads_differ
