"""What the backbone keeps of held-out retention text."""

from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe
from ...conftest import Shipped


def test_retention_text_is_held_out_and_scored(shipped: Shipped) -> None:
    kept = RunFolder(shipped.run).read().results["retention"]
    assert set(kept) == {"tokens", "unpruned", "backbone", "auto", "memories"}
    assert set(kept["memories"]) == {"north", "south"}
    assert kept["tokens"] > 10
    assert kept["unpruned"]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(figures["kl"] > 1e-4 for figures in (kept["backbone"], *kept["memories"].values()))


def test_the_routed_memory_is_one_of_them(shipped: Shipped) -> None:
    """The router knows retention text as such: it gets no memory, or now and then one of the two."""
    kept = RunFolder(shipped.run).read().results["retention"]
    candidates = [kept["backbone"]["kl"], *(figures["kl"] for figures in kept["memories"].values())]
    assert min(candidates) - 1e-6 <= kept["auto"]["kl"] <= max(candidates) + 1e-6


def test_what_is_held_out_does_not_train(shipped: Shipped) -> None:
    data = RunFolder(shipped.run).data_dir
    train, heldout = ((data / f"_retention.{part}.bin").stat().st_size for part in ("train", "heldout"))
    assert 0 < heldout < 0.25 * train


def test_a_single_document_is_not_held_out(llama: Path, tmp_path: Path) -> None:
    tree = recipe_dict(llama, tmp_path / "data", stages=[{"evaluate": {"max_tokens": 32, "swap": False}}])
    (tmp_path / "data" / "general.txt").write_text("river stone lamp cloud " * 40)
    tree |= {"mask": tree["mask"], "stages": [{"learn_masks": {"max_steps": 1}}, *tree["stages"]]}
    state = run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", tree)), tmp_path / "run")
    assert "retention" not in state.results
    assert "domains" in state.results
