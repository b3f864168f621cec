"""The gate before publishing: masked == sliced (method, invariant 1), for no memory and for every memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...artefact import MEMORY_FILE, open_bundle
from ...errors import IntegrityError
from ...files import write_json
from ...run.folder import RunFolder
from ...structures import Masks

TOLERANCE = 1e-4
NO_MEMORY = "none"


def check_parity(base: Path, masks: Masks, run: RunFolder, backbone: Path, bundles: list[Path]) -> dict[str, Any]:
    """max |logit difference| in float32 on the probe tokens: `{"tolerance", "tokens", "max_abs": {condition: value}}`.

    Raises:
        IntegrityError: a difference is above the tolerance, or not a number.
    """
    from ...runtime.probe import Probe, compare, probe_tokens

    domains = [path.name for path in bundles]
    masked = Probe(base, [open_bundle(run.memory_dir(domain)) for domain in domains], masks)
    sliced = Probe(backbone, [open_bundle(path) for path in bundles])
    tokens = probe_tokens(sliced.vocabulary)
    found = compare(masked, sliced, tokens, [None, *domains])
    differences = dict(zip([NO_MEMORY, *domains], found, strict=True))
    for condition, value in differences.items():
        if not value <= TOLERANCE:
            raise IntegrityError(
                f"parity: memory {condition}: the sliced backbone differs from the masked model by {value:.3g} (limit {TOLERANCE:g}); "
                "nothing was published. Please report this with the recipe and the base's config.json."
            )
    return {"tolerance": TOLERANCE, "tokens": len(tokens), "max_abs": differences}


def write_golden(backbone: Path, bundles: list[Path]) -> Mapping[str, Any]:
    """Golden logits: those without memory are returned, each memory's go into its `memory.json`."""
    from ...runtime.probe import Probe, golden, probe_tokens

    opened = [open_bundle(path) for path in bundles]
    probe = Probe(backbone, opened)
    tokens = probe_tokens(probe.vocabulary)
    plain, *others = golden(probe, tokens, [None, *(bundle.domain for bundle in opened)])
    for bundle, found in zip(opened, others, strict=True):
        write_json(bundle.path / MEMORY_FILE, dict(bundle.info) | {"golden": {"tokens": tokens, **found}})
    return {"tokens": tokens, **plain}
