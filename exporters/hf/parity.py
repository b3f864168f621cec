"""The gate before publishing: masked == sliced (method, invariant 1), for no memory and for every memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import open_bundle
from ...artefact.names import MEMORY_FILE
from ...masks.masks import Masks
from ...run.folder import RunFolder
from ...storage.files import write_json

if TYPE_CHECKING:
    from ...runtime.parity import Difference


def check_parity(
    base: Path, masks: Masks, run: RunFolder, backbone: Path, bundles: list[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare on the probe tokens, and record golden logits of the sliced side: those without memory are
    returned, each memory's go into its `memory.json`.

    Returns:
        what the manifest says (see `_summary`), and the golden logits.

    Raises:
        IntegrityError: a difference is above the tolerance, or not a number.
    """
    import torch

    from ...runtime.parity import NO_MEMORY, compare, require_same
    from ...runtime.probe import Probe, golden, probe_tokens

    opened = [open_bundle(path) for path in bundles]
    domains = [bundle.domain for bundle in opened]
    masked = Probe(base, [open_bundle(run.memory_dir(domain)) for domain in domains], masks)
    sliced = Probe(backbone, opened)
    tokens, rows = probe_tokens(sliced.vocabulary), [None, *domains]
    hidden = sliced.hidden(tokens, rows)
    differences = require_same(
        sliced, hidden, masked, masked.hidden(tokens, rows), domains, "nothing was published"
    )
    del masked
    plain, *others = golden(sliced, hidden)
    for bundle, logits in zip(opened, others, strict=True):
        write_json(bundle.path / MEMORY_FILE, dict(bundle.info) | {"golden": {"tokens": tokens, **logits}})
    single = Probe(backbone, opened, dtype=torch.float32)
    rounding = compare(sliced, hidden, single, single.hidden(tokens, rows))
    return _summary(len(tokens), differences, dict(zip([NO_MEMORY, *domains], rounding, strict=True))), {
        "tokens": tokens,
        **plain,
    }


def _summary(
    tokens: int, differences: Mapping[str, Difference], rounding: Mapping[str, Difference]
) -> dict[str, Any]:
    """By condition: the largest |logit| and the largest |logit difference| in float64, of which `tolerance`,
    times the former, is the limit; beside it the noise floor, which is what float32 alone does to the sliced
    backbone."""
    from ...runtime.parity import TOLERANCE

    return {
        "dtype": "float64",
        "tokens": tokens,
        "tolerance": TOLERANCE,
        "max_logit": {name: value.max_logit for name, value in differences.items()},
        "max_abs": {name: value.max_abs for name, value in differences.items()},
        "noise_floor": {
            "dtype": "float32",
            "max_abs": {name: value.max_abs for name, value in rounding.items()},
            "kl": {name: value.kl for name, value in rounding.items()},
        },
    }
