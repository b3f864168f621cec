"""Records of what the teacher says: exact enough, never half of one, never one of something else."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from koffkit.data import teacher_cache
from koffkit.data.teacher_cache import MEANING, TargetFile, decoded
from koffkit.errors import IntegrityError, ResourceError
from koffkit.method.losses.base import Targets
from koffkit.method.losses.top_k import targets_of

T, K, V = 6, 5, 40
FACTS: dict[str, Any] = dict.fromkeys(MEANING, "x") | {"sequence_length": T}
IDS = np.arange(T)


def opened(folder: Path, *, count: int = 4, top: int = K, vocabulary: int = V, **facts: Any) -> TargetFile:
    return TargetFile(folder, "north", count, FACTS | facts, top=top, vocabulary=vocabulary)


def said(seed: int = 0, vocabulary: int = V) -> Targets:
    logits = torch.randn(T, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4
    return targets_of(logits, K)


@pytest.mark.parametrize("vocabulary", [V, 70_000])
def test_what_was_written_is_read_again_by_another_process(tmp_path: Path, vocabulary: int) -> None:
    told = said(vocabulary=vocabulary)
    written = opened(tmp_path, vocabulary=vocabulary).write(2, IDS, told)
    again = opened(tmp_path, vocabulary=vocabulary)
    read = again.read(2, IDS)
    assert read is not None and read.tobytes() == written.tobytes()
    assert [again.read(number, IDS) for number in (0, 1, 3)] == [None] * 3
    assert again.filled == 1
    found = decoded([read], torch.device("cpu"))[0]
    assert found.index.equal(told.index)
    assert found.index.max() < vocabulary
    torch.testing.assert_close(found.probability, told.probability, rtol=5e-3, atol=1e-6)
    whole = found.probability.double().sum(-1) + found.rest
    torch.testing.assert_close(whole, torch.ones(T, dtype=torch.double), rtol=0, atol=1e-6)
    assert (tmp_path / "north.targets").stat().st_size == 4 * again.type.itemsize == again.bytes


def test_a_record_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(1, IDS, said())
    path, size = tmp_path / "north.targets", file.type.itemsize
    whole = path.read_bytes()
    for place in (0, 5, size // 2, size - 1):
        damaged = bytearray(whole)
        damaged[size + place] ^= 1
        path.write_bytes(damaged)
        assert opened(tmp_path).read(1, IDS) is None, place
    path.write_bytes(whole[: size + size // 2])  # a copy cut short
    short = opened(tmp_path)
    assert short.read(1, IDS) is None
    short.write(1, IDS, said())
    assert path.read_bytes() == whole


def test_a_record_is_of_its_tokens_and_its_teacher(tmp_path: Path) -> None:
    opened(tmp_path).write(1, IDS, said())
    assert opened(tmp_path).read(1, IDS + 1) is None
    index = tmp_path / "north.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"base": "y"}))  # two writers, one index
    assert opened(tmp_path, base="y").read(1, IDS) is None


@pytest.mark.parametrize("name", MEANING)
def test_a_cache_of_something_else_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    opened(tmp_path).write(1, IDS, said())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        IntegrityError, match=r"north.targets: a teacher cache of .*distill.cache_dir"
    ) as error:
        opened(tmp_path, **{name: 7})
    assert MEANING[name] in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_tokens_than_are_wanted_serve_and_fewer_do_not(tmp_path: Path) -> None:
    opened(tmp_path).write(1, IDS, said())
    fewer = opened(tmp_path, top=K - 2)
    assert fewer.top == K and fewer.read(1, IDS) is not None
    with pytest.raises(IntegrityError, match=f"of {K} tokens a position, and distill.top_k wants {K + 1}"):
        opened(tmp_path, top=K + 1)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    index = tmp_path / "north.json"
    for damaged in (json.loads(index.read_text()) | {"top_k": "many"}, {"format": 2}):
        index.write_text(json.dumps(FACTS | damaged))
        with pytest.raises(IntegrityError, match="of another version, or damaged"):
            opened(tmp_path)


def test_room_is_asked_for_what_is_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(tmp_path)
    file.write(1, IDS, said())
    disk = SimpleNamespace(free=3 * file.type.itemsize)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: disk)
    file.require_room(100)
    disk.free -= 1
    file.require_room(2)
    with pytest.raises(ResourceError, match=r"needs \d+ more; .*distill.cache_dir"):
        file.require_room(100)


def test_a_disk_that_is_full_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(tmp_path)
    full = nullcontext(SimpleNamespace(seek=lambda _: 0, write=lambda _: 10))
    monkeypatch.setattr(teacher_cache, "open", lambda *_, **__: full, raising=False)
    with pytest.raises(ResourceError, match=r"north.targets: no room"):
        file.write(1, IDS, said())
