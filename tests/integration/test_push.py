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
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from koffkit import KoffModel

from ..common import write_record
from ..conftest import Koffkit, Shipped

IDS = torch.arange(10).reshape(1, 10) + 4


class Hub:
    """Takes commits as the hub does: whole."""

    def __init__(self, root: Path) -> None:
        self.root, self.made, self.refuses = root, {}, False

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.setdefault(repo, private)

    def model_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.made[repo])

    def list_repo_files(self, repo: str) -> list[str]:
        root = self.root / repo
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]

    def create_commit(self, repo: str, operations: list[CommitOperationAdd], *, commit_message: str) -> Any:
        if self.refuses:
            raise HfHubHTTPError(
                "403 Forbidden: you may not write here", response=SimpleNamespace(headers={}, request=None)
            )
        for operation in operations:
            place = self.root / repo / operation.path_in_repo
            if isinstance(operation, CommitOperationDelete):
                place.unlink()
                continue
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
    assert koffkit("push", out, "acme/lean", "--split", "--public", "--license", "mit").code == 0
    assert hub.made == dict.fromkeys(["acme/lean", "acme/lean-memory-north", "acme/lean-memory-south"], False)
    memory = hub.root / "acme" / "lean-memory-north"
    assert json.loads((memory / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/lean"
    header = yaml.safe_load((memory / "README.md").read_text().split("---\n")[1])
    assert (header["base_model"], header["base_model_relation"]) == ("acme/lean", "adapter")
    assert header["license"] == "mit" and header["library_name"] == "peft"
    assert 'from_pretrained(backbone, "acme/lean-memory-north")' in (memory / "README.md").read_text()
    card = (hub.root / "acme" / "lean" / "README.md").read_text()
    assert 'from_pretrained("acme/lean")' in card and "license: mit" in card
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


def test_what_is_public_needs_a_license(out: Path, hub: Hub, koffkit: Koffkit) -> None:
    refused = koffkit("push", out, "acme/lean", "--public")
    assert refused.code == 2 and "say which with --license" in refused.err and hub.made == {}
    told = koffkit("push", out, "acme/lean", "--public", "--dry-run")
    assert told.code == 0 and "would be refused: " in told.err
    assert koffkit("push", out, "acme/lean", "--public", "--dry-run", "--json").json["refused"]
    assert koffkit("push", out, "acme/lean", "--public", "--license", "mit").code == 0
    assert "license: mit" in (hub.root / "acme" / "lean" / "memories" / "north" / "README.md").read_text()
    tree = json.loads((out / "koffkit.json").read_text())
    tree["base"]["license"] = {"license": "apache-2.0"}
    write_record(out / "koffkit.json", tree)
    assert koffkit("push", out, "acme/lean", "--public").code == 0


def test_a_public_repository_is_no_place_for_a_private_push(out: Path, hub: Hub, koffkit: Koffkit) -> None:
    hub.made["acme/lean"] = False
    refused = koffkit("push", out, "acme/lean")
    assert refused.code == 2 and "everybody can see it" in refused.err and not hub.root.exists()


def test_what_an_export_has_lost_goes_from_the_hub_and_nothing_else(
    out: Path, hub: Hub, koffkit: Koffkit
) -> None:
    assert koffkit("push", out, "acme/lean").code == 0
    there = hub.root / "acme" / "lean"
    (there / "picture.png").write_bytes(b"mine")
    assert koffkit("memory", "remove", out, "south").code == 0
    assert koffkit("push", out, "acme/lean").code == 0
    assert not list(there.glob("memories/south/*")) and (there / "picture.png").exists()
    assert (there / "memories" / "north" / "memory.json").exists()
