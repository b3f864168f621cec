"""What the report shows of an export: its manifest, the figures stored in it, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artefact.export import Export, open_export
from ..artefact.manifest import Manifest
from ..checkpoint.spec import ModelSpec
from ..method.budget import unit_parameters
from ..report.page.facts import Cut, PageFacts, Planned, Sizes
from .inspect import describe
from .report_of_run import python_lines, readable_time, stock_lines
from .verify import backbone_spec


def facts_of_export(path: Path) -> PageFacts:
    """Everything that the page shows of an export.

    Raises:
        IntegrityError: the export is damaged.
    """
    export, found = open_export(path), describe(path)
    manifest = export.manifest
    removed = manifest.removed
    return PageFacts(
        kind="export",
        title=manifest.name,
        about=_about(manifest, found),
        results=_present(manifest.results, found),
        sparsity=removed.global_sparsity,
        target=removed.target / manifest.base.parameters,
        base_parameters=manifest.base.parameters,
        removed_parameters=removed.parameters,
        structures=_structures(manifest, backbone_spec(export)),
        plan=[Planned(what="parity", planned=_tolerance(manifest), actual=_parity(manifest))],
        sizes=_sizes(export, found),
        loading=_loading(path.name, found),
    )


def _about(manifest: Manifest, found: Mapping[str, Any]) -> dict[str, str]:
    router = found["router"]
    return {
        "base": f"{manifest.base.public_name} ({manifest.base.architecture})",
        "format": manifest.format,
        "backbone": manifest.backbone.model_class,
        "memories": str(len(found["memories"])),
        "router": "none" if router is None else str(router["kind"]),
        "made": readable_time(manifest.created),
        "koffkit": manifest.versions.get("koffkit", "-"),
    }


def _present(results: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the run; of a memory that was added later, those in its bundle."""
    added = {
        name: memory["figures"]
        for name, memory in found["memories"].items()
        if name not in results.get("domains", {}) and "backbone" in memory.get("figures", {})
    }
    if not added:
        return results
    return {**results, "domains": {**results.get("domains", {}), **added}}


def _structures(manifest: Manifest, backbone: ModelSpec) -> list[Cut]:
    """Units that stay in every layer, of as many as there were. The manifest does not say how many that is;
    where a single structure was cut, the parameters that are gone do."""
    if len(manifest.kept) != 1:
        return []
    ((name, counts),) = manifest.kept.items()
    each = (
        unit_parameters(backbone, backbone.arch.structures[name]) if name in backbone.arch.structures else 0
    )
    if not each:
        return []
    total, rest = divmod(manifest.removed.parameters // each + sum(counts), len(counts))
    if rest or manifest.removed.parameters % each:
        return []
    return [Cut(place=name, layer=layer, kept=kept, total=total) for layer, kept in enumerate(counts)]


def _sizes(export: Export, found: Mapping[str, Any]) -> Sizes:
    net = found["net"]
    return Sizes(
        base=net["base"],
        backbone=net["backbone"],
        memories={bundle.domain: bundle.bytes for bundle in export.bundles()},
        break_even=net["break_even"],
        estimated=False,
    )


def _tolerance(manifest: Manifest) -> str:
    relative = " of the largest logit" if manifest.parity.max_logit else ""
    return f"masked and sliced differ by at most {manifest.parity.tolerance:g}{relative}"


def _parity(manifest: Manifest) -> str:
    worst = max(manifest.parity.max_abs, key=lambda name: manifest.parity.max_abs[name])
    return f"{manifest.parity.max_abs[worst]:.2g} (memory {worst}, {manifest.parity.tokens} tokens)"


def _loading(name: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    domain = next(iter(found["memories"]), None)
    memory = "" if domain is None else f" --memory {domain}"
    other = "\n".join(f"{software}: {what}" for software, what in found["loads_in"].items())
    return [
        ("On the command line", f'koffkit generate {name} --prompt "..."{memory}'),
        ("In Python", python_lines(name, domain)),
        ("In transformers alone", stock_lines(name)),
        ("What loads what", other),
    ]
