from __future__ import annotations

import json

from koffkit.run.folder import RunFolder

from ...conftest import Shipped


def test_a_row_of_metrics_says_rates_gradient_norm_and_time(shipped: Shipped) -> None:
    rows = [json.loads(line) for line in RunFolder(shipped.run).metrics_file.read_text().splitlines()]
    first, last = rows[0], rows[-1]
    assert first["stage"] == "learn_masks"
    assert first["lr_gates"] == 0.3
    assert last["stage"] == "recover"
    assert "lr_gates" not in last
    assert 0 < last["lr_lora"] <= 2e-2
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert [row["wall_time"] for row in rows] == sorted(row["wall_time"] for row in rows)
