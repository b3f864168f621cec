"""The analyses of a finished run, through its own models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from koffkit.exporters import export
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from koffkit.analysis.analyse import analyse
from koffkit.analysis.completions import NEW, complete
from koffkit.analysis.opened import load_memories, open_run
from koffkit.errors import DataError, UsageError
from koffkit.masks.file import load_scores
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.finished import FinishedRun
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe
from ...conftest import Shipped


def opened(path: Path) -> FinishedRun:
    return FinishedRun.open(path)


def test_scores_are_kept_and_agree_with_the_masks(shipped: Shipped) -> None:
    run = opened(shipped.run)
    scores = load_scores(run.folder.scores_file, run.spec)["mlp_neuron"]
    for layer, row in enumerate(scores):
        kept = torch.from_numpy(run.masks[layer, "mlp_neuron"])
        assert row[kept].min() >= row[~kept].max()
    assert "scores.safetensors" in (run.state.files or {})


def test_what_analyses_find(shipped: Shipped) -> None:
    run = opened(shipped.run)
    found = analyse(run, Silent(), device="cpu")
    lape, layers = found["lape"], 3
    assert lape["neurons"] + lape["silent"] == layers * 48
    gone = sum(int((~keep).sum()) for keep in run.masks.values())
    assert lape["pruned"] == pytest.approx(gone / lape["neurons"], abs=lape["silent"] / lape["neurons"])
    assert -1 <= lape["score_correlation"] <= 1
    for key in ("cka", "knn_overlap", "centroid_cosine"):
        values = found["representation"][key]
        assert len(values) == layers + 1
        assert values[0] == pytest.approx(1.0)  # the embeddings are not pruned
        assert values[-1] < 1


def test_completions_are_those_of_the_export(shipped: Shipped) -> None:
    """The run's own model with masks and memories says what the sliced backbone with the bundles says."""
    from koffkit import KoffModel

    model = KoffModel.from_pretrained(shipped.export)
    samples = complete(opened(shipped.run), 1, Silent(), device="cpu")["samples"]
    assert [sample["domain"] for sample in samples] == ["north", "south"]
    for sample in samples:
        domain, continued = sample["domain"], sample["continued"]
        wrong = {"north": "south", "south": "north"}[domain]
        for name, memory in (("backbone", None), ("matched", domain), (f"wrong: {wrong}", wrong)):
            expected = model.generate([sample["prompt"]], memory, max_new_tokens=NEW)
            assert [continued[name]] == expected
        assert len({continued["unpruned"], continued["backbone"], continued["matched"]}) > 1
        assert sample["prompt"] + continued["text"] != sample["prompt"]


@pytest.mark.parametrize("trained", [False, True])
def test_a_repaired_backbone_is_asked_as_it_ships(llama: Path, tmp_path: Path, trained: bool) -> None:
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.3, "repair": "least_squares"}
    stages = [
        {"select_masks": {"selector": "magnitude"}},
        {"recover": {"max_steps": 2, "batch_size": 2, "lr": {"backbone": 1e-2 if trained else None}}},
        {"evaluate": {"max_tokens": 64}},
    ]
    recipe = recipe_dict(llama, tmp_path / "data", mask=mask, stages=stages)
    run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "backbone", dtype=torch.float32)
    asked = open_run(opened(tmp_path / "run"), Silent(), device="cpu")
    ids = (torch.arange(24).reshape(2, 12) * 7919) % 280 + 5
    with torch.no_grad():
        found = F.linear(asked.student(ids, asked.gates), asked.student.head)
        assert torch.allclose(found, sliced(ids).logits, atol=1e-4)


def test_a_memory_of_an_unknown_kind_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    shutil.copytree(shipped.run, tmp_path / "run")
    (tmp_path / "run" / "memories" / "south" / "other.safetensors").write_bytes(b"x")
    opened_run = open_run(opened(tmp_path / "run"), Silent(), device="cpu")
    with pytest.raises(UsageError, match=r"other\.safetensors"):
        load_memories(opened_run)


def test_tokens_that_are_gone_are_named(shipped: Shipped, tmp_path: Path) -> None:
    shutil.copytree(shipped.run, tmp_path / "run")
    (tmp_path / "run" / "data" / "south.heldout.bin").unlink()
    with pytest.raises(DataError, match=r"south\.heldout\.bin: missing"):
        open_run(opened(tmp_path / "run"), Silent(), device="cpu")
