"""A learned choice of neurons through the command line, on the embedded base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..common import sentences
from ..conftest import Koffkit

RECIPE = """
koffkit: 1
name: learned
base: {model: "embedded:base"}
domains: {north: {text: north.txt}, south: {text: south.txt}}
sequence_length: 32
mask: {structures: [mlp_neuron], global_sparsity: 0.3, layout: ragged, repair: least_squares,
       repair_tokens: 2048}
memory: {lora: null, kv: null, neurons: {count: 20, layout: ragged}}
stages:
  - select_masks: {selector: magnitude}
  - restore: {score: learned, steps: 4, batches: 2, batch_size: 2}
  - evaluate: {max_tokens: 256, batch_size: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "kept"))
    for seed, name in enumerate(("north", "south")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(sentences(seed, 200)) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_it_is_planned_timed_run_and_exported(recipe: Path, koffkit: Koffkit) -> None:
    planned = koffkit("compress", recipe, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert planned.json["plan"]["training_tokens"] == {"restore": 4 * 2 * 32 * 2}
    probed = koffkit("compress", recipe, "--dry-run", "--probe", 1, "--json")
    assert probed.code == 0, probed.err
    assert probed.json["forecast"]["seconds"]["restore"] > 0
    run = koffkit("compress", recipe, "--output", "run")
    assert run.code == 0, run.err
    assert run.err.count("learning changed") == 2
    state = json.loads(Path("run/run.json").read_text())
    assert state["results"]["mean"]["matched"]["kl"] < state["results"]["mean"]["backbone"]["kl"]
    exported = koffkit("export", "run", "--format", "hf", "--output", "out")  # refuses what is not the same
    assert exported.code == 0, exported.err


def test_steps_without_learning_are_refused_before_anything_is_read(
    recipe: Path, koffkit: Koffkit, tmp_path: Path
) -> None:
    told = koffkit("compress", recipe, "--set", "stages.restore.score=activation", "--output", "run")
    assert told.code == 2
    assert (
        "steps: nothing is learned with score: activation; set score: learned, or leave steps out" in told.err
    )
    assert not (tmp_path / "run").exists()
