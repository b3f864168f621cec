from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.defaults import SIZES
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError

from ...common import SIZES as TINY
from ...common import make_checkpoint

SUPPORTED = ["gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"]


def folder_with(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("family", SUPPORTED)
def test_what_is_left_out_is_what_transformers_takes_it_for(family: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    widths = {"num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 96}
    spec = ModelSpec.open(folder_with(tmp_path, {"model_type": family, **widths}))
    whole = CONFIG_MAPPING[family](**widths).to_dict()
    assert {key: spec.config[key] for key in SIZES} == {key: whole[key] for key in SIZES}
    head_dim = whole.get("head_dim") or whole["hidden_size"] // whole["num_attention_heads"]
    assert spec.shape.head_dim == head_dim


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_tensors_of_a_config_without_head_dim_are_those_of_its_class(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {"model_type": family, **TINY, "vocab_size": 300}
    spec = ModelSpec.open(folder_with(tmp_path, config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert spec.num_parameters == model.num_parameters()


def test_a_complete_config_does_not_need_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = {"model_type": "llama", **TINY, "vocab_size": 300}
    assert ModelSpec.open(folder_with(tmp_path, config)).config == config


def test_a_config_that_transformers_does_not_accept_is_named(tmp_path: Path) -> None:
    config = {"model_type": "llama", **TINY, "rms_norm_eps": "small"}
    with pytest.raises(UsageError, match=r"config\.json: vocab_size left out, and transformers cannot"):
        ModelSpec.open(folder_with(tmp_path, config))


def test_what_is_filled_in_must_fit_the_weights(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path)
    config = json.loads((base / "config.json").read_text())
    del config["vocab_size"]
    folder_with(base, config)
    with pytest.raises(UsageError, match=r"config\.json: it does not state vocab_size \(which then is 320"):
        ModelSpec.open(base)
