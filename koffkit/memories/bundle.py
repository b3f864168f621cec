"""Writing one domain's memory from a run as a standalone bundle for the sliced backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from shutil import copyfileobj
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.bundle_info import BundleInfo, KVHalf, LoraHalf, NeuronHalf
from ..artefact.card import front_matter
from ..artefact.digests import file_entry
from ..artefact.manifest import Manifest
from ..artefact.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BACKBONE_OF_BUNDLE,
    CARD,
    FORMAT,
    KV_MEMORY,
    MEMORY_FILE,
    NEURONS,
    NEURONS_PACKED,
    ROUTER_COLUMN,
)
from ..artefact.parts import Golden
from ..checkpoint.files import read_config
from ..checkpoint.on_disk import TensorsOnDisk
from ..masks.memory_cuts import MemoryCuts
from ..progress import Progress, Silent, StepCounter
from ..report.verdict import verdict_of
from ..run.state import RunState
from ..storage.files import replacing_file, write_atomically, write_json
from ..storage.read_json import read_json
from ..storage.tensors_file import read_header, write_header

RESUME = "resume the run to write it again"
PARTS = (
    ADAPTER_WEIGHTS,
    ADAPTER_CONFIG,
    KV_MEMORY,
    NEURONS,
    ROUTER_COLUMN,
)  # files of a bundle, in the order listed


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
    base: str = BACKBONE_OF_BUNDLE,
) -> None:
    """Slice the memory of a run into the bundle `target`.

    Args:
        source: `memories/DOMAIN` of a run.
        target: an empty folder, or one that holds the memory's router column only.
        domain: its name. backbone: the digest of the backbone.
        cuts: the rows and columns that stay; None: it has the widths of the backbone.
        figures: from stage `evaluate`.
        state: of the run.
        extra: fields of `BundleInfo`.
        base: where the LoRA half says that the backbone is.

    Raises:
        IntegrityError: a file of the run is missing or damaged.
    """
    memory = state.recipe["memory"]
    parameters, neurons, layers = {}, None, state.memory_layers
    if memory["lora"] is not None:
        parameters["lora"] = _write_adapter(source, target, cuts, base)
    if memory["kv"] is not None:
        parameters["kv"] = _slice_file(source / KV_MEMORY, target / KV_MEMORY, cuts.kv if cuts else _whole)
    if memory.get("neurons") is not None:
        neurons, parameters["neurons"], places = _copy_neurons(source, target, state)
        layers = layers or places
    BundleInfo(
        koffkit=FORMAT,
        domain=domain,
        backbone_digest=backbone,
        layers=layers,
        lora=_half(LoraHalf, memory["lora"]),
        kv=_half(KVHalf, memory["kv"]),
        neurons=neurons,
        parameters=sum(parameters.values()),
        parameters_by_half=parameters,
        figures=dict(figures),
        files={name: file_entry(target / name) for name in PARTS if (target / name).is_file()},
        **dict(extra or {}),
    ).write(target / MEMORY_FILE)


def _write_adapter(source: Path, target: Path, cuts: MemoryCuts | None, base: str) -> int:
    """Slice the LoRA half; returns its number of parameters."""
    config = read_json(source / ADAPTER_CONFIG, remedy=RESUME)
    write_json(target / ADAPTER_CONFIG, config | {"base_model_name_or_path": base})
    return _slice_file(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, cuts.adapter if cuts else _whole)


def _copy_neurons(source: Path, target: Path, state: RunState) -> tuple[NeuronHalf, int, list[int]]:
    """Copy the restored neurons, which no mask cuts; also returns how many weights they have, and in which
    layers."""
    path = source / NEURONS
    header, _ = read_header(path, remedy=RESUME)
    with open(path, "rb") as original, replacing_file(target / NEURONS) as file:
        copyfileobj(original, file)
    counts = {
        int(name.split(".")[1]): info.shape[0] for name, info in header.items() if name.endswith(".neurons")
    }
    weights = sum(prod(info.shape) for name, info in header.items() if not name.endswith(".neurons"))
    settings = state.recipe["memory"]["neurons"]
    fitted = state.recipe["mask"].get("repair") == "least_squares"
    if state.backbone is not None:  # of a memory alone: where its text was enough
        fitted = fitted and state.repair is not None and bool(state.repair.repaired)
    half = NeuronHalf(
        count=sum(counts.values()), layout=settings["layout"], tuned=settings["tuned"], fitted=fitted
    )
    return half, weights, sorted(counts)


Half = TypeVar("Half", LoraHalf, KVHalf)


def _half(kind: type[Half], settings: Mapping[str, Any] | None) -> Half | None:
    """The settings of a half that `memory.json` keeps from the recipe."""
    if settings is None:
        return None
    return kind.model_validate({key: settings[key] for key in kind.model_fields if key in settings})


def _whole(name: str, value: NDArray[Any]) -> NDArray[Any]:
    return value


def _slice_file(source: Path, target: Path, cut: Callable[[str, NDArray[Any]], NDArray[Any]]) -> int:
    """Cut a file tensor by tensor, one at a time in memory; returns its number of parameters."""
    whole = TensorsOnDisk(source, remedy=RESUME, numpy=True)
    order = sorted(whole, key=lambda name: (-whole.infos[name].itemsize, name))  # as safetensors orders them
    shapes = {name: cut(name, whole[name].numpy()).shape for name in order}
    with replacing_file(target) as file:
        file.write(write_header({name: (whole.infos[name].dtype, shapes[name]) for name in order}))
        for name in order:
            file.write(np.ascontiguousarray(cut(name, whole[name].numpy())).data)
    return sum(map(prod, shapes.values()))


def record_golden(path: Path, backbone: Path, progress: Progress | None = None) -> None:
    """Compute a bundle's golden logits from its files, and write them into its `memory.json`.

    Args:
        path: the bundle.
        backbone: the folder of the backbone that it is for.
        progress: told of every layer; by default nobody is.
    """
    from ..parity.probe import Probe, golden

    bundle = open_bundle(path)
    layers = int(read_config(backbone)["num_hidden_layers"])
    step = StepCounter(progress or Silent(), "golden logits", layers)
    probe = Probe(backbone, [bundle], layer_done=step)
    tokens = probe.tokens()
    logits = golden(probe, probe.hidden(tokens, [bundle.domain]))[0]
    set_golden(bundle, Golden(tokens=tokens, **logits))


def set_golden(bundle: Bundle, logits: Golden) -> None:
    """Write a bundle's golden logits into its `memory.json`."""
    bundle.info.evolve(golden=logits).write(bundle.path / MEMORY_FILE)


def write_bundle_card(path: Path, manifest: Manifest) -> None:
    """A README for a bundle of an export."""
    info = open_bundle(path).info
    library = "peft" if info.lora is not None and not info.is_packed else "koffkit"
    header = front_matter(manifest.base, library, ["koffkit", "memory"], derived=False)
    write_atomically(path / CARD, header + _card(info, manifest.name))


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
    neurons = "" if info.neurons is None else _neurons_text(info.neurons, packed)
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
{adapter}{kv}{neurons}{small}{routing}{_verdict(info)}"""


def _neurons_text(neurons: NeuronHalf, packed: bool) -> str:
    kind = (
        "tuned" if neurons.tuned else "with columns of down fitted again" if neurons.fitted else "unchanged"
    )
    weights = kind if not packed else f"{kind} but for being packed"
    return f"""
{neurons.count:,} neurons of the base that the backbone lacks come back with it, {weights}
(`{NEURONS_PACKED if packed else NEURONS}`). koffkit adds their output to that of the MLPs; `koffkit export
--merge` makes them part of the weights.
"""


def _verdict(info: BundleInfo) -> str:
    """What this memory wins back, as far as it was measured."""
    known = None if info.routing is None else info.routing.to_json()
    verdict = verdict_of({"domains": {info.domain: info.figures}}, known)
    if not verdict.lines and not verdict.warnings:
        return ""
    when = "" if info.compacted is None else "\nMeasured before the memory was compacted.\n"
    return f"\n## What it wins back\n{when}\n{verdict.markdown()}"
