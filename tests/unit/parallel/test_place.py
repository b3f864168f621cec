"""Which process this is, as launchers say; alone, nothing is said to anybody."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import accelerate
import pytest
import torch
from accelerate.utils import DistributedType

from koffkit.errors import PeerLost, UsageError
from koffkit.parallel import place, ranks
from koffkit.parallel.sharding import asked_by_accelerate

from ...common import recipe_dict, write_recipe
from ...conftest import Koffkit


def launched(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in place.NAMES:
        monkeypatch.delenv(name, raising=False)
    assert (place.rank(), place.num_processes()) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some systems set it for all that they run
    assert (place.rank(), place.num_processes()) == (0, 1)


def test_the_launcher_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "2", "4")
    assert (place.rank(), place.num_processes()) == (2, 4)


@pytest.mark.parametrize(("rank", "size"), [("4", "4"), ("-1", "2"), ("0", "none"), ("", "2")])
def test_what_is_no_process_is_refused(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, rank, size)
    with pytest.raises(UsageError, match="no such process"):
        place.rank()


def test_a_numbered_device_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "0", "2")
    with pytest.raises(UsageError, match="2 processes cannot share it"), ranks.joined("cuda:1"):
        pass


@pytest.mark.parametrize(
    ("value", "size", "asked"),
    [("true", "2", True), ("1", "4", True), ("false", "2", False), (None, "2", False), ("true", "1", False)],
)
def test_accelerate_asks_several_processes_to_divide_the_model(
    value: str | None, size: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, "0", size)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    assert asked_by_accelerate() is asked


def test_accelerate_starts_one_process_where_several_were_asked_for(
    koffkit: Koffkit, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--cpu --num_processes 2` it sets no rank, and the address of nobody."""
    stages = [{"select_masks": {"selector": "magnitude"}}]
    tree = recipe_dict(llama, tmp_path / "data", stages=stages, memory={"lora": None, "kv": None})
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not place.left_alone()  # `--num_processes 1`
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    done = koffkit("compress", recipe, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert "accelerate launch started one process; for several on a CPU" in " ".join(done.err.split())
    launched(monkeypatch, "0", "2")
    assert not place.left_alone()


@pytest.mark.parametrize("size", ["1", "2"])
@pytest.mark.parametrize(("name", "engine"), ranks.ELSEWHERE.items())
def test_what_koffkit_does_not_do_is_refused_before_anybody_is_waited_for(
    name: str, engine: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, "0", size)
    monkeypatch.setenv(name, "true")
    with (
        pytest.raises(UsageError, match=f"accelerate is set up for {engine}, .* --use_fsdp"),
        ranks.joined(None),
    ):
        pass
    assert not torch.distributed.is_initialized()


def test_a_kind_of_device_that_nobody_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "0", "2")
    found = SimpleNamespace(distributed_type=DistributedType.XLA)
    monkeypatch.setattr(accelerate, "PartialState", Mock(return_value=found))
    with pytest.raises(UsageError, match="accelerate is set up for XLA"), ranks.joined("cpu"):
        pass
    assert not ranks.together()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), PeerLost),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), PeerLost),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_a_call_of_a_library_that_fails_because_another_process_ended(
    error: RuntimeError, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, "0", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(ranks, "_join", lambda device: torch.device("cpu"))
    with pytest.raises(told) as caught, ranks.joined("cpu"):
        assert not asked_by_accelerate()  # libraries would act on it, too
        raise error
    assert caught.type is told
    assert not ranks.together() and asked_by_accelerate()


def test_alone_every_word_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in place.NAMES:
        monkeypatch.delenv(name, raising=False)

    def stop() -> bool:
        return True

    tensor = torch.tensor([1.0, 2.0])
    with ranks.joined(None), ranks.leader_first():
        assert ranks.leads() and not ranks.together() and ranks.size() == 1
        ranks.add_up([tensor])
        ranks.take_from_leader([tensor])
        ranks.wait()
        assert ranks.added_up({"loss": 0.1}) == {"loss": 0.1}
        assert ranks.collected(7) == [7]
        assert ranks.of_leader([3]) == [3]
        assert ranks.agreed(stop) is stop
    assert tensor.tolist() == [1.0, 2.0]
    assert not torch.distributed.is_initialized()
