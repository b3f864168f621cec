from __future__ import annotations

from pathlib import Path

import pytest
import torch

from koffkit import KoffModel
from koffkit.errors import UsageError

from ...common import sentences
from ...conftest import Shipped

PROMPTS = ["river stone", "quiet house sings over", "lamp", "seven"]


@pytest.fixture
def model(shipped: Shipped) -> KoffModel:
    return KoffModel.from_pretrained(shipped.export)


def test_each_prompt_of_a_batch_gets_its_own_memory(model: KoffModel) -> None:
    rows = ["north", "south", None, "south"]
    together = model.generate(PROMPTS, memory=rows, max_new_tokens=6)
    alone = [model.generate(prompt, memory=memory, max_new_tokens=6)[0] for prompt, memory in zip(PROMPTS, rows, strict=True)]
    assert together == alone
    assert len({tuple(model.generate(PROMPTS, memory=memory, max_new_tokens=6)) for memory in ("north", "south", None)}) > 1


def test_attach_and_detach_choose_for_calls_that_name_no_memory(model: KoffModel) -> None:
    ids = torch.arange(10).reshape(1, 10) + 4
    bare, north = model.logits(ids, None), model.logits(ids, "north")
    assert torch.equal(model.logits(ids), bare)
    model.attach("north")
    assert model.attached == "north" and torch.equal(model.logits(ids), north)
    assert torch.equal(model.logits(ids, None), bare) and not torch.allclose(bare, north, atol=1e-3)
    model.detach()
    assert model.attached is None and torch.equal(model.logits(ids), bare)


def test_memories_can_be_chosen_and_added(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export, ["south"])
    assert model.domains == ["south"]
    ids = torch.arange(10).reshape(1, 10) + 4
    south = model.logits(ids, "south")
    assert model.load_memory(shipped.export / "memories" / "north") == "north"
    assert model.domains == ["south", "north"]
    torch.testing.assert_close(model.logits(ids, "south"), south, atol=1e-6, rtol=1e-6)
    assert {name for name, _ in KoffModel.from_pretrained(shipped.export, ["south"]).route(sentences(1, 5))} <= {"south", None}
    with pytest.raises(UsageError, match="a memory 'north' is loaded already"):
        model.load_memory(shipped.export / "memories" / "north")


def test_what_cannot_be_done_says_why(model: KoffModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="memory 'east': not loaded; there is north, south"):
        model.attach("east")
    with pytest.raises(UsageError, match="3 names for 2 prompts"):
        model.generate(PROMPTS[:2], memory=["north"] * 3)
    with pytest.raises(UsageError, match="the router needs the prompts"):
        model.logits(torch.tensor([[5]]), "auto")
    with pytest.raises(UsageError, match="neither an export"):
        KoffModel.from_pretrained(tmp_path)
    assert model.generate([]) == []


def test_a_plain_checkpoint_is_a_backbone_without_memories(llama: Path) -> None:
    model = KoffModel.from_pretrained(llama)
    with pytest.raises(UsageError, match="there is no router"):
        model.route(PROMPTS)
    with pytest.raises(UsageError, match="there is no router"):
        model.generate(PROMPTS, memory="auto")
    assert model.domains == [] and len(model.generate("river", max_new_tokens=3)) == 1
    with pytest.raises(UsageError, match="there is none"):
        model.attach("north")
