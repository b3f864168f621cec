"""`koffkit compress --dry-run`: the plan, the device at hand, and text against what training asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from koffkit import devices

from ...common import recipe_dict, write_recipe
from ...conftest import Koffkit


def test_a_plan_names_device_text_net_bytes_and_every_stage(
    llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    path = write_recipe(tmp_path / "r.yaml", recipe_dict(llama, tmp_path / "data"))
    shown = koffkit("compress", path, "--dry-run")
    assert shown.code == 0
    for words in (
        "device at hand",
        "tokens of north",
        "with 2 memories",
        "stage learn_masks",
        "stage evaluate",
    ):
        assert words in shown.out
    tree = koffkit("compress", path, "--dry-run", "--json").json
    assert set(tree["text"]) == {"north", "south", "retention"}
    assert tree["device"]["kind"] in ("cpu", "cuda", "mps")


def test_text_that_is_read_too_often_is_warned_of(llama: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    recipe = recipe_dict(llama, tmp_path / "data")
    recipe["stages"][1]["recover"]["max_steps"] = 100_000
    shown = koffkit("compress", write_recipe(tmp_path / "r.yaml", recipe), "--dry-run")
    assert "warning: north: its" in shown.out
    assert "more text or fewer steps" in shown.out


def test_it_is_said_without_torch() -> None:
    script = (
        "import sys\nfrom koffkit.cli import main\n"
        "try: main(['compress', 'quickstart', '--dry-run'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_accelerator_is_known_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t A Large GPU\nIRQ: 1\n")
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0")
    assert devices.device_at_hand() == {"kind": "cuda", "name": "A Large GPU", "count": 1}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    assert devices.device_at_hand()["kind"] != "cuda"
