"""The benchmarks still run, at sizes of a test; what they measure is not looked at here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from ..common import sentences, write_recipe
from ..conftest import Koffkit, Shipped
from ..processes import compress, needs_fork

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


@pytest.mark.parametrize(("name", "cached"), [("llama-3.2-3b", True), ("qwen2.5-3b", False)])
def test_throughput(name: str, cached: bool) -> None:
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
    found = module.run(name, config, small, 1, 0.001, cached)
    assert found["tokens_per_second"] > 0
    assert found["peak_memory"] > 0
    assert found["mfu"] > 0
    assert sum(found["spans"].values()) == pytest.approx(1)
    assert all(found["spans"].values())
    assert len(found["kernels"]) == 6


@pytest.mark.parametrize(("cache", "operations"), [(None, 6), ("a cache", 4)])
def test_flops_are_those_of_three_passes_through_the_weights(cache: str | None, operations: int) -> None:
    """At 3B, where everything else is small: 6 operations a weight and token, and some for attention and
    memories."""
    from types import SimpleNamespace

    from koffkit.recipe.load import load_recipe

    module = load("throughput")
    recipe = load_recipe("paper/llama-3.2-3b-topics").recipe
    context = SimpleNamespace(cache=cache)
    loop = SimpleNamespace(recipe=recipe, options=recipe.stages[0].options, context=context)
    assert module.model_flops(module.LLAMA, loop) == pytest.approx(operations * 3.21e9, rel=0.15)


def test_steps_are_timed_beside_those_of_peft(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("sft")
    peaks: list[str] = []
    monkeypatch.setattr(module, "peak_of", lambda model, settings, way: peaks.append(way) or 1)  # processes
    settings = {"tokens": 16, "batch": 2, "rank": 2, "upper": 2}
    loop = module.make_loop(str(llama), settings, tmp_path)
    found = module.found(loop, str(llama), settings, 1)
    for way, row in found["steps"].items():
        assert row["seconds"] > 0 and row["utilisation"] > 0
        assert len(found["operators"][way]) == 10
    assert found["steps"]["sft"]["against_sft"] == 1
    assert sorted(peaks) == sorted(module.WAYS)
    assert module._peak(loop, "cached") > 1e8
    adapters = [name for name in loop.context.tensors() if "layers.0" in name]
    assert not adapters  # memories in the upper two of three layers, as PEFT's


def test_plans_are_held_against_runs(
    llama: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = load("plans")
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path))

    def here(folder: Path, processor: bool, *arguments: str) -> object:
        return koffkit("compress", folder / "recipe.yaml", *arguments, "--json").json

    monkeypatch.setattr(module, "command", here)  # in this process, for speed
    found = module.measure(str(llama), 2, 1, True, False)
    assert {found[name]["basis"] for name in found} == {"machine", "probe", "run"}
    ratios = module.compared(found, "probe")
    assert set(ratios) == {"time", "learn_masks", "recover", "evaluate", "peak_memory", "disk"}
    assert all(ratio > 0 for ratio in ratios.values())
    row = {"basis": "probe", **ratios, "time": 1.2, "peak_memory": 0.95}
    assert module.holds(row) and module.holds(row | {"time": 2.0, "basis": "machine"})
    assert not module.holds(row | {"time": 1.3}) and not module.holds(row | {"peak_memory": 0.85})


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


def test_first_lines(shipped: Shipped, tmp_path: Path) -> None:
    """Every command is measured, and prints something that is no error."""
    module = load("first_line")
    assert module.unmeasured() == []
    (tmp_path / "fresh").mkdir()
    memory = module.prepare(tmp_path / "fresh", shipped.run, shipped.export)
    assert memory == "north"
    for name in ("recipe list", "inspect RUN"):
        assert 0 < module.least(module.COMMANDS[name].split(), tmp_path / "fresh", 1) < 60
    with pytest.raises(click.ClickException, match="Error"):
        module.least(["inspect", "nowhere"], tmp_path / "fresh", 1)


def test_scale_model(tmp_path: Path) -> None:
    module, path = load("scale_model"), tmp_path / "new" / "scale.json"
    found = CliRunner().invoke(
        module.main, ["--model", "Qwen/Qwen2.5-14B", "--gpus", "1,64", "--domains", "9", "--json", str(path)]
    )
    assert found.exit_code == 0, found.output
    assert "9 domains" in found.output
    assert "The recipe's tokens stay the same" in found.output
    result = json.loads(path.read_text())
    assert [(row["gpus"], row["fits"]) for row in result["rows"]] == [(1, False), (64, True)]
    steps = [check["measured"][0] for check in result["checks"] if "SmolLM2" in check["what"]]
    assert steps == [1.3, 0.681, 0.734, 404] and len(result["checks"]) == 11
    assert all(check["agrees"] for check in result["checks"])


@needs_fork
@pytest.mark.slow
def test_what_each_process_holds_is_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("processes")

    def forked(path: Path, run: Path, processes: int) -> str:
        (run.parent / "messages").write_text("")
        assert compress(path, run, processes, shard=True) == [0] * processes
        return (run.parent / "messages").read_text()

    monkeypatch.setattr(module, "command", forked)
    tree = module.recipe(module.make_model(tmp_path / "model", 64, 2), 1, 2)
    rows = [module.measure(write_recipe(tmp_path / "recipe.yaml", tree), count) for count in (1, 2)]
    assert [row["weights"] for row in rows] == [row["weights_planned"] for row in rows]
    assert rows[0]["weights"] > rows[1]["weights"]
    assert all(row["peak"] > 1e8 for row in rows)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ({}, True),
        ({"peak": 1090}, True),
        ({"peak": 900}, False),
        ({"peak": 1130}, False),
        ({"weights": 98}, False),
    ],
)
def test_a_process_that_takes_more_or_less_than_planned_is_seen(found: dict[str, int], holds: bool) -> None:
    planned = {"processes": 2, "weights_planned": 100, "peak_planned": 1000}
    assert load("processes").holds({**planned, "weights": 100, "peak": 1000, **found}) is holds


def test_a_measured_point_that_contradicts_the_counts_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("scale_model")
    off = module.Point("seconds", "nowhere", (10.0, 12.0), (13.0, 20.0), 0.05)
    assert not off.agrees
    assert module.Point("seconds", "nowhere", (10.0, 12.0), (13.0, 20.0), 0.1).agrees
    monkeypatch.setattr(module, "points", lambda: [off])
    found = CliRunner().invoke(
        module.main, ["--model", "Qwen/Qwen2.5-3B", "--gpus", "1", "--json", str(tmp_path / "scale.json")]
    )
    assert found.exit_code == 1
    assert "IS OFF" in found.output


def test_retention_text_has_the_right_answers(tmp_path: Path) -> None:
    """Questions, sixteen of each file, as lm-eval asks them; after four documents of them one of prose."""
    for number, name in enumerate(("arc_easy_train", "arc_challenge_train")):
        asked = [
            {"question": f"What is {number} and {at}?", "choices": ["wrong", f"{number}-{at}"], "answer": 1}
            for at in range(16)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    (tmp_path / "openstax_other.txt").write_text("A first text.\nIts end.\n\nA second text.\n")
    module = load("real/retention")
    found = CliRunner().invoke(
        module.main, ["--corpus", str(tmp_path), "--output", str(tmp_path / "new" / "text.txt")]
    )
    assert found.exit_code == 0, found.output
    documents = (tmp_path / "new" / "text.txt").read_text().rstrip("\n").split("\n\n")
    assert len(documents) == 5
    assert documents[4] in ("A first text.\nIts end.", "A second text.")
    lines = "\n".join(documents[:4]).splitlines()
    answers = {f"Question: What is {a} and {b}?": f"Answer: {a}-{b}" for a in range(2) for b in range(16)}
    assert dict(zip(lines[::2], lines[1::2], strict=True)) == answers
