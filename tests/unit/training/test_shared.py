from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit.errors import IntegrityError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe


class Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Runs:
    """Runs of one recipe with changes, in folders of their own."""

    def __init__(self, base: Path, root: Path) -> None:
        self.root, self.shared = root, root / "shared"
        self.tree = recipe_dict(base, root / "data", seed=3)
        self.tree["mask"] = {"structures": ["mlp_neuron"], "layout": "ragged", "global_sparsity": 0.1}
        neurons = {"count": 2, "layout": "ragged"}
        self.tree["memory"] = {"layers": "all", "lora": None, "kv": None, "neurons": neurons}

    def learned(self, name: str, shared: Path | None, **changes: Any) -> tuple[dict[str, bytes], list[str]]:
        """The files that were learned, and what of it earlier runs had found."""
        options = {"selector": "sensitivity", "batches": 2, **changes.pop("select", {})}
        self.tree["stages"] = [{"select_masks": options}, {"restore": {"batches": 2, "batch_size": 2}}]
        tree = self.tree | changes
        heard = Heard()
        loaded = load_recipe(write_recipe(self.root / f"{name}.yaml", tree))
        run_recipe(loaded, self.root / name, progress=heard, shared=shared)
        paths = sorted((self.root / name).rglob("*.safetensors"))
        files = {path.relative_to(self.root / name).as_posix(): path.read_bytes() for path in paths}
        return files, [text.partition(":")[0] for text in heard.messages if "earlier run" in text]


@pytest.fixture
def runs(llama: Path, tmp_path: Path) -> Runs:
    return Runs(llama, tmp_path)


def test_runs_of_other_sparsities_share_scores_and_learn_what_they_learn_alone(runs: Runs) -> None:
    more = runs.tree["mask"] | {"global_sparsity": 0.2, "repair": "least_squares", "repair_tokens": 256}
    _, found = runs.learned("first", runs.shared)
    assert found == []
    second, found = runs.learned("second", runs.shared, mask=more)
    assert found == ["select_masks", "restore"]
    alone, found = runs.learned("alone", None, mask=more)
    assert found == []
    assert "masks.safetensors" in alone
    assert second == alone


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"sequence_length": 12},
        {"select": {"batches": 1}},
        {"distill": {"chunk_tokens": 8}},
        {"holdout": 0.3},
    ],
    ids=str,
)
def test_what_scores_depend_on_is_not_shared(runs: Runs, changes: dict[str, Any]) -> None:
    runs.learned("first", runs.shared)
    _, found = runs.learned("second", runs.shared, **changes)
    assert "select_masks" not in found


def test_a_selector_from_outside_that_does_not_say_so_shares_nothing_across_sparsities(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.selectors.sensitivity import Sensitivity

    monkeypatch.setattr(Sensitivity, "any_sparsity", False)
    runs.learned("first", runs.shared)
    _, found = runs.learned("second", runs.shared, mask=runs.tree["mask"] | {"global_sparsity": 0.2})
    assert found == ["restore"]


def test_a_damaged_file_is_named(runs: Runs) -> None:
    runs.learned("first", runs.shared)
    path = next(runs.shared.glob("select_masks-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=f"{path.name}.*delete the file"):
        runs.learned("second", runs.shared)
