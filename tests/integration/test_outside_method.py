"""An architecture, a structure, a loss, a selector and a router kind from another package, one file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ..common import make_checkpoint, recipe_dict, write_recipe
from ..outside import install, run_python

DRIVER = """
import json, sys
from pathlib import Path
from koffkit.cli import main

root = Path(sys.argv[1])
codes = {}
for arguments in json.loads(sys.argv[2]):
    try:
        main(arguments)
    except SystemExit as stop:
        codes[" ".join(arguments[:1])] = stop.code or 0
from tests.parity import conformance

conformance.FAMILY["seed_oss"] = {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}
conformance.STRUCTURES["neuron_pair"] = ["neuron_pair"]
worst = {}
for structure, layout in (("neurons+groups", "uniform"), ("qk_pair", "ragged"), ("neuron_pair", "ragged")):
    case = conformance.Case("seed_oss", structure, layout, False)
    folder = root / structure
    worst[structure] = max(conformance.differences(conformance.build(case, folder), folder).values())
(root / "seen.json").write_text(json.dumps({"codes": codes, "worst": worst}))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that was made with the other package, and `seen.json`."""
    root = tmp_path_factory.mktemp("outside")
    install(root / "site", "architecture", "structure", "loss", "selector", "router")
    base = make_checkpoint(root / "base", "seed_oss", attention_bias=True, head_dim=8)
    recipe = recipe_dict(base, root / "data")
    recipe["mask"] = {"structures": ["neuron_pair", "kv_group"], "global_sparsity": 0.2, "multiple_of": 4}
    recipe["mask"]["init"] = "spread"
    recipe["distill"] = {"loss": "brier", "sharpness": 2.0, "retention_every": 3}
    recipe["stages"][0]["learn_masks"]["max_steps"] = 3
    recipe["stages"][1]["recover"]["max_steps"] = 2
    recipe["stages"][2] = {"route": {"kind": "first_letters", "letters": 5}}
    path, run, out = write_recipe(root / "recipe.yaml", recipe), root / "run", root / "out"
    calls = [
        ["compress", str(path), "--output", str(run)],
        ["export", str(run), "--output", str(out)],
        ["verify", str(out)],
    ]
    for call in ("neurons+groups", "qk_pair", "neuron_pair"):
        (root / call).mkdir()
    done = run_python(root / "site", "-c", DRIVER, str(root), json.dumps(calls))
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def seen(outside: Path) -> dict[str, Any]:
    return json.loads((outside / "seen.json").read_text())


def test_a_recipe_of_foreign_parts_is_compressed_exported_and_verified(outside: Path) -> None:
    assert seen(outside)["codes"] == {"compress": 0, "export": 0, "verify": 0}


def test_masked_equals_sliced_for_a_foreign_architecture_and_structure(outside: Path) -> None:
    worst = seen(outside)["worst"]
    assert set(worst) == {"neurons+groups", "qk_pair", "neuron_pair"}
    assert max(worst.values()) <= 1e-4, worst


def test_a_foreign_structure_is_cut(outside: Path) -> None:
    masks = load_file(outside / "run" / "masks.safetensors")
    kept = [int(masks[f"layers.{layer}.neuron_pair"].sum()) for layer in range(3)]
    assert kept == [kept[0]] * 3 and kept[0] < 24
    config = json.loads((outside / "out" / "backbone" / "config.json").read_text())
    assert config["model_type"] == "seed_oss"
    assert config["intermediate_size"] == 2 * kept[0]


def test_a_foreign_loss_is_minimised(outside: Path) -> None:
    steps = [json.loads(line) for line in (outside / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps]
    assert len(losses) == 5
    assert all(0 < loss < 2 for loss in losses)


def test_a_foreign_router_ships(outside: Path) -> None:
    router = json.loads((outside / "out" / "router" / "config.json").read_text())
    assert router["kind"] == "first_letters"
    assert all(len(beginning) == 5 for beginning in router["beginnings"]["north"])


def test_without_the_package_its_names_are_unknown(outside: Path) -> None:
    from koffkit.errors import UsageError
    from koffkit.recipe.load import load_recipe

    with pytest.raises(UsageError) as raised:
        load_recipe(outside / "recipe.yaml")
    for field in ("mask.structures.0", "distill.loss", "distill.sharpness", "letters"):
        assert field in str(raised.value)
