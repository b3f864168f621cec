"""Places for KV memories in the IR, filled by the LoRA adapters that GenAI switches.

GenAI changes a model at run time in one way: it adds B (A x) to the multiplications that an adapter names.
So a KV memory comes in as a multiplication by zeros whose input is the number 1: with A = 1, its B is the
memory, one column. Where no adapter fills it, the memory's columns of the attention mask stay closed.

Memory keys stand before the text's, not rotated, and the text's positions stay as they are: what attention
does in koffkit, in any choice of layers. GenAI's paged attention has no place for this and refuses the
model; with its other backend (`ATTENTION_BACKEND="SDPA"`, which it also falls back to) it runs.

Legend: B batch, N query heads, K KV heads, P memory tokens, H head dim, T tokens that are attended to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ...arch.widths import LayerWidths
from ...errors import IntegrityError
from .convert import SUFFIX
from .runtime import versions

PRESENT = "koffkit.memory_present"
"""Which memory tokens there are: P numbers, 1 or 0."""
CLOSED = float(np.finfo(np.float32).min)


def place(layer: int, half: str) -> str:
    """The name of the place of a layer's memory keys or values, K * P * H numbers.

    Args:
        layer: counted from 0.
        half: `key` or `value`.
    """
    return f"koffkit.layers.{layer}.memory_{half}"


def add_places(ir: Any, layers: Collection[int], widths: Sequence[LayerWidths], tokens: int) -> None:
    """Give attention a place for a KV memory.

    Args:
        ir: the model.
        layers: which have memory.
        widths: of every layer.
        tokens: P of the largest memory.

    Raises:
        IntegrityError: the attention of a layer is not found.
    """
    from openvino import opset14 as op

    attention = _attention(ir)
    if not set(layers) <= attention.keys():
        raise IntegrityError(
            f"--format openvino: attention is found in layers {sorted(attention)} of the converted model, "
            f"the KV memories are in {sorted(layers)}; nothing was published. Please report this with these "
            f"versions: {versions()}."
        )
    present = op.greater(op.reshape(_place(PRESENT, tokens), _ints(1, 1, 1, tokens), False), np.float32(0.5))
    for layer in sorted(layers):
        node, own = attention[layer], widths[layer]
        shape = op.shape_of(node.input_value(0), output_type="i64")  # B, N, queries, H
        for port, half, width in ((1, "key", own.key_channels), (2, "value", own.value_channels)):
            size = (own.kv_heads, tokens, width)
            memory = op.reshape(_place(place(layer, half), int(np.prod(size))), _ints(1, *size), False)
            memory = _repeated(memory, shape, size)
            node.input(port).replace_source_output(op.concat([memory, node.input_value(port)], 2).output(0))
        node.input(3).replace_source_output(_wider(node.input_value(3), present, tokens).output(0))
    ir.validate_nodes_and_infer_types()


def _attention(ir: Any) -> dict[int, Any]:
    """The attention of every layer: in the order of the computation, which is that of the layers."""
    found = [node for node in ir.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    by_layer = {_layer_of(node): node for node in found if node.get_input_size() > 3}
    return {layer: node for layer, node in by_layer.items() if layer is not None}


def _layer_of(node: Any) -> int | None:
    """The layer whose cache an attention reads: up from its keys to the state that they come from."""
    output = node.input_value(1)
    for _ in range(12):
        above = output.get_node()
        if above.get_type_name() == "ReadValue":
            names = [name for name in above.output(0).get_names() if ".layers." in name]
            return int(names[0].split(".layers.")[1].split(".")[0]) if names else None
        if above.get_input_size() == 0:
            return None
        output = above.input_value(0)
    return None


def _ints(*values: int) -> Any:
    from openvino import opset14 as op

    return op.constant(np.array(values, dtype=np.int64))


def _place(name: str, size: int) -> Any:
    """Zeros [1, size] that an adapter changes."""
    from openvino import opset14 as op

    zeros = op.broadcast(op.constant(np.float32(0)), _ints(size, 1))
    node = op.matmul(op.constant(np.ones((1, 1), np.float32)), zeros, False, True)
    node.set_friendly_name(name + SUFFIX)
    return node


def _repeated(memory: Any, shape: Any, size: tuple[int, int, int]) -> Any:
    """[1, K, P, H] for every row and every query head: [B, N, P, H]."""
    from openvino import opset14 as op

    heads, tokens, width = size
    zero = op.constant(np.int64(0))
    batch, queries = (op.gather(shape, _ints(index), zero) for index in (0, 1))
    group = op.divide(queries, _ints(heads))
    wide = op.broadcast(
        op.reshape(memory, _ints(1, heads, 1, tokens, width), False),
        op.concat([batch, _ints(heads), group, _ints(tokens, width)], 0),
    )
    return op.reshape(wide, op.concat([batch, queries, _ints(tokens, width)], 0), False)


def _wider(mask: Any, present: Any, tokens: int) -> Any:
    """The attention mask with columns for the memory before those of the text."""
    from openvino import opset14 as op

    leading = op.gather(op.shape_of(mask, output_type="i64"), _ints(0, 1, 2), op.constant(np.int64(0)))
    opened: Any = present
    if mask.get_element_type().is_real():
        opened = op.select(present, np.float32(0), np.float32(CLOSED))
        opened = op.convert(opened, mask.get_element_type().to_string())
    return op.concat([op.broadcast(opened, op.concat([leading, _ints(tokens)], 0)), mask], 3)
