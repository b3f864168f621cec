"""The engine: rows come and go, and none of them notices."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest

from koffkit import KoffModel
from koffkit.serving.engine import Engine
from koffkit.serving.engine_rows import (
    Piece,
    QueueFull,
    Request,
    Row,
    Sampling,
    Stopped,
    TimedOut,
    UnknownMemory,
)

PROMPTS = ["river stone", "quiet house sings over", "lamp", "seven green walks under the bright north", "s"]
ROWS: list[str | None] = ["north", "south", None, "east", "west", "hill", "dale"]


class Asked:
    """A request, and what the engine said."""

    def __init__(
        self, engine: Engine, prompt: str, memory: str | None, seconds: float | None = None, **sampling: Any
    ):
        self.pieces: queue.Queue[Piece] = queue.Queue()
        ids = engine.model.tokenizer(prompt).input_ids
        how = Sampling(**({"max_tokens": 8} | sampling))
        self.request = Request(ids=ids, memory=memory, sampling=how, listen=self.pieces.put, seconds=seconds)
        (self.row,) = engine.submit([self.request])
        self.row: Row

    def rest(self) -> Iterator[Piece]:
        while True:
            piece = self.pieces.get(timeout=20)
            yield piece
            if piece.is_last:
                return

    def text(self) -> str:
        *pieces, last = self.rest()
        assert last.error is None, last
        return "".join(piece.text for piece in [*pieces, last])


@pytest.fixture
def engine(model: KoffModel) -> Iterator[Engine]:
    with Engine(model, max_batch=5) as engine:
        yield engine


def jobs() -> list[tuple[str, str | None, int]]:
    """Prompts of all lengths on all memories, and how many tokens each is to get."""
    return [
        (PROMPTS[place % len(PROMPTS)], ROWS[place % len(ROWS)], 3 + (place * 5) % 11) for place in range(24)
    ]


def test_a_mixed_batch_says_what_each_prompt_says_alone(engine: Engine) -> None:
    alone = [
        engine.model.complete(prompt, memory=memory, max_new_tokens=count) for prompt, memory, count in jobs()
    ]
    asked = [Asked(engine, prompt, memory, max_tokens=count) for prompt, memory, count in jobs()]
    assert [one.text() for one in asked] == alone
    same = {engine.model.complete("river stone", memory=memory, max_new_tokens=8) for memory in ROWS}
    assert len(same) == len(ROWS)


def test_sampling_depends_on_the_seed_and_not_on_who_else_is_there(engine: Engine) -> None:
    hot = {"temperature": 1.5, "top_p": 0.95}
    alone = Asked(engine, "lamp", "north", seed=3, **hot).text()
    crowd = [Asked(engine, prompt, memory, max_tokens=count) for prompt, memory, count in jobs()[:4]]
    assert Asked(engine, "lamp", "north", seed=3, **hot).text() == alone
    assert Asked(engine, "lamp", "north", seed=4, **hot).text() != alone
    assert (
        Asked(engine, "lamp", "north", seed=3, temperature=1.5, top_p=1e-6).text()
        == Asked(engine, "lamp", "north").text()
    )
    assert all(one.text() is not None for one in crowd)


def test_a_stop_string_ends_an_answer_and_is_not_shown(engine: Engine) -> None:
    whole = Asked(engine, "river stone", None, max_tokens=12).text()
    stop = whole[4:7]
    asked = Asked(engine, "river stone", None, max_tokens=12, stop=[stop])
    *pieces, last = asked.rest()
    assert "".join(piece.text for piece in [*pieces, last]) == whole.partition(stop)[0]
    assert last.finish == "stop" and last.num_tokens < 12


def test_an_end_token_ends_an_answer(model: KoffModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = model.tokenizer("river stone").input_ids
    with Engine(model) as engine:
        tokens = []
        wait = Asked(engine, "river stone", "north", max_tokens=6)
        list(wait.rest())
        tokens = wait.row.text._ids
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", [tokens[3]])
    with Engine(model) as engine:
        *_, last = Asked(engine, "river stone", "north", max_tokens=6).rest()
    assert last.finish == "stop" and last.num_tokens == 1 + tokens.index(tokens[3]), ids


def test_the_queue_has_an_end(model: KoffModel) -> None:
    engine = Engine(model, max_batch=2, max_queue=1)  # its thread does not run yet
    waiting = [Asked(engine, "lamp", None) for _ in range(3)]
    with pytest.raises(QueueFull, match="--max-queue"):
        Asked(engine, "lamp", None)
    with engine:
        assert len({one.text() for one in waiting}) == 1


def test_who_is_cancelled_makes_room(model: KoffModel) -> None:
    with Engine(model, max_batch=1) as engine:
        gone = Asked(engine, "lamp", None, max_tokens=100)
        gone.pieces.get(timeout=20)
        gone.row.cancel()
        before = time.monotonic()
        assert Asked(engine, "lamp", None, max_tokens=2).text()
        assert gone.row.num_tokens < 100 and time.monotonic() - before < 10
        wait_for(lambda: engine.active == 0)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_time_is_limited_in_the_queue_too(model: KoffModel) -> None:
    with Engine(model, max_batch=1) as engine:
        with engine.quiet("north"):
            late = Asked(engine, "lamp", "north", seconds=0.2)
            (piece,) = late.rest()
        assert isinstance(piece.error, TimedOut) and "0.2 s" in str(piece.error)


def test_a_prompt_that_fails_harms_no_other(engine: Engine) -> None:
    with engine.quiet("north"):  # so that all three are admitted together
        asked = [
            Asked(engine, "lamp", "north"),
            Asked(engine, "river", "north"),
            Asked(engine, "lamp", "south"),
        ]
        asked.append(Asked(engine, "lamp", "nowhere"))
        (piece,) = asked.pop().rest()
    assert isinstance(piece.error, UnknownMemory) and "nowhere" in str(piece.error)
    assert all(one.text() for one in asked)


def test_a_step_that_fails_ends_its_rows_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: secret")

    with monkeypatch.context() as patch:
        patch.setattr(engine._batch, "step", broken)
        *_, last = Asked(engine, "lamp", "north").rest()
    assert "RuntimeError" in str(last.error) and "secret" not in str(last.error)
    assert engine.active == 0 and Asked(engine, "lamp", "north").text()


def test_a_memory_is_quiet_when_no_row_has_it(engine: Engine) -> None:
    running = Asked(engine, "lamp", "north", max_tokens=30)
    running.pieces.get(timeout=20)
    with engine.quiet("north"):
        assert running.row.done
        held = Asked(engine, "lamp", "north")
        assert Asked(engine, "lamp", "south").text()
        assert held.pieces.empty()
    assert held.text()


def test_who_waits_when_the_engine_stops_is_told(model: KoffModel) -> None:
    with Engine(model, max_batch=1) as engine:
        waiting = [Asked(engine, "lamp", "north", max_tokens=100) for _ in range(3)]
    errors = [list(one.rest())[-1].error for one in waiting]
    assert all(isinstance(error, Stopped) for error in errors)
    with pytest.raises(Stopped):
        Asked(engine, "lamp", None)


def test_a_listener_that_fails_leaves_alone(engine: Engine) -> None:
    def gone(_: Piece) -> None:
        raise RuntimeError("Event loop is closed")

    request = Request(ids=[5, 6], memory="north", sampling=Sampling(max_tokens=9), listen=gone)
    (row,) = engine.submit([request])
    assert Asked(engine, "lamp", "north").text()
    assert row.cancelled and row.num_tokens < 9
