from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from koffkit.training.checkpoint import load_latest
from koffkit.training.heldout import heldout_kl
from koffkit.training.loop import DistillationLoop

from .test_loop import loop_for


def test_it_is_the_kl_to_the_unpruned_model_on_held_out_text(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    context, gates = loop.context, loop.student.gates
    assert gates is not None
    masks = gates.hard(context.budget)
    expected = []
    with torch.no_grad():
        for domain in context.corpus.domains:
            batches = context.corpus.heldout[domain].sequences(16, 2, 2048, from_end=True)
            ids = torch.cat([batch.ids for batch in batches])
            teacher = F.linear(context.unpruned(ids), loop.student.head).log_softmax(-1)
            student = F.linear(loop.student(ids, masks, domain), loop.student.head).log_softmax(-1)
            kl = F.kl_div(student, teacher, reduction="sum", log_target=True) / ids.numel()
            expected.append(kl.item())
    found = heldout_kl(context, masks, 2, with_memory=True)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found > 0
    assert heldout_kl(context, None, 2, with_memory=False) == pytest.approx(0, abs=1e-6)


def rows_and_weights(llama: Path, root: Path, **train: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    root.mkdir()
    loop = loop_for(llama, root, train={"checkpoint_every": 100, **train})
    loop.run(None)
    run = loop.context.run
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return rows, {name: value.detach().clone() for name, value in loop.context.tensors().items()}


def test_training_is_the_same_with_it(llama: Path, tmp_path: Path) -> None:
    plain, weights = rows_and_weights(llama, tmp_path / "a")
    watched, same_weights = rows_and_weights(llama, tmp_path / "b", evaluate_every=2)
    assert [row["step"] for row in watched if "heldout_kl" in row] == [2, 4, 6]
    assert not any("heldout_kl" in row for row in plain)
    assert [row["loss"] for row in watched] == [row["loss"] for row in plain]
    assert set(same_weights) == set(weights)
    for name, value in weights.items():
        assert torch.equal(same_weights[name], value), name


def test_recover_uses_the_masks_that_were_learned(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, train_gates=False, train={"evaluate_every": 1})
    assert loop.context.masks is None
    kl = loop.watch.measured()
    assert kl >= 0
    assert loop.watch.measured() == kl


def patient(
    llama: Path, root: Path, found: list[float], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> DistillationLoop:
    """A loop of six steps that measures after each, and finds what is given."""
    name = "recover" if changes.get("train_gates") is False else "learn_masks"
    stages = [{"learn_masks": {"max_steps": 6}}, {"recover": {"max_steps": 6}}, {"evaluate": {}}]
    stages[["learn_masks", "recover"].index(name)][name]["patience"] = 2
    loop = loop_for(llama, root, stages=stages, train={"evaluate_every": 1}, **changes)
    rest = iter(found)
    monkeypatch.setattr(loop.watch, "measured", lambda: next(rest))
    return loop


def test_a_stage_ends_when_its_patience_does(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = patient(llama, tmp_path, [3.0, 2.0, 2.5, 1.0, 1.0], monkeypatch, train_gates=False)
    said: list[str] = []
    monkeypatch.setattr(type(loop.context.progress), "message", lambda _, text: said.append(text))
    monkeypatch.setattr(type(loop.context.progress), "warn", lambda _, text: said.append(text))
    with pytest.raises(StopIteration):
        loop.run(None)  # 2.5 is once in vain, 1.0 is better, 1.0 again is once: a sixth step begins
    loop.watch.load({})
    rising = iter([1.0, 1.5, 1.2])
    monkeypatch.setattr(loop.watch, "measured", lambda: next(rising))
    said.clear()
    loop.run(None)
    scored, ended = said
    assert "also scored by stage evaluate in north, south" in scored
    assert ended == (
        "recover ends after step 3 of 6: the KL on held-out text was 1.0000 and has not fallen for 2 "
        "measurements (patience)."
    )
    checkpoint = load_latest(loop.context.run.checkpoints_dir)
    assert checkpoint is not None and checkpoint.step == 3
    loop.watch.load({})
    monkeypatch.setattr(loop, "_step", lambda step: pytest.fail(f"step {step} after the end"))
    loop.run(checkpoint)  # the checkpoint knows that the stage has ended


def test_gates_on_their_way_cost_no_patience(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = patient(llama, tmp_path, [float(kl) for kl in range(12)], monkeypatch).watch
    there, far = {"expected_sparsity": 0.101, "sparsity": 0.1}, {"expected_sparsity": 0.05, "sparsity": 0.1}
    for done, figures in ((1, there), (2, there), (3, far), (4, far), (5, far)):  # reach_by: .5 of six
        assert watch.after(done, figures)["heldout_kl"] == done - 1
        assert watch.lowest is None
    watch.after(3, there)
    assert (watch.lowest, watch.in_vain, watch.spent) == (5.0, 0, False)
    watch.after(4, there)
    watch.after(5, there)
    assert watch.spent
