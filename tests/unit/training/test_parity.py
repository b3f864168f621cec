from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koffkit.errors import IntegrityError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe
from koffkit.training import parity

from ...common import recipe_dict, write_recipe

SLOW_TO_FAIL = {
    "structures": ["mlp_neuron", "kv_group"],
    "global_sparsity": 0.2,
    "multiple_of": 1,
    "init": "taylor",
}


class Messages(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def wrong_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neuron of one layer that should stay is taken for one that should go, in one of its three
    matrices."""
    real: Callable[..., Any] = parity.backbone_slices

    def slices(*arguments: Any) -> Any:
        found = real(*arguments)
        kept = found["model.layers.1.mlp.down_proj.weight"][1]
        spare = np.setdiff1d(np.arange(48), kept)[0]
        return found | {"model.layers.1.mlp.down_proj.weight": {1: np.sort(np.append(kept[1:], spare))}}

    monkeypatch.setattr(parity, "backbone_slices", slices)


def wrong_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's rows are cut in the wrong order."""
    real = parity.MemoryCuts.adapter

    def adapter(self: Any, name: str, value: Any) -> Any:
        cut = real(self, name, value)
        return (
            np.ascontiguousarray(cut[::-1])
            if name.endswith("layers.0.self_attn.v_proj.lora_B.weight")
            else cut
        )

    monkeypatch.setattr(parity.MemoryCuts, "adapter", adapter)


@pytest.mark.parametrize(("fault", "condition"), [(wrong_backbone, "none"), (wrong_memory, "north")])
def test_what_would_be_refused_after_training_is_refused_before(
    fault: Callable[..., None], condition: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    recipe = load_recipe(
        write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", mask=SLOW_TO_FAIL))
    )
    with pytest.raises(IntegrityError, match=rf"parity: memory {condition}: .* nothing was learned"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_check_is_made_once_and_not_on_resume(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.errors import Interrupted
    from koffkit.training.loop import DistillationLoop

    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data")))
    first, second = Messages(), Messages()
    real = DistillationLoop._step

    def step(self: Any, number: int) -> Any:
        if number == 4:
            raise Interrupted("now")
        return real(self, number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(DistillationLoop, "_step", step)
        run_recipe(recipe, tmp_path / "run", progress=first)
    run_recipe(recipe, tmp_path / "run", resume=True, progress=second)
    wanted = "checking that masked and sliced agree"
    assert (first.messages.count(wanted), second.messages.count(wanted)) == (1, 0)
