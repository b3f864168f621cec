"""Options of a recipe reach the code they are for: each of these tests fails when its option is ignored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.method.gates import mean_gate
from koffkit.method.losses.top_k import TopK
from koffkit.recipe.load import load_recipe
from koffkit.router import load_router
from koffkit.stages.engine import run_recipe
from koffkit.stages.evaluate import evaluate_domains
from koffkit.stages.learn_masks import LearnMasks
from koffkit.training.tracking import track

from ...common import recipe_dict, sentences, write_recipe
from ..training.test_loop import loop_for
from .test_options import MASK


def test_gates_start_as_open_as_asked(llama: Path, tmp_path: Path) -> None:
    gates = loop_for(llama, tmp_path, mask=MASK | {"init": "cold", "init_open": 0.7}).student.gates
    starts = gates.log_alpha["mlp_neuron"].unique().tolist()
    assert [mean_gate(start, gates.temperature) for start in starts] == pytest.approx([0.7])


def test_a_kv_memory_starts_with_the_spread_asked_for(llama: Path, tmp_path: Path) -> None:
    for spread in (0.02, 0.5):
        memories = loop_for(
            llama, tmp_path, memory={"lora": None, "kv": {"tokens": 40, "init": "random", "init_std": spread}}
        ).student.memories
        found = torch.cat([value.detach().flatten() for value in memories.kv_parameters()])
        assert found.std().item() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(("top_p", "most"), [(0.5, 270), (0.9, 270), (0.9, 7)])
def test_top_tokens_by_probability(llama: Path, tmp_path: Path, top_p: float, most: int) -> None:
    loop = loop_for(llama, tmp_path, distill={"top_k": {"top_p": top_p, "max": most}})
    assert TopK.of(loop.objective.options) == TopK(most, top_p)
    covered = loop._step(0)["covered_mass"]
    assert covered < 0.5 if most == 7 else top_p - 0.15 < covered < top_p + 0.1


def test_logits_exist_for_as_many_tokens_as_a_chunk_holds(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.method.losses import chunked

    seen: list[int] = []
    score = chunked.score
    monkeypatch.setattr(
        chunked, "score", lambda student, *rest: seen.append(len(student)) or score(student, *rest)
    )
    for chunk in (7, 1024):
        seen.clear()
        loop_for(llama, tmp_path, distill={"chunk_tokens": chunk})._step(0)
        assert max(seen) == min(chunk, 32) and sum(seen) == 32


@pytest.mark.parametrize(
    ("decay", "half", "last"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.1), ("cosine", 0.5, 0.0245)]
)
def test_decay(llama: Path, tmp_path: Path, decay: str, half: float, last: float) -> None:
    schedule = loop_for(llama, tmp_path, stages=[{"learn_masks": {"max_steps": 10, "decay": decay}}]).schedule
    assert schedule.rate_scale(5) == pytest.approx(half) and schedule.rate_scale(9) == pytest.approx(
        last, abs=1e-3
    )


def test_rates_are_those_of_their_group(llama: Path, tmp_path: Path) -> None:
    rates = {"lora": 1e-3, "kv": 2e-3, "gates": 3e-3}
    loop = loop_for(
        llama, tmp_path, stages=[{"learn_masks": {"max_steps": 10, "lr": rates, "decay": "constant"}}]
    )
    loop._step(0)
    assert {group["name"]: group["lr"] for group in loop.optimizer.param_groups} == rates


def test_precision_and_gradient_checkpointing(llama: Path, tmp_path: Path) -> None:
    plain = loop_for(llama, tmp_path)
    exact = plain._step(0)["kl"]
    assert not plain.student.model.is_gradient_checkpointing
    loop = loop_for(llama, tmp_path, train={"precision": "bf16", "gradient_checkpointing": True})
    assert loop.context.accelerator.mixed_precision == "bf16" and loop.student.model.is_gradient_checkpointing
    rounded = loop._step(0)["kl"]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.2)


def test_products_of_float32_are_computed_as_asked_while_stages_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    run = LearnMasks.run

    def noted(self: LearnMasks, *rest: Any) -> None:
        seen.append(torch.get_float32_matmul_precision())
        run(self, *rest)

    monkeypatch.setattr(LearnMasks, "run", noted)
    for precision in ("medium", "highest"):
        root = tmp_path / precision
        train = {"float32_matmul_precision": precision}
        recipe = recipe_dict(llama, root / "data", stages=[{"learn_masks": {"max_steps": 0}}], train=train)
        run_recipe(load_recipe(write_recipe(root / "recipe.yaml", recipe)), root / "run")
    assert seen == ["medium", "highest"] and torch.get_float32_matmul_precision() == "highest"


def test_the_base_is_held_in_the_type_asked_for(llama: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        loop = loop_for(llama, tmp_path, base={"model": str(llama), "dtype": dtype})
        assert loop.student.head.dtype == getattr(torch, dtype)
        assert {parameter.dtype for parameter in loop.student.memories.lora_parameters()} == {torch.float32}


def test_steps_are_told_to_trackers(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    loop = loop_for(llama, tmp_path)
    monkeypatch.setattr(loop.context.accelerator, "log", lambda values, step: told.append((step, values)))
    track(loop.context, loop.name, 1, {"kl": 0.5, "domain": "north"})
    assert told == []
    train = loop.recipe.train.model_copy(update={"trackers": ["any"]})
    recipe = loop.recipe.model_copy(update={"train": train})
    context = replace(loop.context, loaded=replace(loop.context.loaded, recipe=recipe))
    track(context, loop.name, 3, {"kl": 0.5, "domain": "north"})
    assert told == [(3, {"learn_masks/kl": 0.5})]


def evaluated(llama: Path, root: Path, **options: Any) -> dict[str, Any]:
    """`evaluate` alone, on facts, with untrained memories."""
    root.mkdir(exist_ok=True)
    halves = [text.partition(" ") for text in sentences(8, 60)]
    facts = [
        {"text": first + space + rest, "prompt": first, "answer": space + rest}
        for first, space, rest in halves
    ]
    (root / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    source = {"jsonl": str(root / "facts.jsonl"), "prompt_field": "prompt", "answer_field": "answer"}
    stages = [{"learn_masks": {"max_steps": 0}}, {"evaluate": options}]
    loop = loop_for(llama, root, domains={"one": source, "two": source}, holdout=0.3, stages=stages)
    loop.context.set_masks()
    return evaluate_domains(loop.context, loop.recipe.stages[1].options)


def test_limits_of_evaluation(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from koffkit.data import recall as facts_recall
    from koffkit.data.packing import PackedTokens

    asked: list[int] = []
    monkeypatch.setattr(facts_recall, "recall", lambda predict, facts: asked.append(len(facts)) or [True])
    rows: list[tuple[int, int | None]] = []
    original = PackedTokens.sequences

    def watched(self: PackedTokens, length: int, batch_size: int, most: int | None = None) -> Any:
        rows.append((batch_size, most))
        return original(self, length, batch_size, most)

    monkeypatch.setattr(PackedTokens, "sequences", watched)
    evaluated(llama, tmp_path / "a", recall_limit=9, swap_recall_limit=4, batch_size=3, max_tokens=64)
    assert asked == [9, 9, 9, 4] * 2
    assert rows == [(3, 64)] * 4  # counted for the progress, and read
    asked.clear()
    evaluated(llama, tmp_path / "b", recall_limit=9)
    assert asked == [9, 9, 9, 9] * 2
    asked.clear()
    without = evaluated(llama, tmp_path / "c", swap=False)
    assert asked == [60, 60, 60] * 2 and without["domains"]["one"]["swap"] == {}


@pytest.mark.parametrize(
    ("option", "value", "other"),
    [("num_buckets", 512, 1024), ("epochs", 1, 3), ("max_documents", 20, 60), ("min_confidence", 0.2, 0.9)],
)
def test_options_of_the_default_router(
    llama: Path, tmp_path: Path, option: str, value: float, other: float
) -> None:
    found = []
    for setting in (value, other):
        root = tmp_path / str(setting)
        recipe = recipe_dict(
            llama, root / "data", stages=[{"learn_masks": {"max_steps": 0}}, {"route": {option: setting}}]
        )
        run_recipe(load_recipe(write_recipe(root / "recipe.yaml", recipe)), root / "run")
        router = load_router(root / "run" / "router")
        found.append((router.weight.tobytes(), router.describe()))
    if option == "min_confidence":
        assert [described[option] for _, described in found] == [value, other]
    else:
        assert found[0][0] != found[1][0]
    if option == "num_buckets":
        assert [described[option] for _, described in found] == [value, other]


@pytest.mark.parametrize("trusted", [False, True])
def test_remote_code_is_run_only_if_the_recipe_says_so(
    llama: Path, tmp_path: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    told: list[bool] = []
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        kind = getattr(transformers, name)
        load = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda *a, _load=load, **k: told.append(k["trust_remote_code"]) or _load(*a, **k),
        )
    loop_for(llama, tmp_path, base={"model": str(llama), "dtype": "float32", "trust_remote_code": trusted})
    assert told == [trusted] * 2


def test_adapters_are_where_and_as_strong_as_asked(llama: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 6, "targets": ["v_proj", "down_proj"]}
    memories = loop_for(llama, tmp_path, memory={"layers": [1], "lora": lora, "kv": None}).student.memories
    config, tensors = memories.adapter("north")
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    places = {name.removeprefix("base_model.model.model.").rpartition(".lora_")[0] for name in tensors}
    assert places == {"layers.1.self_attn.v_proj", "layers.1.mlp.down_proj"}
    tuner = memories._tuners[0]
    assert tuner.scaling[memories.slot("north")] == 3.0


def test_checkpoints_come_as_often_as_asked(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.training import loop as training

    steps: list[int] = []
    monkeypatch.setattr(
        training, "save_checkpoint", lambda folder, order, checkpoint: steps.append(checkpoint.step)
    )
    loop_for(llama, tmp_path, train={"checkpoint_every": 2}).run(None)
    assert steps == [2, 4, 6]
