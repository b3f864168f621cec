"""The command behind `koffkit memory compact`: which bundles, where to, and how much it cost on which
text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artefact.bundle import Bundle, is_bundle, open_bundle
from ..artefact.check import require_sound
from ..artefact.export import Export, is_export, open_export
from ..artefact.names import MEMORIES
from ..checkpoint.files import load_tokenizer
from ..devices import find_device
from ..errors import DataError, UsageError
from ..parity.probe import probe_tokens
from ..progress import Progress, Silent
from ..runtime.perplexity import token_ids
from ..storage.publish import replacing, staged
from .compact_bundle import Options, is_compacted, record_loss, write_compact
from .measure import kl_before_and_after
from .recipe import find_base

MOST_TOKENS = 1 << 15
AT_ONCE = 1 << 11  # tokens whose logits exist at one time
FIELD = "text"
SHOWN = ("ranks", "energy", "kl")


def compact(
    path: Path,
    options: Options,
    *,
    output: Path | None = None,
    in_place: bool = False,
    data: Sequence[str] = (),
    field: str = FIELD,
    base: Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compact one memory, or all of an export; returns what `koffkit memory compact --json` prints.

    Args:
        path: an export, one of its bundles, or EXPORT/NAME.
        output: folder that gets a folder NAME for each bundle; by default EXPORT-compact beside the export.
        in_place: replace the bundles instead, each in one step; those that an interrupted command has
            replaced already stay as they are.
        data: text or jsonl files; `{name}` stands for the memory's name. Without any, only the probe tokens
            are compared.
        base: the unpruned model, where it is not where the manifest says.
        device: where the loss is measured; None: on the accelerator of the machine, or the CPU without one.
        batch_size: sequences at a time; None: as many as make `AT_ONCE` tokens.

    Raises:
        UsageError: there is no such memory or kind of device, the output exists, or the rank is too high.
        ResourceError: the device is not there.
        DataError: no text in `data`, or no base at `base`.
        IntegrityError: a bundle is damaged, or the base is not the export's.
    """
    progress = progress or Silent()
    place = find_device(device)
    export, bundles = find_bundles(path)
    require_sound(export, whole=True)
    for bundle in bundles:
        bundle.require_backbone(export.backbone_digest, export.backbone)
    teacher = _teacher(export, base, progress)
    if not data:
        progress.warn(
            "no --data: the loss is measured on a few fixed tokens only, which says little about text."
        )
    batches = {
        bundle.domain: list(_batches(export, bundle.domain, data, field, batch_size)) for bundle in bundles
    }
    rows: dict[str, Any] = {}

    def one(bundle: Bundle, target: Path) -> None:
        small = write_compact(bundle, export, options, target)
        loss = kl_before_and_after(export, bundle, small, teacher, batches[bundle.domain], place)
        small = record_loss(small, loss | {"text": list(data) or "probe tokens"})
        rows[bundle.domain] = _row(small)
        progress.advance("compact", len(rows), {})

    progress.start("compact", len(bundles), 0)
    if in_place:
        for bundle in bundles:
            if is_compacted(bundle, options):
                progress.message(f"memory {bundle.domain} has been compacted like this already.")
                rows[bundle.domain] = _row(bundle)
                continue
            with replacing(bundle.path) as partial:
                one(bundle, partial)
        written = export.path / MEMORIES
    else:
        written = output or export.path.resolve().with_name(f"{export.path.resolve().name}-compact")
        with staged(written) as partial:
            for bundle in bundles:
                (partial / bundle.domain).mkdir()
                one(bundle, partial / bundle.domain)
    return {"output": str(written), "dtype": options.dtype, "memories": rows}


def _row(small: Bundle) -> dict[str, Any]:
    """What is printed of a compacted bundle; all of it is in its `memory.json`."""
    compacted = small.info.compacted
    assert compacted is not None
    before = compacted.original.bytes
    row = {"bytes_before": before, "bytes": small.bytes, "ratio": small.bytes / before}
    return row | {key: value for key, value in compacted.to_json().items() if key in SHOWN}


def find_bundles(path: Path) -> tuple[Export, list[Bundle]]:
    """The export and its bundles that a path means: EXPORT, EXPORT/memories/NAME or EXPORT/NAME.

    Raises:
        UsageError: there is nothing to compact there.
    """
    if is_export(path):
        export = open_export(path)
        if not export.bundles():
            raise UsageError(f"{path}: this export has no memories.")
        return export, export.bundles()
    place = path if is_bundle(path) else path.parent / MEMORIES / path.name
    if not is_bundle(place) or not is_export(place.resolve().parent.parent):
        raise UsageError(
            f"{path}: neither an export nor a memory in one; give EXPORT, EXPORT/NAME or "
            f"EXPORT/{MEMORIES}/NAME "
            "(golden logits need the backbone)."
        )
    return open_export(place.resolve().parent.parent), [open_bundle(place)]


def _teacher(export: Export, given: Path | None, progress: Progress) -> Path | None:
    try:
        return find_base(export, given)
    except DataError:
        if given is not None:
            raise
        progress.warn(
            "the unpruned model is not where the manifest says (--base names it): compared with the memory "
            "before instead."
        )
        return None


def _batches(
    export: Export, name: str, data: Sequence[str], field: str, batch_size: int | None
) -> Iterator[Tensor]:
    """Token ids [B, T] of the text, or of the probe."""
    tokenizer = load_tokenizer(export.backbone)
    if not data:
        yield torch.tensor([probe_tokens(len(tokenizer))])
        return
    ids: list[int] = []
    for pattern in data:
        ids += token_ids(tokenizer, pattern.replace("{name}", name), field, MOST_TOKENS)
    ids = ids[:MOST_TOKENS]
    length = min(len(ids), int(export.manifest.recipe["sequence_length"]))
    rows = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    at_once = batch_size or max(1, AT_ONCE // length)
    yield from (rows[start : start + at_once] for start in range(0, len(rows), at_once))
