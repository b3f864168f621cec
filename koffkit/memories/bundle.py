"""Writing one domain's memory as a standalone bundle for the sliced backbone: from a run, at export or later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch import Architecture, Shape
from ..artefact import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BACKBONE_OF_BUNDLE,
    CARD,
    FORMAT,
    KV_MEMORY,
    MEMORIES,
    MEMORY_FILE,
    ROUTER_COLUMN,
    file_entry,
    open_bundle,
)
from ..errors import IntegrityError
from ..files import write_atomically, write_json
from ..slicing import adapter_slices, kv_memory_keeps, take, take_kv, zero_rows
from ..structures import Masks


class MemoryCuts:
    """What stays of the memories of one backbone, tensor by tensor."""

    def __init__(self, arch: Architecture, shape: Shape, masks: Masks) -> None:
        self._adapter, self._zeros = adapter_slices(arch, shape, masks), zero_rows(arch, shape, masks)
        self._kv = kv_memory_keeps(arch, shape, masks)

    def adapter(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name in self._zeros:
            value = value.copy()
            value[self._zeros[name]] = 0
        return take(value, self._adapter.get(name))

    def kv(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return take_kv(value, self._kv.get(name))


def write_bundle(
    source: Path,
    target: Path,
    domain: str,
    cuts: MemoryCuts | None,
    backbone: str,
    figures: Mapping[str, Any],
    state: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Slice the memory in the run folder `source` into the bundle `target`.

    Args:
        cuts: what stays of it; None: it was learned at the widths of the backbone.
        backbone: the digest of the backbone that it is for.
        figures: of this domain, from `evaluate`.
        more: entries of `memory.json` beside those of every bundle. A router column that lies in `target` already becomes part of it.
    """
    memory = state["recipe"]["memory"]
    parameters: dict[str, int] = {}
    files = []
    if memory["lora"] is not None:
        parameters["lora"] = _slice_file(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, cuts.adapter if cuts else _whole)
        config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        write_json(target / ADAPTER_CONFIG, config | {"base_model_name_or_path": BACKBONE_OF_BUNDLE})
        files += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if memory["kv"] is not None:
        parameters["kv"] = _slice_file(source / KV_MEMORY, target / KV_MEMORY, cuts.kv if cuts else _whole)
        files.append(KV_MEMORY)
    if (target / ROUTER_COLUMN).is_file():
        files.append(ROUTER_COLUMN)
    info = {
        "koffkit": FORMAT,
        "domain": domain,
        "backbone_digest": backbone,
        "layers": state["memory_layers"],
        "lora": memory["lora"],
        "kv": memory["kv"],
        "parameters": sum(parameters.values()),
        "parameters_by_half": parameters,
        "figures": figures,
        "files": {name: file_entry(target / name) for name in files},
    }
    write_json(target / MEMORY_FILE, info | dict(more or {}))


def _whole(name: str, value: NDArray[Any]) -> NDArray[Any]:
    return value


def _slice_file(source: Path, target: Path, cut: Callable[[str, NDArray[Any]], NDArray[Any]]) -> int:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    try:
        tensors = load_file(source)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{source}: cannot be read ({error}); resume the run to write it again.") from None
    sliced = {name: np.ascontiguousarray(cut(name, value)) for name, value in tensors.items()}
    write_atomically(target, save(sliced, metadata={"format": "pt"}))
    return sum(value.size for value in sliced.values())


def bundle_summary(path: Path) -> dict[str, Any]:
    """What `koffkit.json` says of a bundle."""
    bundle = open_bundle(path)
    return {"path": f"{MEMORIES}/{path.name}", "parameters": bundle.info["parameters"], "bytes": bundle.bytes}


def is_packed(info: Mapping[str, Any]) -> bool:
    """Whether a bundle's weights are koffkit's own packed integers, which no other software reads."""
    return str(info.get("dtype", "float32")).startswith("int")


def record_golden(path: Path, backbone: Path) -> None:
    """Add the bundle's golden logits on `backbone`, read back from its files, to its `memory.json`."""
    from ..runtime.probe import Probe, golden, probe_tokens

    bundle = open_bundle(path)
    probe = Probe(backbone, [bundle])
    tokens = probe_tokens(probe.vocabulary)
    found = golden(probe, probe.hidden(tokens, [bundle.domain]))[0]
    write_json(path / MEMORY_FILE, dict(bundle.info) | {"golden": {"tokens": tokens, **found}})


def write_bundle_card(path: Path, export: str) -> None:
    """A README for a bundle of the export with the name `export`."""
    write_atomically(path / CARD, _card(open_bundle(path).info, export))


def _card(info: Mapping[str, Any], export: str) -> str:
    halves = ", ".join(f"{half} {count:,}" for half, count in info["parameters_by_half"].items())
    packed = is_packed(info)
    adapter = "" if info["lora"] is None or packed else f"""
The LoRA half is a stock PEFT adapter for the sliced backbone:
```python
from peft import PeftModel
model = PeftModel.from_pretrained(backbone, "memories/{info["domain"]}")
```
"""  # fmt: skip
    kv = "" if info["kv"] is None or packed else """
The KV half (`kv_memory.safetensors`) holds `layers.{i}.key` and `layers.{i}.value`, [kv_heads, memory tokens, head_dim], keys before
rotation. koffkit attaches it; a stock cache can be prefilled with it when every layer has one (rotate the keys by the position of the
first text token).
"""  # fmt: skip
    small = "" if not packed else """
Weights are packed integers with float16 scales (`NAME.scale` beside `NAME`), which only koffkit reads. Where PEFT must load the LoRA half,
compact the memory with `--dtype float16` instead.
"""  # fmt: skip
    routing = "" if "routing" not in info else """
`router_column.safetensors` is what the router of that export learned of this domain; beside another router it is left out.
"""  # fmt: skip
    return f"""# {export}: memory of domain {info["domain"]}

{info["parameters"]:,} parameters ({halves}) in layers {info["layers"][0]} to {info["layers"][-1]}, for backbone
`{info["backbone_digest"]}` only; koffkit refuses any other. Standalone: copy this folder next to any copy of that backbone.
{adapter}{kv}{small}{routing}"""
