"""With `attend_across_documents: false`, packed documents are read as if each stood alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from koffkit.model.batch import Batch
from koffkit.training.context import Context

from ...common import make_checkpoint
from .test_text_memory import context_for

LENGTHS = (5, 1, 7, 3)
FAMILIES = ["llama", "granite", "qwen3", "smollm3", "gemma3_text"]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {"head_dim": 8} if request.param in ("qwen3", "gemma3_text") else {}
    if request.param == "gemma3_text":
        more |= {"sliding_window": 4}
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, **more)


def packed() -> tuple[Batch, list[slice]]:
    """Two rows of documents, and where the documents are."""
    total = sum(LENGTHS)
    ids = torch.randint(10, 200, (2, total), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    places = [slice(end - length, end) for end, length in zip(ends, LENGTHS, strict=True)]
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, total)
    return Batch(ids, None, positions), places


def alone(context: Context, ids: Tensor, places: list[slice], memory: str | None) -> Tensor:
    return torch.cat([context.student(ids[:, place], None, memory) for place in places], dim=1)


@pytest.mark.parametrize("memory", [None, "north"])
@torch.no_grad()
def test_packed_documents_give_what_each_gives_alone(base: Path, tmp_path: Path, memory: str | None) -> None:
    context = context_for(base, tmp_path, {"tokens": 4, "init": "random"})
    batch, places = packed()
    head = context.student.head.T
    apart = context.student(batch.ids, None, memory, batch.positions) @ head
    expected = alone(context, batch.ids, places, memory) @ head
    assert (apart - expected).abs().max() < 1e-5
    together = context.student(batch.ids, None, memory) @ head
    assert (together[:, : LENGTHS[0]] - expected[:, : LENGTHS[0]]).abs().max() < 1e-5
    assert (together - expected).abs().max() > 1e-3


@torch.no_grad()
def test_every_document_sees_the_memory(llama: Path, tmp_path: Path) -> None:
    context = context_for(llama, tmp_path, {"tokens": 4, "init": "random"})
    batch, places = packed()
    without, with_memory = (
        context.student(batch.ids, None, memory, batch.positions) for memory in (None, "north")
    )
    for place in places:
        assert (without[:, place] - with_memory[:, place]).abs().amax() > 1e-3
