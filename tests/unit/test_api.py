"""The Python API: the names it has, and that each does what its command does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koffkit
from koffkit.checkpoint.fingerprint import fingerprint
from koffkit.recipe.load import load_recipe

from ..common import write_record
from ..conftest import Shipped

NAMES = [
    "DataError",
    "IntegrityError",
    "Interrupted",
    "KoffModel",
    "KoffkitError",
    "Plan",
    "Progress",
    "Recipe",
    "ResourceError",
    "Run",
    "UsageError",
    "compress",
    "export",
    "plan",
    "restore",
    "verify",
]
FEW_STEPS = {
    "stages.learn_masks.max_steps": 1,
    "stages.recover.max_steps": 1,
    "stages.route.epochs": 1,
    "stages.evaluate": {"max_tokens": 64, "swap": False, "recall_limit": 1},
}


def test_the_exported_names() -> None:
    assert koffkit.__all__ == NAMES
    assert sorted(dir(koffkit)) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(koffkit, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'decompress'"):
        koffkit.decompress  # noqa: B018


def test_planning_loads_no_torch() -> None:
    script = "import sys, koffkit; koffkit.plan('quickstart'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compress_takes_a_shipped_recipe_by_name(tmp_path: Path) -> None:
    run = koffkit.compress("quickstart", tmp_path / "a", set=FEW_STEPS)
    assert run.finished
    assert [row["stage"] for row in run.metrics()] == ["learn_masks", "recover"]


def forms_of(recipe: Path) -> dict[str, Any]:
    loaded = load_recipe(recipe)
    plain = loaded.recipe.model_dump(mode="json")
    plain["stages"] = [
        {name: options} for stage in plain["stages"] for name, options in stage.items() if options
    ]
    return {
        "path": recipe,
        "text": str(recipe),
        "loaded": loaded,
        "Recipe": loaded.recipe,
        "mapping": plain,
        "extends": {"extends": str(recipe)},
    }


@pytest.mark.parametrize("form", ["path", "text", "loaded", "Recipe", "mapping", "extends"])
@pytest.mark.parametrize("change", [{"mask.global_sparsity": 0.1}, ["mask.global_sparsity=0.1"]])
def test_a_recipe_in_any_form(
    form: str, change: Any, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shipped.recipe.parent)
    recipe = forms_of(shipped.recipe)[form]
    whole = koffkit.plan(shipped.recipe)
    assert koffkit.plan(recipe) == whole
    assert koffkit.plan(recipe, set=change).budget.target_params < whole.budget.target_params


def test_a_mapping_is_left_as_it_was(shipped: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shipped.recipe.parent)
    mapping = forms_of(shipped.recipe)["mapping"]
    before = json.dumps(mapping)
    koffkit.plan(mapping, set={"mask.global_sparsity": 0.1})
    assert json.dumps(mapping) == before


def test_all_findings_of_a_mapping_at_once() -> None:
    with pytest.raises(koffkit.UsageError) as caught:
        koffkit.plan({"koffkit": 1, "nmae": "x"})
    assert "recipe: nmae: unknown key; did you mean 'name'?" in str(caught.value)
    assert "recipe: base: is required" in str(caught.value)


def test_one_text_is_not_a_list_of_changes(shipped: Shipped) -> None:
    with pytest.raises(koffkit.UsageError, match=r"give a list of a\.b=VALUE"):
        koffkit.plan(shipped.recipe, set="seed=1")


def test_a_run_says_what_its_folder_holds(shipped: Shipped) -> None:
    run = koffkit.Run(shipped.run)
    state = json.loads((shipped.run / "run.json").read_text())
    assert run.finished
    assert run.results() == state["results"]
    assert len(run.metrics()) == 10
    masks = run.masks()
    assert {structure for _, structure in masks} == {"mlp_neuron"}
    assert all(mask.dtype == np.bool_ for mask in masks.values())


def test_metrics_of_a_running_run_leave_out_the_line_being_written(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"stage": "rec')
    assert len(koffkit.Run(run).metrics()) == 10


def test_a_run_without_masks_says_so(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    (run / "masks.safetensors").unlink()
    with pytest.raises(koffkit.UsageError, match="there are no masks yet"):
        koffkit.Run(run).masks()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(koffkit.UsageError, match="not a run folder"):
        koffkit.Run(tmp_path)


def test_export_and_verify(shipped: Shipped, tmp_path: Path) -> None:
    shown = koffkit.export(koffkit.Run(shipped.run), tmp_path / "out")
    assert shown["output"] == str(tmp_path / "out")
    assert koffkit.verify(tmp_path / "out")["ok"]
    (tmp_path / "out" / "backbone" / "config.json").unlink()
    with pytest.raises(koffkit.IntegrityError, match=r"config\.json: missing"):
        koffkit.verify(tmp_path / "out")


def test_a_finished_run_is_verified_too(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    assert koffkit.verify(run)["files"] > 5
    (run / "masks.safetensors").write_bytes(b"x")
    with pytest.raises(koffkit.IntegrityError, match=r"masks\.safetensors: 1 bytes, \d+ expected"):
        koffkit.verify(run)
    with pytest.raises(koffkit.IntegrityError, match=r"masks\.safetensors: 1 bytes"):
        koffkit.export(run, tmp_path / "out")


def test_a_run_of_an_earlier_version_lists_no_files(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    for name in ("files", "seal"):
        del state[name]
    del state["base"]["digest_kind"]
    state["base"]["digest"] = fingerprint(Path(state["base"]["path"]))
    (run / "run.json").write_text(json.dumps(state))
    with pytest.raises(koffkit.UsageError, match="an earlier koffkit made this run"):
        koffkit.verify(run)
    assert koffkit.export(run, tmp_path / "out")["base"]["digest_kind"] == "sampled"


def test_export_takes_the_options_of_the_recipe(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    state["recipe"]["export"] = [{"format": "hf", "colour": "red"}]
    write_record(run / "run.json", state)
    with pytest.raises(koffkit.UsageError, match="has no option colour"):
        koffkit.export(run, tmp_path / "out")
    assert koffkit.export(run, tmp_path / "out", options={})["format"] == "hf"
