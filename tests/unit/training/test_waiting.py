"""Memories that wait while another one trains. A type stands for the place, for there is no accelerator here:
memories change it where they would change the device, so one in the wrong place cannot be computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.errors import Interrupted, UsageError
from koffkit.model.memory import Memories
from koffkit.progress import Silent
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.stages.engine import run_recipe
from koffkit.training import loop, waiting

from ...common import recipe_dict, write_recipe

MEMORY = {
    "layers": "all",
    "lora": {"rank": 2, "alpha": 2, "targets": ["up_proj", "down_proj"]},
    "kv": {"tokens": 3},
    "neurons": {"count": 2, "tuned": True},
}
STAGES = [
    {"learn_masks": {"max_steps": 5}},
    {"restore": {}},
    {"recover": {"max_steps": 6}},
    {"evaluate": {}},
]
MASK = {"structures": ["mlp_neuron"], "global_sparsity": 0.1, "multiple_of": 1}


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Whose memories or moments were at home whenever one was attached for training, from now on."""
    found: list[set[str]] = []
    waits, attaches = waiting.others_waiting, Memories.attach

    def here(memories: Memories, optimizer: torch.optim.Optimizer) -> set[str]:
        tensors = memories.tensors().items()
        moments = [(name, value) for name, own in tensors for value in optimizer.state.get(own, {}).values()]
        own = [name for name, value in [*tensors, *moments] if value.ndim and value.dtype == torch.float32]
        return {slot for name in own for slot in ("m0", "m1") if slot in name.split(".")}

    @contextmanager
    def watched(memories: Memories, optimizer: torch.optim.Optimizer, home: torch.device) -> Iterator[None]:
        def attach(memories: Memories, domain: str | None) -> None:
            attaches(memories, domain)
            if domain is not None:
                found.append(here(memories, optimizer))

        if memories is None:
            yield
            return
        with monkeypatch.context() as patch, waits(memories, optimizer, torch.float32):
            patch.setattr(Memories, "attach", attach)
            yield
        assert here(memories, optimizer) == {"m0", "m1"}

    monkeypatch.setattr(waiting, "PLACE", torch.float64)
    monkeypatch.setattr(loop, "others_waiting", watched)
    return found


class Stopping(Silent):
    """Stops a run in its recover."""

    def advance(self, name: str, done: int, figures: Any) -> None:
        if (name, done) == ("recover", 5):
            raise Interrupted("stopped by the test")


def recipe_of(llama: Path, root: Path, **train: Any) -> LoadedRecipe:
    settings = {"checkpoint_every": 2, "evaluate_every": 3} | train
    whole = recipe_dict(llama, root / "data", memory=MEMORY, stages=STAGES, mask=MASK, train=settings)
    return load_recipe(write_recipe(root / "recipe.yaml", whole))


def memories_of(run: Path) -> dict[str, bytes]:
    files = sorted((run / "memories").rglob("*.safetensors"))
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_one_memory_at_a_time_learns_what_all_at_once_learn(
    llama: Path, tmp_path: Path, at_home: list[set[str]]
) -> None:
    (tmp_path / "all").mkdir()
    run_recipe(recipe_of(llama, tmp_path / "all"), tmp_path / "all" / "run")
    expected = memories_of(tmp_path / "all" / "run")
    assert at_home == [] and len(expected) == 6
    recipe = recipe_of(llama, tmp_path, page_memories=True)
    run_recipe(recipe, tmp_path / "run")
    assert memories_of(tmp_path / "run") == expected
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "again", progress=Stopping())
    run_recipe(recipe, tmp_path / "again", resume=True)
    assert memories_of(tmp_path / "again") == expected and set(map(tuple, at_home)) == {("m0",), ("m1",)}


def test_a_cpu_has_nowhere_to_let_them_wait(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"page_memories: true, but the CPU computes.*--device"):
        run_recipe(recipe_of(llama, tmp_path, page_memories=True), tmp_path / "run")
