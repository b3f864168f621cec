"""Which process this is, as launchers say; alone, nothing is said to anybody."""

from __future__ import annotations

import pytest
import torch

from koffkit.errors import UsageError
from koffkit.parallel import place, ranks


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
