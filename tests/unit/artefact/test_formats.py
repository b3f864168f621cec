"""What the three JSON files hold, and what becomes of files that hold something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from koffkit.artefact.bundle import open_bundle
from koffkit.artefact.bundle_info import BundleInfo
from koffkit.artefact.manifest import Manifest
from koffkit.errors import IntegrityError, KoffkitError, UsageError
from koffkit.run.schemas import FOLDER, RECORDS, schema_of
from koffkit.run.state import RunState
from koffkit.storage.record import Record
from koffkit.storage.seal import is_unbroken

from ..run.states import run_tree
from .trees import bundle_tree, manifest_tree

TREES: dict[type[Record], Callable[[], dict[str, Any]]] = {
    Manifest: manifest_tree,
    BundleInfo: bundle_tree,
    RunState: run_tree,
}
KINDS = list(TREES)


def changed(tree: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted field; `...` deletes it."""
    tree = copy.deepcopy(tree)
    *parents, last = field.split("/")
    place: Any = tree
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return tree


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_the_first_version_are_read_and_written_back_as_they_were(
    kind: type[Record], tmp_path: Path
) -> None:
    path, tree = tmp_path / "file.json", TREES[kind]()
    path.write_text(json.dumps(tree))
    kind.read(path).write(path)
    tree["requested_recipe"] = tree.pop("asked", None)
    written = json.loads(path.read_text())
    assert is_unbroken(path.read_bytes(), written.pop("seal"))
    assert written | {"requested_recipe": written.get("requested_recipe")} == tree


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["koffkit", "a field that is not there yet"])
def test_a_later_version_is_named_as_such(kind: type[Record], name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(TREES[kind]() | {name: 2, "koffkit": 2}))
    with pytest.raises(UsageError, match=r"file\.json: koffkit: .*format 2; this koffkit reads .*format 1"):
        kind.read(path)


WRONG: list[tuple[type[Record], str, Any, str]] = [
    (Manifest, "backbone/digest", ..., "backbone.digest: field required"),
    (Manifest, "backbone/parameters", "many", "backbone.parameters: input should be a valid integer"),
    (Manifest, "backbone/parameters", True, "backbone.parameters: input should be a valid integer"),
    (Manifest, "base/digest", "abc", "base.digest: string should match"),
    (Manifest, "kept/mlp_neuron", 24, "kept.mlp_neuron: input should be a valid list"),
    (Manifest, "colour", "red", "colour: extra inputs are not permitted"),
    (Manifest, "koffkit", ..., "koffkit: field required"),
    (Manifest, "koffkit", "1", "koffkit: input should be a valid integer"),
    (Manifest, "backbone/path", "../../etc", r"backbone.path: '\.\./\.\./etc' leads out of the folder"),
    (Manifest, "files", {"/etc/passwd": {}}, "files./etc/passwd.*leads out of the folder"),
    (Manifest, "domains", {"..": {}}, r"domains\.\.\..*cannot be the name of a folder"),
    (Manifest, "golden/logits", [1.0], "golden: 2 ids and 1 logits"),
    (BundleInfo, "domain", ..., "domain: field required"),
    (BundleInfo, "domain", "../north", r"domain: '\.\./north' cannot be the name of a folder"),
    (BundleInfo, "layers", [0, -1], r"layers\.1: input should be greater than or equal to 0"),
    (BundleInfo, "lora/rank", 0, r"lora\.rank: input should be greater"),
    (BundleInfo, "files", {"../x": {}}, r"files\.\.\./x.*leads out of the folder"),
    (RunState, "base/path", ..., r"base\.path: field required"),
    (RunState, "stages/0/state", "asleep", r"stages\.0\.state: input should be"),
    (RunState, "seed", 1.5, "seed: input should be a valid integer"),
    (RunState, "asked", ..., "requested_recipe.*: field required"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), WRONG)
def test_what_is_wrong_is_named_with_file_and_field(
    kind: type[Record], field: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(changed(TREES[kind](), field, value)))
    with pytest.raises(KoffkitError, match=rf"file\.json: {message}") as refused:
        kind.read(path)
    assert "\n" not in str(refused.value)
    assert type(refused.value) is (UsageError if kind is RunState else IntegrityError)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_not_read_and_written_as_null(kind: type[Record], tmp_path: Path) -> None:
    path, tree = tmp_path / "file.json", TREES[kind]()
    field = "figures" if kind is BundleInfo else "results"
    tree[field] = {"north": {"perplexity": float("inf")}}
    path.write_text(json.dumps(tree))
    with pytest.raises(KoffkitError, match=r"file\.json: not valid JSON \(Infinity is not a number"):
        kind.read(path)
    kind.model_validate(tree).write(path)
    assert json.loads(path.read_text())[field] == {"north": {"perplexity": None}}


def test_a_memory_inside_a_run_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text('{"koffkit": 1, "domain": "north", "layers": [0]}')
    with pytest.raises(UsageError, match="a memory inside a run"):
        open_bundle(tmp_path)


def test_records_do_not_change_and_copies_are_checked() -> None:
    info = BundleInfo.model_validate(bundle_tree())
    changed_info = info.evolve(parameters=7)
    assert (info.parameters, changed_info.parameters) == (10, 7)
    assert "dtype" not in changed_info.to_json()
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        info.evolve(parameters=-1)


def test_a_stage_of_a_run_moves_on() -> None:
    state = RunState.model_validate(run_tree()).with_stage("recover", "done")
    assert [stage.state for stage in state.stages] == ["done", "done"]
    assert state.stage_names == ["learn_masks", "recover"]


@pytest.mark.parametrize("name", RECORDS)
def test_the_schemas_that_ship_are_those_of_the_models(name: str) -> None:
    """`python -m koffkit.run.schemas` writes them."""
    assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) == schema_of(RECORDS[name])


@pytest.mark.parametrize("name", RECORDS)
def test_the_schemas_accept_what_is_written_and_nothing_else(name: str) -> None:
    tree = RECORDS[name].model_validate(TREES[RECORDS[name]]()).to_json()
    validator = jsonschema.Draft202012Validator(schema_of(RECORDS[name]))
    validator.validate(tree)
    assert not validator.is_valid(tree | {"colour": "red"})
