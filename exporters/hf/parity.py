"""The gate before publishing: masked == sliced (method, invariant 1), for no memory and for every memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...artefact import MEMORY_FILE, open_bundle
from ...errors import IntegrityError
from ...files import write_json
from ...run.folder import RunFolder
from ...structures import Masks

TOLERANCE = 1e-4
NO_MEMORY = "none"


def check_parity(base: Path, masks: Masks, run: RunFolder, backbone: Path, bundles: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare on the probe tokens, and record golden logits of the sliced side: those without memory are returned, each memory's go
    into its `memory.json`.

    Returns:
        max |logit difference| in float32, `{"tolerance", "tokens", "max_abs": {condition: value}}`, and the golden logits.

    Raises:
        IntegrityError: a difference is above the tolerance, or not a number.
    """
    from ...runtime.probe import Probe, compare, golden, probe_tokens

    opened = [open_bundle(path) for path in bundles]
    domains = [bundle.domain for bundle in opened]
    masked = Probe(base, [open_bundle(run.memory_dir(domain)) for domain in domains], masks)
    sliced = Probe(backbone, opened)
    tokens, rows = probe_tokens(sliced.vocabulary), [None, *domains]
    hidden = sliced.hidden(tokens, rows)
    found = compare(masked, masked.hidden(tokens, rows), sliced, hidden)
    differences = dict(zip([NO_MEMORY, *domains], found, strict=True))
    for condition, value in differences.items():
        if not value <= TOLERANCE:
            raise IntegrityError(
                f"parity: memory {condition}: the sliced backbone differs from the masked model by {value:.3g} (limit {TOLERANCE:g}); "
                "nothing was published. Please report this with the recipe and the base's config.json."
            )
    del masked
    plain, *others = golden(sliced, hidden)
    for bundle, logits in zip(opened, others, strict=True):
        write_json(bundle.path / MEMORY_FILE, dict(bundle.info) | {"golden": {"tokens": tokens, **logits}})
    return {"tolerance": TOLERANCE, "tokens": len(tokens), "max_abs": differences}, {"tokens": tokens, **plain}
