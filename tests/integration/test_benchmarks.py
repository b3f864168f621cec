"""The benchmarks still run, at sizes of a test; what they measure is not looked at here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ..common import sentences
from ..conftest import Shipped

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compact_memories(shipped: Shipped, tmp_path: Path) -> None:
    found = load("memory_compact").measure(
        shipped.run, shipped.export, tmp_path / "scratch", {"dtype": "int8"}, 64
    )
    assert set(found["domains"]) == {"north", "south"}
    assert found["kl_before"] > 0
    assert 0 < found["ratio"] < 1
    assert found["router"] > 0


@pytest.mark.parametrize("name", ["llama-3.2-3b", "qwen2.5-3b"])
def test_throughput(name: str) -> None:
    module = load("throughput")
    toy = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = module.SHAPES[name] | toy | {"head_dim": 8, "vocab_size": 300}
    small = [
        "memory.layers={upper: 1}",
        "memory.lora.rank=2",
        "memory.kv.tokens=4",
        "sequence_length=16",
        "train.precision=no",
    ]
    found = module.run(name, config, small, 1, 0.001)
    assert found["tokens_per_second"] > 0
    assert found["peak_memory"] > 0
    assert found["mfu"] > 0
    assert sum(found["spans"].values()) == pytest.approx(1)
    assert all(found["spans"].values())
    assert len(found["kernels"]) == 6


def test_flops_are_those_of_three_passes_through_the_weights() -> None:
    """At 3B, where everything else is small: 6 operations a weight and token, and some for attention and
    memories."""
    from types import SimpleNamespace

    from koffkit.recipe.load import load_recipe

    module = load("throughput")
    loop = SimpleNamespace(
        recipe=load_recipe("paper/llama-3.2-3b-topics").recipe,
        student=SimpleNamespace(memories=SimpleNamespace(layers=list(range(16)))),
    )
    assert module.model_flops(module.LLAMA, loop) == pytest.approx(6 * 3.21e9, rel=0.12)


def test_the_ablations_are_recipes_that_load(tmp_path: Path) -> None:
    from koffkit.recipe.load import load_recipe

    module = load("ablation")
    recipes = [
        load_recipe("quickstart", module.settings(sets, 10)).recipe for sets in module.VARIANTS.values()
    ]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes)
    figures = {"recall": 0.9, "kl": 0.1, "perplexity": 2.0}
    row = {
        "mean": {"unpruned": figures, "backbone": figures, "matched": figures},
        "sparsity": 0.3,
        "layers": [0],
    }
    module.show({"one": [row, row], "two": [row]}, [0, 1])
    module.draw({"one": [row, row], "two": [row]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_documents_apart(llama: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        lines = ["\n".join(sentences(seed * 500 + number, 3)) for number in range(200)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    benchmark = load("real/documents_apart")
    texts = benchmark.texts_of(tmp_path, 800)
    assert len(texts) == 3
    for text in texts.values():
        found = benchmark.measure(llama, text, 64)
        assert found["tokens"] > 100
        assert found["across"] != found["apart"]
