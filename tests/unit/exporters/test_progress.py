"""What exporting, compacting and measuring say while they work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from koffkit.exporters import export

from koffkit.memories.compact import compact
from koffkit.memories.compact_bundle import Options
from koffkit.progress import Silent
from koffkit.runtime.perplexity import perplexity

from ...conftest import Shipped


class Told(Silent):
    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.steps: dict[str, list[int]] = {}

    def start(self, stage: str, total: int, done: int) -> None:
        self.totals[stage] = total
        self.steps[stage] = []

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        self.steps[stage].append(done)


def test_the_parity_gate_says_how_far_it_is(shipped: Shipped, tmp_path: Path) -> None:
    told = Told()
    export(shipped.run, tmp_path / "out", progress=told)
    assert told.steps["parity"] == list(range(1, told.totals["parity"] + 1))
    assert told.steps["slice"][-1] == told.totals["slice"]


def test_compacting_says_so_after_every_batch(shipped: Shipped, tmp_path: Path) -> None:
    told = Told()
    text = shipped.recipe.parent / "data" / "north.txt"
    compact(
        shipped.export,
        Options(),
        output=tmp_path / "small",
        data=[str(text)],
        batch_size=16,
        progress=told,
    )
    assert told.totals["compact"] > 4
    assert told.steps["compact"] == list(range(1, told.totals["compact"] + 1))


def test_measuring_a_perplexity_says_so_after_every_batch(shipped: Shipped) -> None:
    told = Told()
    text = shipped.recipe.parent / "data" / "north.txt"
    perplexity(shipped.export, str(text), None, sequence_length=64, batch_size=2, progress=told)
    assert told.totals["evaluate"] > 4
    assert told.steps["evaluate"] == list(range(1, told.totals["evaluate"] + 1))
