from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe
from koffkit.training.build import build_context
from koffkit.training.loop import DistillationLoop

from ...common import recipe_dict, write_recipe


def loop_for(llama: Path, root: Path, *, train_gates: bool = True, **changes: Any) -> DistillationLoop:
    loaded = load_recipe(write_recipe(root / "recipe.yaml", recipe_dict(llama, root / "data", **changes)))
    context = build_context(loaded, RunFolder(root / "run"), ModelSpec.open(llama), Silent())
    name = "learn_masks" if train_gates else "recover"
    options = next(stage.options for stage in loaded.recipe.stages if stage.name == name)
    joint = getattr(options, "joint", True)
    return DistillationLoop(context, name, options, train_gates=train_gates, train_memories=joint)


def test_domains_take_turns_and_every_third_step_is_retention(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    plan = [loop.schedule.step(step) for step in range(60)]
    assert [retention for _, retention in plan] == [step % 3 == 2 for step in range(60)]
    turns = Counter(domain for domain, retention in plan if not retention)
    assert set(turns) == {"north", "south"} and abs(turns["north"] - turns["south"]) <= 12
    assert len({domain for domain, retention in plan if retention}) == 2  # a random memory is attached
    assert plan == [loop.schedule.step(step) for step in range(60)]


def test_recover_has_no_retention_steps_and_no_gates(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, train_gates=False)
    assert not any(loop.schedule.step(step)[1] for step in range(30))
    assert set(loop.groups) == {"lora", "kv"}


def test_rates_warm_up_and_decay(llama: Path, tmp_path: Path) -> None:
    stages = [{"learn_masks": {"max_steps": 20, "warmup_steps": 4, "decay": decay}} for decay in ("linear",)]
    loop = loop_for(llama, tmp_path, stages=stages)
    scale = [loop.schedule.rate_scale(step) for step in range(20)]
    assert scale[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a >= b for a, b in pairwise(scale[4:])) and 0 < scale[-1] < 0.1


def test_a_retention_step_moves_the_mask_only(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    before = {name: value.detach().clone() for name, value in loop.context.tensors().items()}
    figures = loop._step(2)
    assert figures["domain"] == "retention"
    moved = {
        name.partition(".")[0]
        for name, value in loop.context.tensors().items()
        if not value.detach().equal(before[name])
    }
    assert moved == {"gates"}


def test_accumulating_parts_equals_one_step_on_all_of_them(llama: Path, tmp_path: Path) -> None:
    """Two parts of two rows hold the sequences of one batch of four; with hard gates no noise tells them
    apart."""
    finals = []
    for accumulation, size in ((1, 4), (2, 2)):
        root = tmp_path / str(accumulation)
        root.mkdir()
        stages = [{"learn_masks": {"max_steps": 0}}, {"recover": {"max_steps": 1, "batch_size": size}}]
        train = {"gradient_accumulation": accumulation}
        loaded = load_recipe(
            write_recipe(root / "recipe.yaml", recipe_dict(llama, root / "data", stages=stages, train=train))
        )
        run_recipe(loaded, root / "run")
        finals.append((root / "run" / "metrics.jsonl").read_text())
    import json

    one, two = (json.loads(text) for text in finals)
    assert one["kl"] == pytest.approx(two["kl"], rel=1e-4) and one["tokens"] == two["tokens"] == 64


def test_unknown_trackers_are_refused(llama: Path, tmp_path: Path) -> None:
    from koffkit.errors import UsageError

    with pytest.raises(UsageError, match=r"train\.trackers: 'scrapbook' is not installed or not known"):
        loop_for(llama, tmp_path, train={"trackers": ["scrapbook"]})


def test_bfloat16_and_gradient_checkpointing_train(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, train={"precision": "bf16", "gradient_checkpointing": True})
    before = {name: value.detach().clone() for name, value in loop.context.tensors().items()}
    figures = loop._step(0)
    assert 0 < figures["kl"] < 10
    moved = {
        name.partition(".")[0]
        for name, value in loop.context.tensors().items()
        if not value.detach().equal(before[name])
    }
    assert moved == {"gates", "kv", "lora"}
