"""The graph of a backbone: transformers' own exporter traces it, and the names are those that other software
knows.

Legend: B batch, T new tokens, S tokens in the cache.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parameters import free_axis, sample_of, state_of, use_lora

if TYPE_CHECKING:
    from onnx_ir import Model, Value

ATTENDED, BATCH, NEW, PAST = "past + new tokens", "batch", "new tokens", "past tokens"
INLINE_BYTES = 1 << 26
"""Weights of up to so many bytes stay in the file of the graph; protobuf ends at 2 GB."""
CACHE = re.compile(r"(?:(?:in|out)put\.)?(?:cache|past_key_values)\.layers\.(\d+)\.(key|value)s")
PREFIX = "memory."
ROWS, TOKENS, CACHED = 2, 3, 5
"""Of the sample: no two alike, none 0 or 1."""


def trace(backbone: Path, shapes: Mapping[str, Sequence[int]]) -> Model:
    """The graph of a checkpoint in float32.

    Its inputs are `input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key` and `.value`, and
    those of memories; its outputs `logits`, `present.N.key` and `.value`.

    Args:
        backbone: the folder of the checkpoint.
        shapes: the inputs of memories, with the shapes of their defaults.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    from ...model.kv_attention import use_koffkit_attention
    from ...model.neuron_memory import use_neuron_memory
    from ...model.per_call import for_this_call

    with _silence():
        model = _load(backbone)
    use_koffkit_attention(model)
    use_neuron_memory(model)
    use_lora(model, shapes)
    inner, sample = model.forward, _sample(model)

    def forward(memory: Any = None, **given: Any) -> Any:
        with for_this_call(state_of(model, memory or {})):
            return inner(**given)

    model.forward = forward
    config = OnnxConfig(
        dynamic=True, optimize=False, dynamic_shapes=_free_axes(sample, shapes)
    )  # optimised, weights lose their names
    if shapes:
        sample["memory"] = sample_of(shapes)
    with _silence():
        made: Any = OnnxExporter().export(model, sample, config)
    graph: Model = made.program
    _rename(graph)
    _defaults(graph, shapes)
    return graph


def save(graph: Model, path: Path) -> None:
    """Write a graph; large weights go into a file beside it, `NAME.data`."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    onnx_ir.save(graph, path, external_data=f"{path.name}.data" if size > INLINE_BYTES else None)


def _load(backbone: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from ... import sliced  # noqa: F401  # instead of running the code that lies in the folder

    return AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()


def _sample(model: Any) -> dict[str, Any]:
    """A few tokens after a cache, one row padded: without padding there is no mask in the graph."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()  # windows are a matter of masks: every layer keeps the whole text
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        heads = attention.k_proj.out_features
        key = getattr(attention, "key_channels", attention.head_dim)
        value = getattr(attention, "value_channels", attention.head_dim)
        heads //= key
        cache.update(torch.zeros(ROWS, heads, CACHED, key), torch.zeros(ROWS, heads, CACHED, value), index)
    mask = torch.ones(ROWS, CACHED + TOKENS, dtype=torch.long)
    mask[0, :2] = 0
    places = (mask.cumsum(-1) - 1)[:, CACHED:]
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places, name: cache}


def _free_axes(sample: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Which axes of which inputs have any length."""
    from torch.export import Dim

    both = {0: Dim.AUTO, 1: Dim.AUTO}
    axes: dict[str, Any] = {}
    for name, value in sample.items():
        cache = 2 * len(value.layers) if hasattr(value, "layers") else 0
        axes[name] = [{0: Dim.AUTO, 2: Dim.AUTO}] * cache if cache else both
    if shapes:
        axes["memory"] = {name: {free_axis(name): Dim.AUTO} for name in shapes}
    return axes


@contextmanager
def _silence() -> Iterator[None]:
    """The tracer prints its steps, and warns of its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _rename(graph: Model) -> None:
    """Usual names for inputs, outputs and their axes, and nothing about the machine that traced it."""
    for kind, values in (("past_key_values", graph.graph.inputs), ("present", graph.graph.outputs)):
        for value in values:
            name = str(value.name)
            found = CACHE.fullmatch(name)
            value.name = f"{kind}.{found[1]}.{found[2]}" if found else name.removeprefix(PREFIX)
    ends = {id(value) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    for node in graph.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in ends:
                value.shape = None  # those of the sample would contradict memories of other lengths
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.metadata_props.clear()
        _name_axes(value)
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()


def _name_axes(value: Value) -> None:
    name = str(value.name)
    if name.startswith("past_key_values."):
        names = {0: BATCH, 2: PAST}
    elif name.startswith("present."):
        names = {0: BATCH, 2: ATTENDED}
    elif name in ("input_ids", "position_ids", "logits"):
        names = {0: BATCH, 1: NEW}
    elif name == "attention_mask":
        names = {0: BATCH, 1: ATTENDED}
    else:
        module = name.rpartition(".")[0]
        names = {free_axis(name): f"{module}: any"}
    assert value.shape is not None
    for axis, own in names.items():
        value.shape[axis] = own


def _defaults(graph: Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Nothing, for every input of memories."""
    import numpy as np
    import onnx_ir

    for value in graph.graph.inputs:
        if value.name in shapes:
            value.const_value = onnx_ir.tensor(
                np.zeros(shapes[value.name], dtype=np.float32), name=value.name
            )
            graph.graph.register_initializer(value)
