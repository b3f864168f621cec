"""Where the gates ended, against where they were steered to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GATE_TOLERANCE = 0.1
"""Share of the target by which the expected sparsity may differ from it when the masks are made."""


def gates_warning(gates: Mapping[str, Any] | None) -> str | None:
    """What to say when the gates ended far from where they were steered to; None: nothing.

    Args:
        gates: `results.gates` of a run: `expected_sparsity` and `target`; with local targets also
            `local_sparsity` and `local_target`.
    """
    if gates is None:
        return None
    expected, target = gates["expected_sparsity"], gates["target"]
    local, local_target = gates.get("local_sparsity"), gates.get("local_target")
    if local is not None and local_target is not None and _far(local, local_target):
        return (
            f"the gates missed their target: at the end of learn_masks {local:.1%} of the gates were "
            f"expected to be shut, not {local_target:.1%}. {_remedy(local, local_target)}"
        )
    if not _far(expected, target):
        return None
    removed = f"at the end of learn_masks they were expected to remove {expected:.1%} of the parameters"
    if local_target is not None:
        return (
            f"the gates were steered elsewhere than to the budget: {removed}, the masks remove {target:.1%}, "
            "by the scores alone. Set mask.local_sparsity so that the two agree, or leave it out."
        )
    return (
        f"the gates missed their target: {removed}, not {target:.1%}, so the exact budget was met by force. "
        f"{_remedy(expected, target)}"
    )


def _far(expected: float, target: float) -> bool:
    return target > 0 and abs(expected - target) > GATE_TOLERANCE * target


def _remedy(expected: float, target: float) -> str:
    if expected < target:
        return "Give learn_masks more steps or a higher lr.gates."
    return "Give learn_masks more steps, or a lower lr.gates or mask.lambda_init."
