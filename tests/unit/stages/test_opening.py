from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koffkit.errors import IntegrityError, UsageError
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.opening import _require_same_run

RECIPE = load_recipe("quickstart").recipe
BASE: Any = SimpleNamespace(digest=lambda kind="full", progress=None: "of the base", folder=Path("base"))


def state(**changes: Any) -> Any:
    """As an earlier version wrote it, when `mask.init_std` had another name."""
    recipe = RECIPE.model_dump(mode="json") | changes
    recipe["mask"]["init_spread"] = recipe["mask"].pop("init_std")
    return SimpleNamespace(
        requested_recipe=recipe, base=SimpleNamespace(fingerprint="of the base", digest_kind="full")
    )


def test_a_run_that_began_with_former_names_of_fields_can_be_resumed(tmp_path: Path) -> None:
    assert "init_std" not in state().requested_recipe["mask"]
    _require_same_run(RunFolder(tmp_path), state(), RECIPE, BASE)  # refuses with an exception


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"cannot resume, the recipe changed in seed; use the recipe of the run"
    ):
        _require_same_run(RunFolder(tmp_path), state(seed=RECIPE.seed + 1), RECIPE, BASE)


def test_a_run_of_another_base_is_refused(tmp_path: Path) -> None:
    other: Any = SimpleNamespace(digest=lambda kind="full", progress=None: "of another", folder=Path("other"))
    with pytest.raises(IntegrityError, match=r"the base at other is not the one the run began with"):
        _require_same_run(RunFolder(tmp_path), state(), RECIPE, other)
