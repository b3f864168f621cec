"""Memories that come and go: under a budget, while they are in use, and when their files change."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, current_thread

import pytest
import torch

from koffkit import KoffModel
from koffkit.artefact.bundle import Bundle, open_bundle
from koffkit.errors import IntegrityError, UsageError

from ...conftest import Shipped

IDS = torch.arange(10).reshape(1, 10) + 4


@pytest.fixture
def model(shipped: Shipped) -> KoffModel:
    """Loads memories when they are needed."""
    return KoffModel.from_pretrained(shipped.export, memory_budget=1 << 40)


def size_of_one(model: KoffModel) -> int:
    with model.store.use(["north"]):
        return model.store.num_bytes


def copies(shipped: Shipped, count: int) -> list[Bundle]:
    bundle = open_bundle(shipped.export / "memories" / "north")
    return [replace(bundle, domain=f"m{number}") for number in range(count)]


def test_memories_are_loaded_when_a_call_needs_them(model: KoffModel, shipped: Shipped) -> None:
    assert model.domains == ["north", "south"] and model.store.loaded == []
    found = model.logits(IDS, "south")
    assert model.store.loaded == ["south"]
    assert torch.equal(found, KoffModel.from_pretrained(shipped.export).logits(IDS, "south"))


def test_the_least_recently_used_make_room(model: KoffModel, shipped: Shipped) -> None:
    size = size_of_one(model)
    model.store.reload()
    model.store.budget = 3 * size
    for bundle in copies(shipped, 10):
        model.store.add(bundle)
    north, bare = model.logits(IDS, "north"), model.logits(IDS, None)
    for number in (0, 1, 0, 2, 3):
        assert torch.equal(model.logits(IDS, f"m{number}"), north)
        assert model.store.num_bytes <= 3 * size
    assert model.store.loaded == ["m0", "m2", "m3"] and not torch.allclose(north, bare, atol=1e-3)


def test_what_a_call_uses_stays(model: KoffModel) -> None:
    model.store.budget = 1
    with model.attached("north"):
        assert model.store.loaded == ["north"]
        inside = model.logits(IDS)
        assert model.store.loaded == ["north"]
        model.logits(IDS, "south")
        assert model.store.loaded == ["north"]
    assert model.store.loaded == []
    assert torch.equal(model.logits(IDS, "north"), inside)


def test_a_batch_has_all_of_its_memories_whatever_the_budget(model: KoffModel, shipped: Shipped) -> None:
    rows: list[str | None] = ["north", "south", None]
    model.store.budget = 1
    found = model.logits(IDS.expand(3, -1), rows)
    whole = KoffModel.from_pretrained(shipped.export)
    assert torch.equal(found, whole.logits(IDS.expand(3, -1), rows)) and model.store.loaded == []


def test_a_memory_is_read_ahead(model: KoffModel) -> None:
    model.store.prefetch("north")
    assert model.store._ahead is not None
    model.store._ahead.shutdown(wait=True)
    assert model.store.loaded == ["north"]
    with pytest.raises(UsageError, match="memory 'nort': not loaded"):
        model.store.prefetch("nort")


def read_ahead(model: KoffModel, *domains: str) -> None:
    """Prefetch, and wait until that is over."""
    model.store.prefetch(*domains)
    assert model.store._ahead is not None
    model.store._ahead.submit(lambda: None).result(10)


def test_reading_ahead_takes_no_room_from_calls_and_from_what_is_needed_before(
    model: KoffModel, shipped: Shipped
) -> None:
    size = size_of_one(model)
    model.store.budget = 3 * size
    for bundle in copies(shipped, 3):
        model.store.add(bundle)
    with model.attached("north"):
        read_ahead(model, "south")
        read_ahead(model, "m0", "m1", "m2")  # "south" goes, "m0" stays, and for "m2" there is no room
        assert model.store.loaded == ["north", "m0", "m1"]
        model.store.budget = size
        read_ahead(model, "m2")
        assert "m2" not in model.store.loaded
    assert model.store.loaded == ["m1"] and model.store.num_bytes == size
    whole = KoffModel.from_pretrained(shipped.export)
    whole.store.reload()
    whole.store.prefetch("north")
    assert whole.store._ahead is None  # without a budget


def test_of_two_wishes_the_later_one_counts(model: KoffModel, monkeypatch: pytest.MonkeyPatch) -> None:
    load, begun, go = model.store._load, Event(), Event()

    def slow(bundle: Bundle) -> object:
        begun.set()
        go.wait(10)
        return load(bundle)

    model.store.add(replace(model.store.bundles[0], domain="m0"))
    monkeypatch.setattr(model.store, "_load", slow)
    model.store.prefetch("north", "south")
    assert begun.wait(10)
    model.store.prefetch("m0")
    go.set()
    read_ahead(model, "m0")
    assert model.store.loaded == ["north", "m0"]


def test_a_batch_has_its_memories_read_from_both_ends(
    model: KoffModel, shipped: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, reads, ahead = model.store._load, {}, Event()
    for bundle in copies(shipped, 2):
        model.store.add(bundle)

    def told(bundle: Bundle) -> object:
        assert bundle.domain not in reads
        reads[bundle.domain] = current_thread().name.startswith("koffkit-prefetch")
        if reads[bundle.domain]:
            ahead.set()
        assert ahead.wait(10)
        return load(bundle)

    monkeypatch.setattr(model.store, "_load", told)
    rows: list[str | None] = ["south", "m0", "north", "m1"]
    found = model.logits(IDS.expand(4, -1), rows)
    assert sorted(reads) == ["m0", "m1", "north", "south"] and reads["m1"] and not reads["south"]
    whole = KoffModel.from_pretrained(shipped.export)
    expected = whole.logits(IDS.expand(4, -1), ["south", "north", "north", "north"])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_two_calls_that_need_a_memory_read_it_once(model: KoffModel, monkeypatch: pytest.MonkeyPatch) -> None:
    load, reads, go = model.store._load, [], Event()

    def slow(bundle: Bundle) -> object:
        reads.append(bundle.domain)
        go.wait(10)
        return load(bundle)

    monkeypatch.setattr(model.store, "_load", slow)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(model.logits, IDS, "north") for _ in range(4)]
        go.set()
        results = [call.result() for call in calls]
    assert reads == ["north"] and all(torch.equal(results[0], other) for other in results)


def test_a_replaced_memory_serves_new_calls(shipped: Shipped, tmp_path: Path) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    north, south = model.logits(IDS, "north"), model.logits(IDS, "south")
    with model.attached("north"):
        other = replace(open_bundle(shipped.export / "memories" / "south"), domain="north")
        model.store.add(other, replace=True)
        running = model.model(IDS, use_cache=False).logits
    assert torch.equal(running, north)  # what ran kept what it had
    assert torch.equal(model.logits(IDS, "north"), south)
    model.unload_memory("north")
    assert model.domains == ["south"] and "north" not in model.store.loaded
    with pytest.raises(UsageError, match="memory 'north': not loaded; there is south"):
        model.logits(IDS, "north")


def test_files_that_change_are_checked_again(shipped: Shipped, tmp_path: Path) -> None:
    folder = shutil.copytree(shipped.export / "memories" / "north", tmp_path / "north")
    model = KoffModel.from_pretrained(shipped.export / "backbone", memory_budget=1 << 40)
    model.load_memory(folder)
    before = model.logits(IDS, "north")
    model.store.reload()
    weights = folder / "kv_memory.safetensors"
    os.utime(weights)
    assert torch.equal(model.logits(IDS, "north"), before)  # touched, and the same
    model.store.reload()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"kv_memory\.safetensors: its sha256 is not the one"):
        model.logits(IDS, "north")
    with pytest.raises(IntegrityError, match="its sha256"):  # and whoever asks next is not left waiting
        model.logits(IDS, "north")
