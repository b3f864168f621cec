from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from ..conftest import Shipped
from .cases import BOMBS
from .drop import command, drop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
SECONDS, BYTES = 4.0, 256e6


@pytest.fixture(scope="module")
def fresh(shipped: Shipped, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs") / "fresh"
    for name, source in {"base": llama, "run": shipped.run, "out": shipped.export}.items():
        shutil.copytree(source, folder / name)
    shutil.copyfile(shipped.recipe, folder / "recipe.yaml")
    (folder / "sound.txt").write_text("river stone\n\n" * 40)
    return folder


@pytest.fixture(scope="module")
def usual(fresh: Path) -> int:
    """What a command takes that meets no bomb."""
    sound = command(["evaluate", "out", "--data", "sound.txt"], fresh)
    assert sound.code == 0, sound.err
    return sound.peak


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_error_soon_and_in_little_memory(
    name: str, fresh: Path, usual: int, tmp_path: Path
) -> None:
    fallout = drop(BOMBS[name], fresh, tmp_path / "here")
    assert fallout.is_one_error, f"exit code {fallout.code}: {fallout.err[-500:]}"
    assert fallout.seconds < SECONDS
    assert fallout.peak - usual < BYTES
