"""Memories that come back to an accelerator, or in another type than their files', from the CPU's memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from koffkit import KoffModel
from koffkit.model.flat_file import FlatFile

from ...conftest import Shipped

IDS = torch.arange(10).reshape(1, 10) + 4
BYTES = 1 << 40


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The memories whose files are read from disk."""
    seen: list[str] = []
    really = FlatFile.read

    def noted(file: FlatFile, *into: Tensor) -> Tensor:
        seen.append(file.path.parent.name)
        return really(file, *into)

    monkeypatch.setattr(FlatFile, "read", noted)
    return seen


def paged(export: Path, host: int | None, **options: Any) -> KoffModel:
    """One memory at a time, of another type than its files', which is what an accelerator is here."""
    settings: dict[str, Any] = {"dtype": torch.float64, "memory_budget": 1, "host_memory_budget": host}
    return KoffModel.from_pretrained(export, **settings | options)


def test_what_comes_back_is_not_read_again(shipped: Shipped, read: list[str]) -> None:
    whole = KoffModel.from_pretrained(shipped.export, dtype=torch.float64)
    model = paged(shipped.export, BYTES)
    read.clear()
    for domain in ("north", "south", "north", "south"):
        assert torch.equal(model.logits(IDS, domain), whole.logits(IDS, domain))
        assert len(model.store.loaded) <= 1
    assert sorted(set(read)) == ["north", "south"] and len(read) == len(set(read)) * 2  # LoRA and KV, once


def test_without_a_budget_for_it_nothing_is_kept(shipped: Shipped, read: list[str]) -> None:
    for host in (None, 1):
        model = paged(shipped.export, host)
        read.clear()
        for domain in ("north", "south", "north"):
            model.logits(IDS, domain)
        assert read == ["north", "north", "south", "south", "north", "north"]


def test_as_many_as_there_is_room_for(shipped: Shipped, read: list[str]) -> None:
    files = (shipped.export / "memories" / "north").glob("*.safetensors")
    model = paged(shipped.export, sum(file.stat().st_size for file in files))
    read.clear()
    for domain in ("north", "south", "south", "north"):
        model.logits(IDS, domain)
    assert read == ["north", "north", "south", "south", "north", "north"]


def test_a_memory_that_was_replaced_is_read_again(shipped: Shipped, tmp_path: Path, read: list[str]) -> None:
    out = Path(shutil.copytree(shipped.export, tmp_path / "out"))
    model = paged(out, BYTES)
    before = model.logits(IDS, "north")
    other = Path(shutil.copytree(out / "memories" / "north", tmp_path / "north"))
    model.unload_memory("north")
    model.logits(IDS, "south")
    read.clear()
    model.load_memory(other)
    assert torch.equal(model.logits(IDS, "north"), before) and read == ["north", "north"]


def test_room_that_the_next_memory_takes_is_not_kept(shipped: Shipped) -> None:
    """In the type of the files what is read is the memory itself, which the next one overwrites."""
    whole = KoffModel.from_pretrained(shipped.export)
    model = paged(shipped.export, BYTES, dtype=None, memory_budget=BYTES)
    model.logits(IDS, "north")
    model.store.reload()
    for domain in ("south", "north"):  # the first takes the room, so for the second there is none
        assert torch.equal(model.logits(IDS, domain), whole.logits(IDS, domain))
