"""Verifying an export: digests of all files, shapes of the weights, golden logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..artefact.check import export_problems, listed_files, listed_problems
from ..artefact.digests import backbone_digest
from ..artefact.export import Export, open_export, removed_memories
from ..artefact.names import MANIFEST, MEMORY_FILE
from ..artefact.parts import Golden
from ..checkpoint.reader import CheckpointReader
from ..checkpoint.spec import ModelSpec
from ..errors import KoffkitError, UsageError
from ..progress import Progress, Silent, StepCounter
from ..router.routed import routed
from ..run.folder import RunFolder

TOLERANCE = 1e-6
"""Tolerance of golden logits in float64, as a share of the largest: other processors and versions sum in
another order."""
OLD_TOLERANCE = 1e-3
"""Tolerance of golden logits in float32, as in older exports: most of it is their own rounding, 1e-3 at
logits of 34."""


def verify_export(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Verify an export.

    Args:
        path: the export.
        progress: told of every file, tensor and layer; by default nobody is.

    Returns:
        `{"ok", "files", "memories", "removed", "golden": {condition: max |difference|}, "problems": [...]}`;
        every problem names its file.

    Raises:
        UsageError: this is not an export.
    """
    export = open_export(path, any_format=True)
    if not export.is_checkpoint:
        return _verify_files(export, progress or Silent())
    removed, listed = removed_memories(export), listed_files(export)
    progress = progress or Silent()
    problems = list(export_problems(export, whole=True, progress=progress))
    golden: dict[str, float] = {}
    domains: list[str] = []
    if not problems:  # no logits from damaged files
        try:
            bundles = export.bundles()
            domains = [bundle.domain for bundle in bundles]
            problems += _check_backbone(export, progress)
            router = routed(export, bundles)
            if router is not None:
                shape = backbone_spec(export).shape
                router.require_backbone(shape.num_layers, shape.hidden)
            for bundle in bundles:
                bundle.require_backbone(export.backbone_digest, export.backbone)
            if not problems:
                golden, wrong = _check_golden(export, bundles, progress)
                problems += wrong
        except KoffkitError as error:
            problems.append(str(error))
    return {
        "ok": not problems,
        "path": str(path),
        "files": len(listed),
        "memories": domains,
        "removed": removed,
        "golden": golden,
        "problems": problems,
    }


def _verify_files(export: Export, progress: Progress) -> dict[str, Any]:
    """`verify_export` where other software runs the export: files, without logits."""
    problems = list(export_problems(export, whole=True, progress=progress))
    return {
        "ok": not problems,
        "path": str(export.path),
        "files": len(export.manifest.files),
        "memories": list(export.manifest.domains),
        "removed": [],
        "golden": {},
        "problems": problems,
    }


def verify_run(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """`verify_export` for a finished run: the files that its `run.json` lists.

    Args:
        path: the run.
        progress: told of every file; by default nobody is.

    Raises:
        UsageError: this is no finished run, or one that does not list its files.
    """
    run = RunFolder(path)
    state = run.require_finished()
    if state.files is None:
        raise UsageError(f"{run.run_file}: an earlier koffkit made this run, and lists no files; export it.")
    problems = list(listed_problems(path, state.files, run.run_file.name, progress=progress))
    return {
        "ok": not problems,
        "path": str(path),
        "files": len(state.files),
        "memories": [name for name in state.recipe["domains"] if run.memory_dir(name).is_dir()],
        "removed": [],
        "golden": {},
        "problems": problems,
    }


def backbone_spec(export: Export) -> ModelSpec:
    """The backbone of an export, whose own class may be koffkit's, as one of its base's family."""
    return ModelSpec.open(export.backbone, family=export.manifest.base.architecture)


def _check_backbone(export: Export, progress: Progress) -> list[str]:
    reader = CheckpointReader(export.backbone)
    problems = []
    for name, size in backbone_spec(export).weight_shapes.items():
        try:
            reader.require(name, size)
        except KoffkitError as error:
            problems.append(str(error))
    if not problems and backbone_digest(export.backbone, progress) != export.backbone_digest:
        problems.append(f"{export.backbone}: its digest is not the one in {MANIFEST}.")
    return problems


def _check_golden(
    export: Export, bundles: list[Bundle], progress: Progress
) -> tuple[dict[str, float], list[str]]:
    from ..parity.probe import Probe, distances_to_golden

    places: dict[str | None, Path] = {None: export.path / MANIFEST} | {
        bundle.domain: bundle.path / MEMORY_FILE for bundle in bundles
    }
    recorded: dict[str | None, Golden] = {None: export.manifest.golden}
    recorded |= {bundle.domain: bundle.info.golden for bundle in bundles if bundle.info.golden is not None}
    expected = {name: logits.model_dump() for name, logits in recorded.items()}
    passes = len({tuple(values["tokens"]) for values in expected.values()})
    step = StepCounter(progress, "golden logits", passes * backbone_spec(export).num_layers)
    distances = distances_to_golden(Probe(export.backbone, bundles, layer_done=step), expected)
    by_condition = {name or "none": value for name, value in distances.items()}
    limits = {name: _golden_limit(values) for name, values in recorded.items()}
    problems = [
        f"{places[name]}: golden logits of memory {name or 'none'} differ by {value:.3g} (limit "
        f"{limits[name]:.3g})."
        for name, value in distances.items()
        if not value <= limits[name]
    ]
    return by_condition, problems


def _golden_limit(golden: Golden) -> float:
    """The largest difference allowed from the recorded logits, which are rounded to nine decimals."""
    largest: float = max(1.0, *(abs(value) for value in golden.logits))
    return largest * (TOLERANCE if golden.dtype == "float64" else OLD_TOLERANCE)
