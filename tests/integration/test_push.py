"""`koffkit push` against a hub that keeps what it gets in folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from koffkit import KoffModel

from ..conftest import Koffkit, Shipped

IDS = torch.arange(10).reshape(1, 10) + 4


class Hub:
    """Takes commits as the hub does: whole."""

    def __init__(self, root: Path) -> None:
        self.root, self.made, self.refuses = root, {}, False

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.setdefault(repo, private)

    def create_commit(self, repo: str, operations: list[CommitOperationAdd], *, commit_message: str) -> Any:
        if self.refuses:
            raise HfHubHTTPError(
                "403 Forbidden: you may not write here", response=SimpleNamespace(headers={}, request=None)
            )
        for operation in operations:
            place = self.root / repo / operation.path_in_repo
            place.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                place.write_bytes(file.read())
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return made


@pytest.fixture
def out(shipped: Shipped, tmp_path: Path) -> Path:
    return shutil.copytree(shipped.export, tmp_path / "out")


def test_an_export_arrives_as_it_is(out: Path, hub: Hub, koffkit: Koffkit) -> None:
    (out / "notes.txt").write_text("mine")
    told = koffkit("push", out, "acme/lean", "--dry-run", "--json").json["would_upload"]["acme/lean"]
    assert hub.made == {}
    assert koffkit("push", out, "acme/lean", "--json").json == {
        "repositories": {"acme/lean": "https://hub/acme/lean/commit/1"}
    }
    there = hub.root / "acme" / "lean"
    found = {str(path.relative_to(there)): path.stat().st_size for path in there.rglob("*") if path.is_file()}
    assert found == told and "notes.txt" not in found and hub.made == {"acme/lean": True}
    assert {"koffkit.json", "README.md", "backbone/README.md", "memories/north/README.md"} <= found.keys()
    assert koffkit("verify", there).code == 0
    assert torch.equal(
        KoffModel.from_pretrained(there).logits(IDS, "north"),
        KoffModel.from_pretrained(out).logits(IDS, "north"),
    )


def test_memories_go_to_places_of_their_own(out: Path, hub: Hub, koffkit: Koffkit) -> None:
    shown = koffkit("push", out, "acme/lean", "--dry-run", "--split").out
    assert "acme/lean-memory-north: " in shown and "adapter_model.safetensors" in shown
    assert koffkit("push", out, "acme/lean", "--split", "--public").code == 0
    assert hub.made == dict.fromkeys(["acme/lean", "acme/lean-memory-north", "acme/lean-memory-south"], False)
    memory = hub.root / "acme" / "lean-memory-north"
    assert json.loads((memory / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/lean"
    backbone = AutoModelForCausalLM.from_pretrained(hub.root / "acme" / "lean")
    expected = KoffModel.from_pretrained(out).logits(IDS, "north")
    assert torch.equal(
        KoffModel.from_pretrained(hub.root / "acme" / "lean", [memory]).logits(IDS, "north"), expected
    )
    assert PeftModel.from_pretrained(backbone, memory)(IDS).logits.shape == expected.shape


def test_what_cannot_be_pushed_says_why(
    out: Path, hub: Hub, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo in ("lean", "acme/", "../lean", "acme/lean/more"):
        refused = koffkit("push", out, repo, "--dry-run")
        assert refused.code == 2 and "give owner/name" in refused.err
    hub.refuses = True
    refused = koffkit("push", out, "acme/lean")
    assert refused.code == 3 and "the hub did not take it (403 Forbidden" in refused.err
    hub.refuses = False
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused = koffkit("push", out, "acme/lean")
    assert refused.code == 2 and "hf auth login" in refused.err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    weights = next((out / "backbone").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 + 17] ^= 1
    weights.write_bytes(data)
    refused = koffkit("push", out, "acme/lean")
    assert refused.code == 4 and "model.safetensors" in refused.err and not (hub.root / "acme").exists()
