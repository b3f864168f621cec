"""`--device` of commands that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit

ADD = ["memory", "add", "out", "east", "--text", "east.txt"]
REPLACE = ["memory", "replace", "out", "north", "--text", "east.txt"]


@pytest.mark.parametrize("command", [["compress", "quickstart"], ADD, REPLACE])
def test_a_device_that_is_not_there_is_refused_first(
    command: list[str], out: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    for name, code in (("gpu", 2), ("musa", 5)):
        result = koffkit(*command, "--device", name)
        assert result.code == code
        assert f"device '{name}': not" in result.err
    assert not (tmp_path / "runs").exists()


def test_compress_and_memory_add_on_the_cpu_by_name(
    out: Path, llama: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.training import build

    asked: list[str | None] = []
    make = build.make_accelerator
    monkeypatch.setattr(build, "make_accelerator", lambda *given: asked.append(given[2]) or make(*given))
    recipe = write_recipe(
        tmp_path / "r.yaml", recipe_dict(llama, tmp_path / "data", stages=[{"learn_masks": {"max_steps": 1}}])
    )
    assert koffkit("compress", recipe, "--device", "cpu").code == 0
    assert koffkit(*ADD, "--device", "cpu", "--set", "stages.recover.max_steps=1").code == 0
    assert asked == ["cpu", "cpu"]
