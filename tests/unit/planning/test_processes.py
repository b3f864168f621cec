"""The plan for several processes, on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.planning.cluster import H100, estimate, layer_bytes, local
from koffkit.planning.forecast import forecast_of
from koffkit.planning.machine import Machine
from koffkit.planning.peak import held_by_heap
from koffkit.planning.plan import make_plan
from koffkit.planning.processes import shared_run
from koffkit.planning.shapes import SHAPES
from koffkit.recipe.load import load_recipe, recipe_from_tree
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict, write_recipe
from ...conftest import Koffkit

CPU = Machine(operations={"float32": 1e9, "bfloat16": 1e9}, bytes=1e12, call=0.0, at_once=False)
GPU = replace(CPU, at_once=True)
UNKNOWN: dict[str, int | None] = {}


def large() -> tuple[Any, ModelSpec]:
    recipe = load_recipe("llama-3.2-3b-topics", ["stages.0.learn_masks.batch_size=8"]).recipe
    return recipe, ModelSpec(config=SHAPES["meta-llama/Llama-3.2-3B"])


@pytest.mark.parametrize(("processes", "sequences"), [(2, 4), (3, 3), (8, 1)])
def test_each_process_has_its_share_of_the_sequences_and_a_device(processes: int, sequences: int) -> None:
    recipe, spec = large()
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    one = forecast_of(recipe, spec, make_plan(recipe, spec), GPU, UNKNOWN).seconds["learn_masks"]
    found = shared_run(recipe, spec, GPU, UNKNOWN, processes, shard=False)
    assert found.sequences == sequences
    assert found.seconds["learn_masks"] == pytest.approx(one * sequences / 8, rel=0.05)  # type: ignore[operator]
    assert found.peak_memory < make_plan(recipe, spec).peak_memory_bytes


def test_processes_divide_a_cpu() -> None:
    recipe, spec = large()
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    one = forecast_of(recipe, spec, make_plan(recipe, spec), CPU, UNKNOWN).seconds["learn_masks"]
    found = shared_run(recipe, spec, CPU, UNKNOWN, 4, shard=False)
    assert found.seconds["learn_masks"] == pytest.approx(one, rel=0.05)


def test_memory_is_that_of_the_model_for_clusters() -> None:
    recipe, spec = large()
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    whole = shared_run(recipe, spec, GPU, UNKNOWN, 4, shard=False)
    parts = shared_run(recipe, spec, GPU, UNKNOWN, 4, shard=True)
    assert whole.peak_memory == estimate(recipe, spec, H100, 4).memory
    saved = layer_bytes(recipe, spec) * (3 / 4 - 3 / spec.num_layers)
    assert whole.peak_memory - parts.peak_memory == pytest.approx(saved, abs=2)
    assert (whole.sharded, parts.sharded) == (False, True)
    on_cpu = [shared_run(recipe, spec, None, UNKNOWN, 4, shard=shard) for shard in (False, True)]
    assert on_cpu[1].seconds == {"learn_masks": None}
    more = on_cpu[0].peak_memory - whole.peak_memory, on_cpu[1].peak_memory - parts.peak_memory
    assert more == (held_by_heap(local(recipe, 4), spec), 0) and more[0] > 0


def qwen2(hidden: int, layers: int, dtype: str = "float32") -> ModelSpec:
    """The models of benchmarks/processes.py."""
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return ModelSpec(
        config={"model_type": "qwen2", "vocab_size": 2560, "hidden_act": "silu", "dtype": dtype}
        | sizes
        | heads
    )


def learning(tmp_path: Path, sequences: int) -> Recipe:
    """Their recipe."""
    targets = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    tree = {
        "koffkit": 1,
        "name": "processes",
        "base": {"model": "m", "dtype": "float32"},
        "domains": {"changes": {"text": "changes.txt"}},
        "sequence_length": 128,
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.1},
        "memory": {"layers": "all", "lora": {"rank": 8, "alpha": 8, "targets": targets}, "kv": None},
        "stages": [{"learn_masks": {"max_steps": 4, "batch_size": sequences}}],
    }
    return recipe_from_tree(tree, [], tmp_path).recipe


@pytest.mark.parametrize(
    ("hidden", "layers", "sequences", "processes", "measured"),
    [
        (768, 12, 4, 1, 1_489_756_160),
        (768, 12, 4, 2, 950_001_664),
        (768, 12, 4, 4, 750_989_312),
        (1024, 8, 4, 1, 1_505_017_856),
        (1024, 8, 4, 2, 998_019_072),
        (1024, 8, 4, 4, 820_510_720),
        (1024, 8, 2, 1, 1_164_000_000),
        (512, 16, 8, 1, 1_869_000_000),
        (768, 12, 1, 1, 975_000_000),
    ],
)
def test_runs_that_were_measured(
    hidden: int, layers: int, sequences: int, processes: int, measured: int, tmp_path: Path
) -> None:
    """Peaks of one process on a CPU, with glibc; several divide the layers."""
    recipe, spec = learning(tmp_path, sequences), qwen2(hidden, layers)
    found = shared_run(recipe, spec, None, UNKNOWN, processes, shard=processes > 1)
    assert found.peak_memory == pytest.approx(measured, rel=0.1)


def test_a_base_that_is_read_in_another_type_is_there_twice_for_a_while(tmp_path: Path) -> None:
    """919 MB were measured; in training 720."""
    recipe, spec = learning(tmp_path, 4), qwen2(768, 12, "bfloat16")
    assert shared_run(recipe, spec, None, UNKNOWN, 4, shard=True).peak_memory == pytest.approx(919e6, rel=0.1)
    as_stored = shared_run(recipe, qwen2(768, 12), None, UNKNOWN, 4, shard=True)
    assert as_stored.peak_memory == shared_run(recipe, spec, GPU, UNKNOWN, 4, shard=True).peak_memory < 8e8


def test_more_processes_than_sequences_are_refused() -> None:
    recipe, spec = large()
    with pytest.raises(UsageError, match=r"stages\.learn_masks\.batch_size: 8 x .* too few for 9 processes"):
        shared_run(recipe, spec, None, UNKNOWN, 9, shard=False)


def test_what_a_run_would_refuse_a_plan_refuses() -> None:
    recipe, spec = large()
    uneven = recipe.model_copy(update={"train": recipe.train.model_copy(update={"gradient_accumulation": 3})})
    shared_run(uneven, spec, None, UNKNOWN, 4, shard=False)
    with pytest.raises(UsageError, match="batches each, which --shard cannot do"):
        shared_run(uneven, spec, None, UNKNOWN, 4, shard=True)


def test_the_dry_run_says_it(
    koffkit: Koffkit, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = recipe_dict(llama, tmp_path / "data")
    tree["memory"] = {"lora": None, "kv": None, "neurons": {"count": 2}}
    tree["stages"] = [{"select_masks": {"selector": "magnitude"}}, {"restore": {"batches": 1}}]
    tree["stages"] += [{"recover": {"max_steps": 2, "batch_size": 2}}]
    path = str(write_recipe(tmp_path / "recipe.yaml", tree))
    alone = koffkit("compress", path, "--dry-run")
    assert "6 neurons" in alone.out and "0 layers" not in alone.out and "processes" not in alone.out
    told = koffkit("compress", path, "--dry-run", "--num-processes", "2", "--shard").out
    assert "each of 2 processes" in told and "a part of the base, 1 sequence at once" in told
    shown = json.loads(koffkit("compress", path, "--dry-run", "--num-processes", "2", "--json").out)
    assert shown["processes"]["processes"] == 2 and shown["processes"]["sharded"] is False
    assert shown["plan"]["memory_neurons"] == 6
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("ACCELERATE_USE_FSDP", "1"),
    ):
        monkeypatch.setenv(name, value)
    shown = json.loads(koffkit("compress", path, "--dry-run", "--json").out)
    assert shown["processes"]["processes"] == 2 and shown["processes"]["sharded"] is True


def test_one_process_divides_nothing(koffkit: Koffkit, llama: Path, tmp_path: Path) -> None:
    path = str(write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data")))
    refused = koffkit("compress", path, "--dry-run", "--shard")
    assert refused.code == 2 and "--shard divides the model among processes" in refused.err
