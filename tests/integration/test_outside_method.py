"""What another package brings along: an architecture, a structure, a loss, a router kind, one file each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ..common import make_checkpoint, recipe_dict, write_recipe

ARCHITECTURE = """
from koffkit.arch import Architecture

SEED_OSS = Architecture(
    model_type="seed_oss",
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkv"}
    | {"self_attn.o_proj": "attention_out_bias"}
    | {f"mlp.{name}_proj": "mlp_bias" for name in ("gate", "up", "down")},
)
"""

STRUCTURE = """
import numpy as np
from koffkit.arch import Cut, Structure


def neighbours(shape):
    return np.arange(shape.intermediate) // 2


DOWN = Cut(module="mlp.down_proj", side="in", pattern=neighbours)
NEURON_PAIR = Structure(
    name="neuron_pair",
    units=lambda shape: shape.intermediate // 2,
    cuts=(
        Cut(module="mlp.gate_proj", side="out", pattern=neighbours),
        Cut(module="mlp.up_proj", side="out", pattern=neighbours),
        DOWN,
    ),
    gate=DOWN,
)
"""

LOSS = """
from koffkit.method.losses.base import Loss
from pydantic import BaseModel


class Options(BaseModel):
    sharpness: float = 1.0


def brier(student, teacher, labels, options):
    difference = (student * options.sharpness).softmax(-1) - teacher.softmax(-1)
    return difference.square().sum(-1)


BRIER = Loss(per_token=brier, options=Options)
"""

ROUTER = """
import json
import numpy as np
from koffkit.router import Router
from koffkit.router.base import CONFIG, FORMAT, read_config
from pydantic import BaseModel


class Options(BaseModel):
    letters: int = 3


class FirstLetters(Router):
    kind = "first_letters"
    options = Options

    def __init__(self, labels, beginnings, min_confidence):
        super().__init__(labels, min_confidence)
        self.beginnings = beginnings

    @classmethod
    def fit(cls, texts, options, setting):
        setting.check_interrupt()
        beginnings = {
            label: sorted({text[: options.letters] for text in part}) for label, part in texts.items()
        }
        return cls(tuple(texts), beginnings, options.min_confidence)

    def probabilities(self, texts):
        beginnings = [tuple(self.beginnings[label]) for label in self.labels]
        rows = [[text.startswith(begin) + 0.1 for begin in beginnings] for text in texts]
        scores = np.array(rows, dtype=np.float32)
        return scores / scores.sum(-1, keepdims=True)

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"koffkit": FORMAT, **self.describe(), "beginnings": self.beginnings}
        (folder / CONFIG).write_text(json.dumps(fields))

    @classmethod
    def load(cls, folder):
        fields = read_config(folder)
        return cls(fields["labels"], fields["beginnings"], fields["min_confidence"])
"""

ENTRY_POINTS = """
[koffkit.architectures]
seed_oss = outside_architecture:SEED_OSS

[koffkit.structures]
neuron_pair = outside_structure:NEURON_PAIR

[koffkit.losses]
brier = outside_loss:BRIER

[koffkit.routers]
first_letters = outside_router:FirstLetters
"""

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


def install(site: Path) -> None:
    for name, text in (
        ("outside_architecture.py", ARCHITECTURE),
        ("outside_structure.py", STRUCTURE),
        ("outside_loss.py", LOSS),
        ("outside_router.py", ROUTER),
        ("outside-1.0.dist-info/entry_points.txt", ENTRY_POINTS),
        ("outside-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n"),
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that was made with the other package, and `seen.json`."""
    root = tmp_path_factory.mktemp("outside")
    install(root / "site")
    base = make_checkpoint(root / "base", "seed_oss", attention_bias=True, head_dim=8)
    recipe = recipe_dict(base, root / "data")
    recipe["mask"] = {"structures": ["neuron_pair", "kv_group"], "global_sparsity": 0.2, "multiple_of": 4}
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
    tree = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(root), json.dumps(calls)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(root / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
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
