from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.stages.evaluate import _mean
from koffkit.stages.scoring import without_infinities

from ...conftest import Shipped


def by_hand(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())


def test_perplexities_are_those_of_the_models_themselves(shipped: Shipped) -> None:
    """Unpruned from the base, the other conditions from the export: what was evaluated is what ships."""
    state = json.loads((shipped.run / "run.json").read_text())
    tokens = np.fromfile(shipped.run / "data" / "north.heldout.bin", dtype=np.int32)
    count = min(len(tokens), 128) // 16
    ids = torch.from_numpy(tokens[: count * 16].astype(np.int64)).reshape(count, 16)
    found = state["results"]["domains"]["north"]
    base = AutoModelForCausalLM.from_pretrained(state["base"]["path"], dtype=torch.float32).eval()
    model = KoffModel.from_pretrained(shipped.export, dtype=torch.float32)
    with torch.no_grad():
        assert found["unpruned"]["perplexity"] == pytest.approx(by_hand(base(ids).logits, ids), rel=1e-4)
    for name, memory in (("backbone", None), ("matched", "north")):
        assert found[name]["perplexity"] == pytest.approx(by_hand(model.logits(ids, memory), ids), rel=1e-4)
    assert found["tokens"] == count * 15  # the first of each sequence is not predicted
    assert found["swap"]["south"]["perplexity"] == pytest.approx(
        by_hand(model.logits(ids, "south"), ids), rel=1e-4
    )
    teacher, student = (
        base(ids).logits[:, :-1].log_softmax(-1),
        model.logits(ids, "north")[:, :-1].log_softmax(-1),
    )
    assert found["matched"]["kl"] == pytest.approx(
        (teacher.exp() * (teacher - student)).sum(-1).mean().item(), rel=1e-3
    )


def test_the_mean_of_perplexities_is_geometric() -> None:
    rows = {
        name: {"matched": {"perplexity": p, "recall": r}, "swap": {}}
        for name, p, r in (("a", 2.0, 0.5), ("b", 8.0, 1.0))
    }
    assert _mean(rows)["matched"] == {"perplexity": pytest.approx(4.0), "recall": pytest.approx(0.75)}


def test_what_is_beyond_a_float_is_null_in_the_results_and_readable_in_the_tables() -> None:
    from rich.console import Console

    from koffkit.report.swap import matched_best
    from koffkit.report.table import results_table, swap_table

    low, high = {"perplexity": 2.0, "kl": 0.5}, {"perplexity": math.inf, "kl": 0.5}
    rows = {
        "a": {"unpruned": low, "backbone": high, "matched": low, "swap": {"b": high}},
        "b": {"unpruned": low, "backbone": low, "matched": low, "swap": {"a": high}},
    }
    results = without_infinities({"domains": rows, "mean": _mean(rows)})
    assert "Infinity" not in json.dumps(results)
    assert results["domains"]["a"]["backbone"] == {"perplexity": None, "kl": 0.5}
    assert results["mean"]["backbone"] == {"perplexity": None, "kl": 0.5}
    assert matched_best(results) == 2
    for table in (results_table(results), swap_table(results, "perplexity")):
        console = Console(record=True, width=120)
        console.print(table)
        assert "inf" in console.export_text()
