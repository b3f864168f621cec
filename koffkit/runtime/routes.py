"""Which export formats carry an artefact, by what each exporter declares."""

from __future__ import annotations

from collections.abc import Sequence

from .. import plugins
from ..arch.widths import SLICED_LAYERS
from ..artefact.bundle import Bundle
from ..artefact.bundle_info import BundleInfo
from ..artefact.routes import Carries, Facts, has_window, kv_facts, width_facts
from ..checkpoint.spec import ModelSpec


def routes(spec: ModelSpec, family: str, bundles: Sequence[Bundle]) -> dict[str, str]:
    """For every installed format what it makes of this, or why it cannot carry it.

    Args:
        spec: the backbone.
        family: `model_type` of its base.
        bundles: its memories.
    """
    facts = facts_of(spec, family, bundles)
    found = {}
    for name in plugins.names(plugins.EXPORTERS):
        carries: Carries | None = getattr(plugins.load(plugins.EXPORTERS, name, "--format"), "carries", None)
        if carries is not None:
            obstacles = carries.obstacles(facts)
            found[name] = f"not: {'; also: '.join(obstacles)}" if obstacles else carries.what
    return found


def facts_of(spec: ModelSpec, family: str, bundles: Sequence[Bundle]) -> Facts:
    """What a backbone and its memories are like; arguments are those of `routes`."""
    infos = [bundle.info for bundle in bundles]
    own = SLICED_LAYERS in spec.config
    return Facts(
        family=family if own else str(spec.config["model_type"]),
        own_class=own,
        sliding=has_window(spec.config),
        ranks=frozenset(rank for info in infos for rank in ranks_of(info)),
        kv=kv_facts(len(spec.widths), [len(info.layers) for info in infos if info.kv is not None]),
        neurons=any(info.neurons is not None for info in infos),
        **width_facts(spec.widths, spec.shape),
    )


def ranks_of(info: BundleInfo) -> list[int]:
    """The LoRA ranks of a memory: one, or after compaction the smallest and the largest."""
    if info.lora is None:
        return []
    compacted = None if info.compacted is None else info.compacted.ranks
    return compacted or [info.lora.rank]
