"""A model with six memories that all have LoRA, KV and neurons, loud enough for every answer to depend on
them."""

from __future__ import annotations

from pathlib import Path

import pytest

from koffkit import KoffModel

from ...conftest import Shipped
from ...exports import with_memories

MORE = {"east": ("north", 1.0), "west": ("south", 1.0), "hill": ("north", -0.7), "dale": ("south", -1.3)}


@pytest.fixture(scope="session")
def six(restored: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with six memories. Do not change it."""
    return with_memories(restored.export, tmp_path_factory.mktemp("six") / "out", MORE)


@pytest.fixture(scope="session")
def model(six: Path) -> KoffModel:
    return KoffModel.from_pretrained(six)
