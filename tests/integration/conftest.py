"""An export that has grown by one memory, shared by the tests of `koffkit memory`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..common import sentences
from ..conftest import Shipped

LEARNED = [
    "memory.kv={tokens: 3, init: random}",  # better than text for so small a model
    "stages.recover.max_steps=200",
    "stages.recover.batch_size=4",
    "stages.recover.lr={lora: 5.0e-3, kv: 1.0e-2}",
]


@pytest.fixture(scope="session")
def grown(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with an added memory `east`. Do not change it."""
    from koffkit.memories.add import add_memory

    root = tmp_path_factory.mktemp("grown")
    (root / "east.txt").write_text("\n\n".join(sentences(7, 80)) + "\n")
    before = Path.cwd()
    os.chdir(root)
    try:
        shutil.copytree(shipped.export, root / "out")
        shutil.copytree(shipped.recipe.parent / "data", root / "data")
        add_memory(root / "out", "east", {"text": ["east.txt"]}, overrides=LEARNED)
    finally:
        os.chdir(before)
    return root / "out"
