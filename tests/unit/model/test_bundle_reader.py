"""Reading memories: one read each, into the room of one that went, and nothing that a file does later."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit import KoffModel
from koffkit.artefact.bundle import open_bundle
from koffkit.errors import IntegrityError
from koffkit.model.flat_file import FlatFile, Headers
from koffkit.storage.tensors_file import write_header

from ...conftest import Shipped

IDS = torch.arange(10).reshape(1, 10) + 4
BYTES = 1 << 40


def address(model: KoffModel, domain: str) -> int:
    return model.store._loaded[domain].kv[0].key.data_ptr()


def test_what_was_read_stays_whatever_becomes_of_the_file(shipped: Shipped, tmp_path: Path) -> None:
    folder = shutil.copytree(shipped.export / "memories" / "north", tmp_path / "north")
    model = KoffModel.from_pretrained(shipped.export / "backbone", [folder])
    before = model.logits(IDS, "north")
    for weights in folder.glob("*.safetensors"):
        with open(weights, "r+b") as file:  # the same file, not a new one of this name
            file.seek(-400, 2)
            file.write(b"\x7f" * 400)
    assert torch.equal(model.logits(IDS, "north"), before)


def test_a_memory_takes_the_room_of_one_that_went(shipped: Shipped) -> None:
    whole = KoffModel.from_pretrained(shipped.export)
    model = KoffModel.from_pretrained(shipped.export, memory_budget=BYTES)
    model.logits(IDS, "north")
    room = address(model, "north")
    for domain in ("south", "north", "south"):
        model.store.reload()
        assert torch.equal(model.logits(IDS, domain), whole.logits(IDS, domain))
        assert model.store.loaded == [domain] and address(model, domain) == room


def test_room_in_use_is_nobody_elses(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export, memory_budget=1)
    bare = KoffModel.from_pretrained(shipped.export)
    with model.attached("north"):
        model.store.reload()
        model.logits(IDS, "south")
        assert torch.equal(model.model(IDS, use_cache=False).logits, bare.logits(IDS, "north"))
    assert torch.equal(model.logits(IDS, "south"), bare.logits(IDS, "south"))


def test_memories_that_are_kept_for_good_leave_no_room_behind(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    gone = weakref.ref(model.store._loaded["north"].kv[0].key)
    model.unload_memory("north")
    gc.collect()
    assert gone() is None


def test_other_types_than_the_files(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export, dtype=torch.bfloat16, memory_budget=BYTES)
    folder = shipped.export / "memories" / "north"
    stored = load_file(folder / "kv_memory.safetensors")["layers.0.key"]
    model.logits(IDS, "south")
    model.store.reload()
    model.logits(IDS, "north")
    assert torch.equal(model.store._loaded["north"].kv[0].key, stored.bfloat16())
    model.to(dtype=torch.float64)
    model.logits(IDS, "north")
    loaded = model.store._loaded["north"]
    assert torch.equal(loaded.kv[0].key, stored.double())
    assert {tensor.dtype for tensor in loaded.tensors()} == {torch.float64}


def test_what_does_not_fit_is_refused_before_it_is_read(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KoffModel.from_pretrained(shipped.export, memory_budget=BYTES)
    bundle = replace(
        open_bundle(shutil.copytree(shipped.export / "memories" / "north", tmp_path / "n")), domain="n"
    )
    path = bundle.path / "kv_memory.safetensors"
    wide = {name: torch.cat([value, value], dim=-1) for name, value in load_file(path).items()}
    save_file(wide, path)
    model.store.add(bundle)
    monkeypatch.setattr(FlatFile, "read", lambda *_: pytest.fail("its bytes were read"))
    with pytest.raises(IntegrityError, match=r"kv_memory\.safetensors: layers\.0\.key: shape \["):
        model.logits(IDS, "n")


@pytest.mark.parametrize("name", ["key", "layers.x.key", "layers.0.key.more", "layers.1"])
def test_a_tensor_of_another_name(name: str, shipped: Shipped, tmp_path: Path) -> None:
    model = KoffModel.from_pretrained(shipped.export, memory_budget=BYTES)
    bundle = replace(
        open_bundle(shutil.copytree(shipped.export / "memories" / "north", tmp_path / "n")), domain="n"
    )
    path = bundle.path / "kv_memory.safetensors"
    save_file(load_file(path) | {name: torch.zeros(1)}, path)
    model.store.add(bundle)
    with pytest.raises(IntegrityError, match=rf"memory\.safetensors: '{name}' is no tensor of a KV memory"):
        model.logits(IDS, "n")


@pytest.mark.parametrize("change", [{"lora_alpha": None}, {"r": 0}, {"r": "8"}, {"alpha_pattern": [1]}])
def test_an_adapter_without_a_scale(change: dict[str, object], shipped: Shipped, tmp_path: Path) -> None:
    model = KoffModel.from_pretrained(shipped.export, memory_budget=BYTES)
    bundle = replace(
        open_bundle(shutil.copytree(shipped.export / "memories" / "north", tmp_path / "n")), domain="n"
    )
    path = bundle.path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model.store.add(bundle)
    with pytest.raises(IntegrityError, match=r"adapter_config\.json: no lora_alpha and r for "):
        model.logits(IDS, "n")


def test_a_header_that_is_known_still_has_to_describe_its_file(shipped: Shipped, tmp_path: Path) -> None:
    headers, path = Headers(), tmp_path / "kv_memory.safetensors"
    shutil.copy(shipped.export / "memories" / "north" / path.name, path)
    with FlatFile(path, headers) as file:
        assert len(file.read()) == file.layout.end - file.layout.begin
    with FlatFile(path, headers) as file, open(path, "r+b") as other:
        other.truncate(path.stat().st_size - 8)
        with pytest.raises(IntegrityError, match=r"kv_memory\.safetensors: ended after \d+ of \d+ bytes"):
            file.read()
    with pytest.raises(IntegrityError, match="its header describes"):
        FlatFile(path, headers)
    with pytest.raises(IntegrityError, match=r"none\.safetensors: cannot be read \(No such file"):
        FlatFile(tmp_path / "none.safetensors", headers)


def test_tensors_that_lie_anywhere_and_have_any_type(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    parts = {
        "odd": torch.tensor([True, False, True]),
        "scale": torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        "index": torch.tensor([7, -1]),
        "empty": torch.empty(0, 3),
        "weight": torch.tensor([[1.5, -2.0], [0.0, 3e38]]),
    }
    names = {torch.bool: "BOOL", torch.float16: "F16", torch.int64: "I64", torch.float32: "F32"}
    header = write_header({name: (names[part.dtype], tuple(part.shape)) for name, part in parts.items()})
    path.write_bytes(header + b"".join(part.numpy().tobytes() for part in parts.values()))
    with FlatFile(path, Headers()) as file:
        found = file.layout.views(file.read(), (torch.device("cpu"), torch.bfloat16))
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert found[name].dtype == part.dtype and torch.equal(found[name], part)
