"""Fixtures that the tests of several exporters share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export

from koffkit.artefact.digests import backbone_digest
from koffkit.artefact.export import open_export
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from ...conftest import Shipped


def require_openvino() -> None:
    """Skip a module of tests without the extra; with it, import OpenVINO without its telemetry."""
    from koffkit.exporters.openvino import runtime

    if missing := [name for name in runtime.PACKAGES if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed", allow_module_level=True)
    runtime.load_openvino()


def learned(root: Path, family: str = "llama", **changes: Any) -> Path:
    """A short run.

    Args:
        root: the folder to make it in.
        family: of its base.
        changes: of parts of the recipe.
    """
    tree = recipe_dict(make_checkpoint(root / "base", family), root / "data")
    tree["stages"] = tree["stages"][:2]
    for part, own in changes.items():
        tree[part].update(own)
    run_recipe(load_recipe(write_recipe(root / "r.yaml", tree)), root / "run")
    return root / "run"


def write_as_float64_would(export: Path, command: list[str], off: float) -> dict[str, Any]:
    """Stand in for a program that an export's gate runs; returns what it was asked.

    Args:
        export: of format hf, of the same run.
        command: that starts the program.
        off: what its log-probabilities are off by.
    """
    from koffkit.exporters.toolkit.exact import ExactLogits

    asked: dict[str, Any] = json.loads(Path(command[-2]).read_text())
    original = open_export(export)
    exact = ExactLogits(original.backbone, original.bundles())
    told = []
    for name in asked["memories"]:
        ids: list[int] = []
        top = []
        for _step in range(asked["new_tokens"]):
            step = exact.logits([*asked["tokens"], *ids], name)[-1].log_softmax(-1)
            best = step.topk(asked["top"])
            top.append([[int(i), float(v) + off] for v, i in zip(*best, strict=True)])
            step[torch.tensor(asked["suppress"])] = -torch.inf
            ids.append(int(step.argmax()))
        told.append({"ids": ids, "top": top})
    Path(command[-1]).write_text(json.dumps(told))
    return asked


@pytest.fixture(scope="session")
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every backbone is converted to OpenVINO once; the rest of an export takes a second."""
    from koffkit.exporters.openvino import convert, files, runtime

    kept: dict[str, Path] = {}

    def once(checkpoint: Path) -> Any:
        digest = backbone_digest(checkpoint)
        if digest not in kept:
            kept[digest] = tmp_path_factory.mktemp("ir")
            convert.write_ir(convert.to_ir(checkpoint), kept[digest])
        return runtime.load_openvino().Core().read_model(kept[digest] / convert.IR)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "to_ir", once)
        yield


@pytest.fixture(scope="session")
def openvino_export(shipped: Shipped, converted_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared run in format `openvino`; do not change it."""
    out = tmp_path_factory.mktemp("openvino") / "out"
    export(shipped.run, out, "openvino")
    return out
