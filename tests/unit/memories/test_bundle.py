from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.artefact.digests import file_entry
from koffkit.artefact.export import open_export
from koffkit.memories.compact_bundle import Options, write_compact

from ...common import write_record
from ...conftest import Shipped

IDS = torch.arange(10).reshape(1, 10) + 4
FIELD = "base_model_name_or_path"


def test_peft_finds_the_backbone_from_inside_a_bundle(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shipped.export / "memories" / "north"
    assert PeftConfig.from_pretrained(str(bundle)).base_model_name_or_path == "../../backbone"
    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(shipped.export / "backbone"), str(bundle)
    ).eval()
    monkeypatch.chdir(bundle)
    found = AutoPeftModelForCausalLM.from_pretrained(".").eval()
    assert torch.equal(found(IDS).logits, stock(IDS).logits)


def test_a_bundle_that_names_no_base_still_loads_and_is_compacted_into_one_that_does(
    shipped: Shipped, tmp_path: Path
) -> None:
    """As bundles were written first."""
    old = Path(shutil.copytree(shipped.export, tmp_path / "old"))
    bundle = old / "memories" / "north"
    config = json.loads((bundle / "adapter_config.json").read_text())
    (bundle / "adapter_config.json").write_text(json.dumps(config | {FIELD: None}))
    info = json.loads((bundle / "memory.json").read_text())
    info["files"]["adapter_config.json"] = file_entry(bundle / "adapter_config.json").to_json()
    write_record(bundle / "memory.json", info)
    expected = KoffModel.from_pretrained(shipped.export).logits(IDS, "north")
    assert torch.equal(KoffModel.from_pretrained(old / "backbone", [bundle]).logits(IDS, "north"), expected)
    export, small = open_export(old), tmp_path / "small"
    small.mkdir()
    write_compact(
        next(b for b in export.bundles() if b.domain == "north"), export, Options(dtype="float16"), small
    )
    assert json.loads((small / "adapter_config.json").read_text())[FIELD] == "../../backbone"
