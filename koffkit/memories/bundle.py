"""Writing one domain's memory as a standalone bundle for the sliced backbone: from a run, at export or
later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.bundle_info import BundleInfo, KVHalf, LoraHalf
from ..artefact.digests import file_entry
from ..artefact.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BACKBONE_OF_BUNDLE,
    CARD,
    FORMAT,
    KV_MEMORY,
    MEMORY_FILE,
    ROUTER_COLUMN,
)
from ..artefact.parts import Golden
from ..masks.memory_cuts import MemoryCuts
from ..run.state import RunState
from ..storage.files import write_atomically, write_json
from ..storage.read_json import read_json
from ..storage.tensors_file import read_arrays


def write_bundle(
    source: Path,
    target: Path,
    domain: str,
    cuts: MemoryCuts | None,
    backbone: str,
    figures: Mapping[str, Any],
    state: RunState,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Slice the memory in the run folder `source` into the bundle `target`.

    Args:
        source: `memories/DOMAIN` of a run.
        target: an empty folder. A router column that lies there already becomes part of the bundle.
        domain: whose memory it is.
        cuts: what stays of it; None: it was learned at the widths of the backbone.
        backbone: the digest of the backbone that it is for.
        figures: of this domain, from `evaluate`.
        state: of the run.
        extra: fields of `BundleInfo` beside those of every bundle.

    Raises:
        IntegrityError: a file of the run is missing or damaged.
    """
    memory = state.recipe["memory"]
    parameters: dict[str, int] = {}
    files = []
    if memory["lora"] is not None:
        parameters["lora"] = _slice_file(
            source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, cuts.adapter if cuts else _whole
        )
        config = read_json(source / ADAPTER_CONFIG, remedy="resume the run to write it again")
        write_json(target / ADAPTER_CONFIG, config | {"base_model_name_or_path": BACKBONE_OF_BUNDLE})
        files += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if memory["kv"] is not None:
        parameters["kv"] = _slice_file(source / KV_MEMORY, target / KV_MEMORY, cuts.kv if cuts else _whole)
        files.append(KV_MEMORY)
    if (target / ROUTER_COLUMN).is_file():
        files.append(ROUTER_COLUMN)
    info = BundleInfo(
        koffkit=FORMAT,
        domain=domain,
        backbone_digest=backbone,
        layers=state.memory_layers,
        lora=_half(LoraHalf, memory["lora"]),
        kv=_half(KVHalf, memory["kv"]),
        parameters=sum(parameters.values()),
        parameters_by_half=parameters,
        figures=dict(figures),
        files={name: file_entry(target / name) for name in files},
        **dict(extra or {}),
    )
    info.write(target / MEMORY_FILE)


Half = TypeVar("Half", LoraHalf, KVHalf)


def _half(kind: type[Half], settings: Mapping[str, Any] | None) -> Half | None:
    """What `memory.json` keeps of the recipe's settings for a half."""
    if settings is None:
        return None
    return kind.model_validate({key: settings[key] for key in kind.model_fields if key in settings})


def _whole(name: str, value: NDArray[Any]) -> NDArray[Any]:
    return value


def _slice_file(source: Path, target: Path, cut: Callable[[str, NDArray[Any]], NDArray[Any]]) -> int:
    from safetensors.numpy import save

    tensors, _ = read_arrays(source, remedy="resume the run to write it again")
    sliced = {name: np.ascontiguousarray(cut(name, value)) for name, value in tensors.items()}
    write_atomically(target, save(sliced, metadata={"format": "pt"}))
    return sum(value.size for value in sliced.values())


def record_golden(path: Path, backbone: Path) -> None:
    """Add the bundle's golden logits on `backbone`, read back from its files, to its `memory.json`."""
    from ..parity.probe import Probe, golden, probe_tokens

    bundle = open_bundle(path)
    probe = Probe(backbone, [bundle])
    tokens = probe_tokens(probe.vocabulary)
    logits = golden(probe, probe.hidden(tokens, [bundle.domain]))[0]
    set_golden(bundle, Golden(tokens=tokens, **logits))


def set_golden(bundle: Bundle, logits: Golden) -> None:
    """Write a bundle's golden logits into its `memory.json`."""
    bundle.info.evolve(golden=logits).write(bundle.path / MEMORY_FILE)


def write_bundle_card(path: Path, export: str) -> None:
    """A README for a bundle of the export with the name `export`."""
    write_atomically(path / CARD, _card(open_bundle(path).info, export))


def _card(info: BundleInfo, export: str) -> str:
    halves = ", ".join(f"{half} {count:,}" for half, count in info.parameters_by_half.items())
    packed = info.is_packed
    adapter = (
        ""
        if info.lora is None or packed
        else f"""
The LoRA half is a stock PEFT adapter for the sliced backbone:
```python
from peft import PeftModel
model = PeftModel.from_pretrained(backbone, "memories/{info.domain}")
```
"""
    )
    kv = (
        ""
        if info.kv is None or packed
        else """
The KV half (`kv_memory.safetensors`) holds `layers.{i}.key` and `layers.{i}.value`, [kv_heads, memory tokens,
head_dim], keys before rotation. koffkit attaches it; a stock cache can be prefilled with it when every layer
has one (rotate the keys by the position of the first text token).
"""
    )
    small = (
        ""
        if not packed
        else """
Weights are packed integers with float16 scales (`NAME.scale` beside `NAME`), which only koffkit reads. Where
PEFT must load the LoRA half, compact the memory with `--dtype float16` instead.
"""
    )
    routing = (
        ""
        if info.routing is None
        else """
`router_column.safetensors` is what the router of that export learned of this domain; beside another router it
is left out.
"""
    )
    return f"""# {export}: memory of domain {info.domain}

{info.parameters:,} parameters ({halves}) in layers {info.layers[0]} to {info.layers[-1]}, for
backbone `{info.backbone_digest}` only; koffkit refuses any other.
Standalone: copy this folder next to any copy of that backbone.
{adapter}{kv}{small}{routing}"""
