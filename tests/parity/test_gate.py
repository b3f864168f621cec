"""The gate before publishing, on a model whose logits are as large as those of real ones: rounding passes, a
small fault does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from koffkit.exporters import export
from koffkit.exporters.toolkit import backbone
from safetensors.torch import load_file, save_file

from koffkit.artefact.names import MANIFEST
from koffkit.errors import IntegrityError
from koffkit.model.loaded import MAPPED
from koffkit.parity.probe import Probe, golden, probe_tokens
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.runtime.verify import verify_export
from koffkit.stages.engine import run_recipe

from ..common import make_checkpoint, recipe_dict, write_recipe, write_record

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "tie_word_embeddings": False}
DOWN = "model.layers.3.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of a model whose logits reach 30."""
    root = tmp_path_factory.mktemp("large")
    base = make_checkpoint(root / "base", **SIZES)
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        value *= 7 if name == "lm_head.weight" else 3 if "proj" in name else 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.1, "multiple_of": 1, "init": "cold"}
    recipe = recipe_dict(base, root / "data", mask=mask)
    recipe["stages"] = [{"learn_masks": {"max_steps": 2, "batch_size": 2}}]
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", recipe)), root / "run")
    return RunFolder(root / "run")


@pytest.fixture(scope="module")
def exported(run: RunFolder) -> Path:
    out = run.path.parent / "out"
    export(run, out)
    return out


def test_rounding_does_not_refuse_an_export(exported: Path) -> None:
    parity = json.loads((exported / MANIFEST).read_text())["parity"]
    assert set(parity["max_abs"]) == set(parity["max_logit"]) == {"none", "north", "south"}
    for condition, largest in parity["max_logit"].items():
        assert largest > 30
        assert parity["max_abs"][condition] <= parity["tolerance"] * largest
        assert 1e-4 < parity["noise_floor"]["max_abs"][condition] < 1e-2
        assert 0 < parity["noise_floor"]["kl"][condition] < 1e-7
    card = (exported / "backbone" / "README.md").read_text()
    floor = max(parity["noise_floor"]["max_abs"].values())
    assert f"in float32 instead moves its logits by {floor:.1e}" in " ".join(card.split())


def test_a_vocabulary_that_is_read_in_uneven_pieces_passes(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the base of a real model is: larger than what is mapped at once, which its pieces do not divide."""
    row = 64 * 4
    monkeypatch.setattr("koffkit.parity.probe.ROWS_AT_ONCE", 7 * row)
    monkeypatch.setattr("koffkit.model.loaded.MAPPED", 10 * row)
    export(run, tmp_path / "out")
    parity = json.loads((tmp_path / "out" / MANIFEST).read_text())["parity"]
    assert set(parity["max_abs"]) == {"none", "north", "south"}


def test_a_vocabulary_of_real_size(tmp_path: Path) -> None:
    """Larger than what is mapped or read at once: it comes in several pieces, from the run to `verify`."""
    base = make_checkpoint(tmp_path / "base", vocab_size=49152, hidden_size=96, num_hidden_layers=2)
    assert MAPPED < 49152 * 96 * 4
    tree = recipe_dict(base, tmp_path / "data")
    tree["mask"]["global_sparsity"] = 0.002  # nearly all of it are embeddings
    tree["stages"] = [{"learn_masks": {"max_steps": 1, "batch_size": 1}}, {"evaluate": {"max_tokens": 64}}]
    run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", tree)), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert verify_export(tmp_path / "out")["problems"] == []


def swap_a_neuron(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stays is taken for one that goes, in one matrix of one layer."""
    real: Callable[..., Any] = backbone.backbone_slices

    def slices(*arguments: Any) -> Any:
        found = real(*arguments)
        kept = found[DOWN][1]
        return found | {DOWN: {1: np.sort(np.append(kept[1:], np.setdiff1d(np.arange(96), kept)[0]))}}

    monkeypatch.setattr(backbone, "backbone_slices", slices)


def change_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """By less than rounding to float32 does to the logits."""
    real: Callable[..., Any] = backbone.slice_checkpoint

    def write(reader: Any, skip: Any, output: Path, *more: Any) -> Any:
        found = real(reader, skip, output, *more)
        tensors = load_file(output / "model.safetensors")
        tensors[DOWN][0, 0] += 1e-4
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
        return found

    monkeypatch.setattr(backbone, "slice_checkpoint", write)


@pytest.mark.parametrize(
    ("fault", "least", "most"), [(swap_a_neuron, 1e-2, 1e2), (change_a_weight, 1e-7, 1e-3)]
)
def test_one_small_fault_is_refused(
    fault: Callable[..., None],
    least: float,
    most: float,
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(
        IntegrityError, match=r"parity: memory none: the sliced backbone differs .* nothing was published"
    ) as refused:
        export(run, tmp_path / "out")
    assert least < float(re.findall(r"by ([\d.e+-]+),", str(refused.value))[0]) < most
    assert not list(tmp_path.iterdir())


def with_golden(export: Path, values: dict[str, Any]) -> dict[str, Any]:
    manifest = json.loads((export / MANIFEST).read_text())
    write_record(export / MANIFEST, manifest | {"golden": values})
    try:
        return verify_export(export)
    finally:
        write_record(export / MANIFEST, manifest)


def test_golden_logits_hold_tightly_and_old_ones_as_far_as_rounding_lets_them(exported: Path) -> None:
    assert verify_export(exported)["ok"]
    probe = Probe(exported / "backbone", dtype=torch.float32)
    tokens = probe_tokens(probe.vocabulary)
    old = {"tokens": tokens} | golden(probe, probe.hidden(tokens, [None]))[0]
    del old["dtype"]
    assert with_golden(exported, old)["ok"]
    new = json.loads((exported / MANIFEST).read_text())["golden"]
    for values, off in ((new, 1e-4), (old, 0.1)):
        assert values["logits"][0] > 10
        moved = values | {"logits": [values["logits"][0] + off, *values["logits"][1:]]}
        assert "golden logits of memory none differ" in with_golden(exported, moved)["problems"][0]
