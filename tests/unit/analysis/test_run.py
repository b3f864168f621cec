"""The analyses of a finished run, through its own models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from koffkit.analysis.analyse import analyse
from koffkit.analysis.completions import NEW, complete
from koffkit.analysis.opened import load_memories, open_run
from koffkit.errors import DataError, UsageError
from koffkit.masks.file import load_scores
from koffkit.progress import Silent
from koffkit.run.finished import FinishedRun

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
