"""What `koffkit memory compact` does: choose the bundles, compact them, and measure what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artefact.bundle import Bundle, is_bundle, open_bundle
from ..artefact.check import require_sound
from ..artefact.export import Export, is_export, open_export
from ..artefact.names import MEMORIES
from ..artefact.public import Around, public_place
from ..checkpoint.files import load_tokenizer
from ..devices import find_device
from ..errors import DataError, UsageError
from ..model.batch import Batch
from ..parity.probe import probe_tokens
from ..progress import Progress, Silent
from ..runtime.perplexity import Text, attends_across, packed_text, sequences
from ..storage.lock import tidy
from ..storage.publish import replacing, staged
from .compact_bundle import Options, is_compacted, record_loss, write_compact
from .manage import claim_memory
from .measure import kl_before_and_after
from .recipe import find_base

MAX_TOKENS = 1 << 15  # of text, for each memory
TOKENS_AT_ONCE = 1 << 11  # tokens whose logits are in memory at the same time
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
    """Compact one memory, or all of an export.

    Args:
        path: an export, one of its bundles, or EXPORT/NAME.
        options: rank and dtype of the compacted weights.
        output: folder that gets a folder NAME for each bundle; by default EXPORT-compact beside the export.
        in_place: replace the bundles instead, each in one step; those that an interrupted command has
            already replaced stay as they are.
        data: text or jsonl files to measure the loss on; `{name}` stands for the memory's name. Without any,
            only the probe tokens are compared.
        field: field of a jsonl file that holds the text.
        base: the unpruned model, if it is not where the manifest says.
        device: where the loss is measured; None: on the accelerator of the machine, or the CPU without one.
        batch_size: sequences at a time; None: as many as make `TOKENS_AT_ONCE` tokens.
        progress: where to report; by default nowhere.

    Returns:
        What `koffkit memory compact --json` prints.

    Raises:
        UsageError: there is no such memory or kind of device, the output exists, or the rank is too high.
        ResourceError: the device is not there.
        DataError: no text in `data`, or no base at `base`.
        IntegrityError: a bundle is damaged, or the base is not the export's.
    """
    progress = progress or Silent()
    torch_device = find_device(device)
    export, bundles = find_bundles(path)
    progress.message("checking the export")
    require_sound(export, whole=True, progress=progress)
    for bundle in bundles:
        bundle.require_backbone(export.backbone_digest, export.backbone)
    text = HeldOutText(data, field, batch_size)
    compactor = _Compactor(export, options, _teacher(export, base, progress), text, torch_device, progress)
    return compactor.run(bundles, output, in_place)


@dataclass(frozen=True)
class HeldOutText:
    """The text that the loss is measured on; see `compact`."""

    patterns: Sequence[str]
    field: str
    batch_size: int | None

    def batches(self, export: Export, name: str) -> Iterator[Batch]:
        """Sequences of the text of the memory `name`, or of the probe if there is no text."""
        tokenizer = load_tokenizer(export.backbone)
        if not self.patterns:
            yield Batch(torch.tensor([probe_tokens(len(tokenizer))]))
            return
        text = Text([], [])
        for pattern in self.patterns:
            more = packed_text(tokenizer, pattern.replace("{name}", name), self.field, MAX_TOKENS)
            text.starts.extend(len(text.ids) + start for start in more.starts)
            text.ids.extend(more.ids)
        ids = text.ids[:MAX_TOKENS]
        length = min(len(ids), int(export.manifest.recipe["sequence_length"]))
        whole = Text(ids[: len(ids) // length * length], text.starts)
        batch_size = self.batch_size or max(1, TOKENS_AT_ONCE // length)
        yield from sequences(whole, length, batch_size, apart=not attends_across(export.path))


class _Compactor:
    """Compacts bundles of one export one by one, and measures what each of them loses."""

    def __init__(
        self,
        export: Export,
        options: Options,
        teacher: Path | None,
        text: HeldOutText,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self._export, self._options, self._teacher = export, options, teacher
        self._text, self._device, self._progress = text, device, progress
        self._batches: dict[str, list[Batch]] = {}
        self._rows: dict[str, Any] = {}
        self._done = 0  # bundles written and batches measured

    def run(self, bundles: Sequence[Bundle], output: Path | None, in_place: bool) -> dict[str, Any]:
        if not self._text.patterns:
            self._progress.warn(
                "no --data: the loss is measured on a few fixed tokens only, which says little about text."
            )
        for bundle in bundles:  # before anything is written: text that is missing is an error
            self._batches[bundle.domain] = list(self._text.batches(self._export, bundle.domain))
        total = sum(1 + len(batches) for batches in self._batches.values())
        self._progress.start("compact", total, 0)
        root = self._export.path
        if in_place:
            output = root / MEMORIES
            self._replace(bundles)
        else:
            output = output or root.resolve().with_name(f"{root.resolve().name}-compact")
            self._write_to(output, bundles)
        return {"output": str(output), "dtype": self._options.dtype, "memories": self._rows}

    def _replace(self, bundles: Sequence[Bundle]) -> None:
        tidy(self._export.path / MEMORIES)  # an earlier command may have been killed while it deleted
        for bundle in bundles:
            if is_compacted(bundle, self._options):
                self._progress.message(f"memory {bundle.domain} has been compacted like this already.")
                self._rows[bundle.domain] = _row(bundle)
                self._advance(1 + len(self._batches[bundle.domain]))
                continue
            held = claim_memory(self._export, bundle.path)
            with held, replacing(bundle.path, claimed=True) as partial:
                self._compact(bundle, partial)

    def _write_to(self, output: Path, bundles: Sequence[Bundle]) -> None:
        with staged(output) as partial:
            for bundle in bundles:
                (partial / bundle.domain).mkdir()
                self._compact(bundle, partial / bundle.domain)

    def _compact(self, bundle: Bundle, target: Path) -> None:
        compacted = write_compact(bundle, self._export, self._options, target)
        self._advance()
        batches = self._batches[bundle.domain]
        loss = kl_before_and_after(
            self._export, bundle, compacted, self._teacher, batches, self._device, self._advance
        )
        around = Around(self._export.path, Path.cwd())
        text = [public_place(pattern, around) for pattern in self._text.patterns]
        compacted = record_loss(compacted, loss | {"text": text or "probe tokens"})
        self._rows[bundle.domain] = _row(compacted)

    def _advance(self, count: int = 1) -> None:
        self._done += count
        self._progress.advance("compact", self._done, {})


def _row(bundle: Bundle) -> dict[str, Any]:
    """What is printed about a compacted bundle; all of it is in its `memory.json`."""
    compacted = bundle.info.compacted
    assert compacted is not None
    before = compacted.original.bytes
    row = {"bytes_before": before, "bytes": bundle.bytes, "ratio": bundle.bytes / before}
    return row | {key: value for key, value in compacted.to_json().items() if key in SHOWN}


def find_bundles(path: Path) -> tuple[Export, list[Bundle]]:
    """The export and the bundles that a path stands for: EXPORT, EXPORT/memories/NAME or EXPORT/NAME.

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
            f"EXPORT/{MEMORIES}/NAME (golden logits need the backbone)."
        )
    return open_export(place.resolve().parent.parent), [open_bundle(place)]


def _teacher(export: Export, given: Path | None, progress: Progress) -> Path | None:
    try:
        return find_base(export, given, progress)
    except DataError:
        if given is not None:
            raise
        progress.warn(
            "the unpruned model is not where the manifest says (--base names it): the loss is measured "
            "against the memory before compaction instead."
        )
        return None
