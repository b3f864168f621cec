"""An export in OpenVINO: logits of the IR, and what GenAI writes.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...masks.slicing import ADAPTER_PREFIX
from .convert import IR, matmuls
from .runtime import EXACT, load_openvino

Adapter = Mapping[str, NDArray[np.float32]]
"""A and B by the names that the file has."""


class Exported:
    """The IR on a CPU in float32, with inputs for an adapter where GenAI would add it.

    Args:
        folder: of the IR.
        adapters: all that will be attached.
    """

    def __init__(self, folder: Path, adapters: Sequence[Adapter]) -> None:
        core = load_openvino().Core()
        ir = core.read_model(folder / IR)
        named = {_module(name) for adapter in adapters for name in adapter}
        self._ranks = {name: _open(ir, name, node) for name, node in matmuls(ir).items() if name in named}
        ir.validate_nodes_and_infer_types()
        self._request = core.compile_model(ir, "CPU", EXACT).create_infer_request()

    def logits(self, tokens: Sequence[int], adapter: Adapter | None) -> NDArray[np.float32]:
        """[T, V] of one text.

        Args:
            tokens: ids, T of them.
            adapter: what is attached; None: nothing.
        """
        self._request.reset_state()
        count = len(tokens)
        inputs: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for module, (width_in, width_out) in self._ranks.items():
            a, b = (f"{ADAPTER_PREFIX}{module}.lora_{half}.weight" for half in "AB")
            there = adapter is not None and a in adapter
            inputs[a] = adapter[a] if there else np.zeros((1, width_in), np.float32)  # type: ignore[index]
            inputs[b] = adapter[b] if there else np.zeros((width_out, 1), np.float32)  # type: ignore[index]
        found: NDArray[np.float32] = np.array(self._request.infer(inputs)["logits"][0])
        return found


class Pipeline:
    """GenAI's pipeline with every memory at hand.

    Args:
        folder: of the IR.
        adapters: the files of the memories by name.
    """

    def __init__(self, folder: Path, adapters: Mapping[str, Path]) -> None:
        load_openvino()
        import openvino_genai as genai

        self._adapters = {name: genai.Adapter(path) for name, path in adapters.items()}
        more = {"adapters": genai.AdapterConfig(list(self._adapters.values()))} if adapters else {}
        self._pipeline = genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND="SDPA", **EXACT, **more)

    def greedy(self, tokens: Sequence[int], name: str | None, count: int) -> tuple[list[int], float]:
        """The `count` ids that follow, and the logarithm of their probability.

        Args:
            tokens: ids of the prompt.
            name: of the memory; None: the backbone alone.
            count: how many to write, wherever the text would end.
        """
        import openvino_genai as genai

        config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False, logprobs=1)
        attached = [] if name is None else [self._adapters[name]]
        more = {"adapters": genai.AdapterConfig(attached)} if self._adapters else {}
        prompt = load_openvino().Tensor(np.array([tokens], np.int64))
        found = self._pipeline.generate(prompt, config, **more)
        return list(found.tokens[0]), float(found.scores[0])


def _module(name: str) -> str:
    return name.removeprefix(ADAPTER_PREFIX).rpartition(".lora_")[0]


def _open(ir: Any, name: str, node: Any) -> tuple[int, int]:
    """Add B (A x) to a multiplication, with A and B as inputs; the widths of both sides."""
    from openvino import opset14 as op

    weight = node.input_value(1).get_partial_shape()
    out, width = int(weight[0].get_length()), int(weight[1].get_length())
    a = op.parameter([-1, width], np.float32)
    b = op.parameter([out, -1], np.float32)
    for parameter, half in ((a, "A"), (b, "B")):
        parameter.output(0).set_names({f"{ADAPTER_PREFIX}{name}.lora_{half}.weight"})
    consumers = list(node.output(0).get_target_inputs())
    low = op.matmul(op.matmul(node.input_value(0), a, False, True), b, False, True)
    total = op.add(node.output(0), low)
    for consumer in consumers:
        consumer.replace_source_output(total.output(0))
    ir.add_parameters([a, b])
    return width, out
