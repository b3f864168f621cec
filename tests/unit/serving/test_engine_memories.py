"""The engine under a budget of memories: rows keep theirs, and those of waiting requests are read ahead."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from koffkit import KoffModel
from koffkit.artefact.bundle import Bundle
from koffkit.serving.engine import Engine

from .test_engine import Asked, jobs, wait_for


@pytest.fixture
def tight(six: Path) -> KoffModel:
    """A model whose budget has room for no memory at all."""
    return KoffModel.from_pretrained(six, memory_budget=1)


@pytest.fixture
def reads(tight: KoffModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which memories are read, in order."""
    load, seen = tight.store._load, list[str]()

    def told(bundle: Bundle) -> object:
        seen.append(bundle.domain)
        return load(bundle)

    monkeypatch.setattr(tight.store, "_load", told)
    return seen


def largest(model: KoffModel) -> int:
    """Bytes of the largest memory."""
    return max(memory.num_bytes for memory in model.store._loaded.values())


def test_a_row_keeps_its_memory_from_its_first_token_to_its_last(tight: KoffModel, reads: list[str]) -> None:
    with Engine(tight, max_batch=2) as engine:
        first, second = Asked(engine, "lamp", "north"), Asked(engine, "seven", "south", max_tokens=3)
        assert first.text() and second.text()
        assert sorted(reads) == ["north", "south"]
        wait_for(lambda: tight.store.loaded == [])


def test_the_memory_of_a_request_that_waits_is_read_ahead(
    tight: KoffModel, model: KoffModel, reads: list[str]
) -> None:
    go = Event()
    with Engine(tight, max_batch=1, on_step=lambda size: go.wait(20) and None) as engine:
        tight.store.budget = 2 * largest(model)
        running = Asked(engine, "lamp", "north", max_tokens=4)
        wait_for(lambda: engine.active == 1 and "north" in tight.store.loaded)
        waiting = [Asked(engine, "seven", memory, max_tokens=4) for memory in ("south", "east")]
        wait_for(lambda: "south" in tight.store.loaded)
        assert not running.row.done
        assert tight.store._ahead is not None
        tight.store._ahead.submit(lambda: None).result(10)
        assert reads == ["north", "south"]  # "east" would take the room of one that is needed before
        go.set()
        assert running.text() == model.complete("lamp", "north", 4)
        for memory, asked in zip(("south", "east"), waiting, strict=True):
            assert asked.text() == model.complete("seven", memory, 4)
    assert reads == ["north", "south", "east"]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_no_text_is_wrong_whatever_the_budget(tight: KoffModel, model: KoffModel, room: int) -> None:
    tight.store.budget = room * largest(model) + 1
    alone = [model.complete(prompt, memory=memory, max_new_tokens=count) for prompt, memory, count in jobs()]
    with Engine(tight, max_batch=3) as engine:
        asked = [Asked(engine, prompt, memory, max_tokens=count) for prompt, memory, count in jobs()]
        assert [one.text() for one in asked] == alone
        wait_for(lambda: tight.store.num_bytes <= tight.store.budget)
