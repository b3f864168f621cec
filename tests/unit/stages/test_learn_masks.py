from __future__ import annotations

import json

from ...conftest import Shipped


def test_how_far_the_gates_came_is_in_the_results(shipped: Shipped) -> None:
    rows = [json.loads(line) for line in (shipped.run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["stage"] == "learn_masks"][-1]
    gates = json.loads((shipped.run / "run.json").read_text())["results"]["gates"]
    assert gates == {"expected_sparsity": last["expected_sparsity"], "target": last["sparsity"]}
