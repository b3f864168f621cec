"""The less travelled ways through the product: every option at once, ragged backbones, the paper's gates."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from koffkit.errors import Interrupted
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit

ALL_AT_ONCE = {
    "mask": {
        "structures": "paper",
        "global_sparsity": 0.25,
        "layout": "ragged",
        "init": "taylor",
        "init_batches": 1,
        "controller": "lagrangian",
        "lambda_rate": 5.0,
        "temperature": {"start": 0.9, "end": 0.3},
    },
    "memory": {
        "layers": {"learned_bytes": 12_000},
        "lora": {"rank": 4, "alpha": 4, "targets": ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
        "kv": {"tokens": 3},
    },
    "distill": {"loss": "blended", "blend": 0.3, "retention_every": 3, "domain_weights": {"south": 2}},
}

PAPERS = {
    "mask": {
        "structures": "paper",
        "global_sparsity": 0.2,
        "layout": "ragged",
        "layers": {"upper": 2},
        "local_sparsity": 0.3,
        "lambda_init": 60,
        "lambda_scaling": "fixed",
        "temperature": 2.0,
    },
    "distill": {"retention_every": 3, "retention_batch_size": 1, "retention_updates": "all"},
}


class StopAt(Silent):
    """Ctrl-C after a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.place = (stage, step)

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        if (stage, done) == self.place:
            signal.raise_signal(signal.SIGINT)


def test_every_option_at_once_resumes_bit_identically(llama: Path, tmp_path: Path) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", **ALL_AT_ONCE)
    loaded = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
    whole = run_recipe(loaded, tmp_path / "whole")
    for stage, step in (("learn_masks", 3), ("recover", 1), ("recover", 3)):
        with pytest.raises(Interrupted, match=f"interrupted in {stage} after step {step}"):
            run_recipe(loaded, tmp_path / "parts", resume=stage == "recover", progress=StopAt(stage, step))
    parts = run_recipe(loaded, tmp_path / "parts", resume=True)
    assert parts.budget == whole.budget
    assert parts.memory_layers == whole.memory_layers
    for figures in (parts.results, whole.results):
        del figures["router"]["milliseconds"]
    assert parts.results == whole.results and len(whole.memory_layers) == 2
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 2 + 2 * 2 + 1  # masks and scores, two halves of two memories, the router
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_choosing_layers_can_be_interrupted(llama: Path, tmp_path: Path) -> None:
    memory = {"layers": {"learned_bytes": 400}, "lora": None, "kv": {"tokens": 3}}  # one layer of three
    loaded = load_recipe(
        write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", memory=memory))
    )
    whole = run_recipe(loaded, tmp_path / "whole")
    with pytest.raises(Interrupted, match="interrupted while choosing layers"):
        run_recipe(loaded, tmp_path / "parts", progress=StopAt("placement", 1))
    parts = run_recipe(loaded, tmp_path / "parts", resume=True)
    assert parts.memory_layers == whole.memory_layers
    assert len(whole.memory_layers) == 1
    kept = Path("memories") / "north" / "kv_memory.safetensors"
    assert (tmp_path / "parts" / kept).read_bytes() == (tmp_path / "whole" / kept).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        ALL_AT_ONCE,
        PAPERS,
        {"mask": {"structures": ["mlp_neuron"], "layout": "ragged", "global_sparsity": 0.3}},
    ],
)
def test_a_ragged_export_is_used_like_any_other(
    changes: dict[str, Any], llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", **changes))
    plan = koffkit("compress", path, "--dry-run", "--json").json["plan"]["budget"]
    assert koffkit("compress", path, "--output", tmp_path / "run").code == 0
    export = koffkit("export", tmp_path / "run", "--output", tmp_path / "out", "--json").json
    assert (
        plan["target_params"] <= export["removed"]["parameters"] < plan["target_params"] + plan["step_params"]
    )
    assert export["backbone"]["class"] == "KoffLlamaForCausalLM"
    verified = koffkit("verify", tmp_path / "out", "--json")
    assert verified.code == 0 and set(verified.json["golden"]) == {"none", "north", "south"}
    shown = koffkit("inspect", tmp_path / "out", "--json").json
    assert (
        "trust_remote_code" in shown["loads_in"]["transformers"]
        and "koffkit.sliced" in shown["loads_in"]["transformers"]
    )
    assert "vllm" not in shown["loads_in"] or "not" in shown["loads_in"]["vllm"]
    assert (
        shown["removed"]["parameters"] == export["removed"]["parameters"]
        and len(set(shown["widths"]["layers"]["intermediate"])) > 1
    )
    layers = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())["sliced_layers"]
    assert len({json.dumps(layer) for layer in layers}) > 1
    if changes is ALL_AT_ONCE:
        assert (
            export["masked"]["mlp_output"] > 0
            and "masked" in (tmp_path / "out" / "backbone" / "README.md").read_text()
        )
    done = koffkit(
        "generate",
        tmp_path / "out",
        "--prompt",
        "river stone",
        "--max-new-tokens",
        3,
        "--memory",
        "north",
        "--json",
    )
    assert done.code == 0 and done.json["completions"][0]["memory"] == "north"
    measured = koffkit(
        "evaluate", tmp_path / "out", "--data", tmp_path / "data" / "north.txt", "--memory", "south", "--json"
    )
    assert measured.code == 0 and measured.json["perplexity"] > 1
    assert koffkit("inspect", tmp_path / "out" / "backbone").code == 0
