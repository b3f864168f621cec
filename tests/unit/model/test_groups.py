from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from koffkit.model.groups import Groups
from koffkit.model.lora_memory import LoraRows, LowRank, Stacked

TOKENS, INPUT, OUTPUT = 3, 5, 7


def low_rank(seed: int, rank: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, INPUT, generator=generator), torch.randn(OUTPUT, rank, generator=generator)
    return LowRank(down, up, 0.5 + seed)


MEMORIES = {"a": low_rank(1, 2), "b": low_rank(2, 4), "c": low_rank(3, 1)}
NONE = None


@pytest.mark.parametrize(
    "rows",
    [
        ["a", "b", "c"],  # a group each
        ["b", NONE, "a", "c"],
        ["c", "a", "a", "a", "b", "a", "a", "a", "b"],  # groups of 1, 6 and 2
        [NONE, "a", NONE, "a", "a", "a", "b", NONE, "a", "b"],
        ["a", "a", "b", "b", "c", "c"],  # in order
    ],
)
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_row_gets_what_its_memory_adds(rows: list[str | None], repeats: int) -> None:
    x = torch.randn(len(rows) * repeats, TOKENS, INPUT, generator=torch.Generator().manual_seed(0))
    output = torch.ones(len(rows) * repeats, TOKENS, OUTPUT)
    wanted = [name for name in MEMORIES if name in rows]
    groups, order = Groups.of(rows, wanted)
    state = LoraRows(Stacked.of([None if name is None else MEMORIES[name] for name in order]), groups)
    found = state.add(x, output)
    for place in range(len(x)):
        expected = of_one(rows[place // repeats], x[place], output[place])
        torch.testing.assert_close(found[place], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(output, torch.ones_like(output))


def of_one(name: str | None, x: Tensor, output: Tensor) -> Tensor:
    if name is None:
        return output
    pair = MEMORIES[name]
    return output + F.linear(F.linear(x, pair.down), pair.up) * pair.scaling


def test_rows_that_share_memories_read_each_weight_once() -> None:
    groups, order = Groups.of(["a", "b", "a", "a", "b", "a"], ["a", "b"])
    assert order == ["a", "b"] and [list(members) for members in groups.members] == [[0, 2, 3, 5], [1, 4]]
    _, order = Groups.of(["a", NONE, "b"], ["a", "b"])
    assert order == ["a", NONE, "b"]
