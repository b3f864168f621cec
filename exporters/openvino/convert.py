"""From a sliced checkpoint to OpenVINO's intermediate representation (IR), by transformers' own exporter.

GenAI finds the places of a LoRA adapter by name, so every linear module's multiplication gets the name that
the module has in the checkpoint.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from ...errors import IntegrityError
from .runtime import load_openvino, versions

IR = "openvino_model.xml"
SUFFIX = "/MatMul"
"""After a module's name in the name of its multiplication."""
PAST, NEW = 3, 2
"""Tokens of the example that is traced: in the cache, and new. Both become free."""
GROUP = 128
"""Weights that share one scale in int4, where the rows are whole groups; nncf's own default."""


def to_ir(checkpoint: Path) -> Any:
    """The stateful model with inputs `input_ids`, `attention_mask`, `position_ids` and `beam_idx`, as GenAI
    runs it, in the type that the weights are stored in.

    Args:
        checkpoint: a folder that transformers loads.

    Raises:
        IntegrityError: a module cannot be found again in what was converted.
    """
    load_openvino()
    from torch import nn
    from transformers import AutoModelForCausalLM

    from ... import sliced  # noqa: F401  # instead of running the code that lies in the folder

    with _silent():
        from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
        model.config.use_cache = True
        sample, shapes = _example(model)
        config = OpenVINOConfig(dynamic=True, dynamic_shapes=shapes)
        ir = OpenVINOExporter().export(model, sample, config).program
    head = model.get_output_embeddings()  # a tied one has lost its name, and no memory adapts it
    linear = (pair for pair in model.named_modules() if isinstance(pair[1], nn.Linear))
    _name_modules(ir, [name for name, module in linear if module is not head])
    return ir


def compress(ir: Any, weights: str) -> Any:
    """Store matrices in int8 or int4, without data; what int4 would hurt most (embeddings, head) stays int8.

    Args:
        ir: the model.
        weights: `int8` or `int4`.
    """
    with _silent():
        import nncf

        nncf.set_log_level(logging.ERROR)
        modes = {"int8": nncf.CompressWeightsMode.INT8_ASYM, "int4": nncf.CompressWeightsMode.INT4_SYM}
        more: dict[str, Any] = {}
        if weights == "int4":
            more = {
                "group_size": GROUP,
                "advanced_parameters": nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            }
        return nncf.compress_weights(ir, mode=modes[weights], **more)


def write_ir(ir: Any, folder: Path) -> None:
    """Write `openvino_model.xml` and its `.bin`, no number rounded."""
    load_openvino().save_model(ir, folder / IR, compress_to_fp16=False)


def matmuls(ir: Any) -> dict[str, Any]:
    """The multiplications that have a module's name, by that name."""
    named = (node for node in ir.get_ordered_ops() if node.get_type_name() == "MatMul")
    pairs = ((node.get_friendly_name(), node) for node in named)
    return {name.removesuffix(SUFFIX): node for name, node in pairs if name.endswith(SUFFIX)}


def _example(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace, a cache that is in use among them and some padding, and which dimensions are free."""
    import torch
    from torch.export import Dim
    from transformers import DynamicCache

    cache = DynamicCache()  # of whole layers: a window is a matter of the mask
    with torch.no_grad():
        model(input_ids=torch.ones(2, PAST, dtype=torch.long), cache=cache)
    mask = torch.ones(2, PAST + NEW, dtype=torch.long)
    mask[0, 0] = 0  # without padding the input would be left out
    sample = {
        "input_ids": torch.ones(2, NEW, dtype=torch.long),
        "attention_mask": mask,
        "position_ids": torch.arange(PAST, PAST + NEW).expand(2, -1).contiguous(),
        "cache": cache,
    }
    free = Dim.AUTO
    shapes: dict[str, Any] = {name: {0: free, 1: free} for name in sample if name != "cache"}
    shapes["cache"] = [{0: free, 2: free} for _ in range(2 * model.config.num_hidden_layers)]
    return sample, shapes


def _name_modules(ir: Any, modules: list[str]) -> None:
    """Name the multiplications after their modules, which the names of their weights tell."""
    by_weight = {
        f"{name.replace('.', '_')}_{kind}_0:0": name
        for name in modules
        for kind in ("weight", "_16bit_weight")
    }
    found = set()
    for node in ir.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            for name in by_weight.keys() & set(_weight_names(node)):
                node.set_friendly_name(by_weight[name] + SUFFIX)
                found.add(by_weight[name])
    if lost := sorted(set(modules) - found):
        raise IntegrityError(
            f"--format openvino: {lost[0]} (of {len(lost)}) is not found again in the converted model; "
            f"nothing was published. Please report this with these versions: {versions()}."
        )


def _weight_names(node: Any) -> Iterator[str]:
    """Names of the tensors that are a multiplication's weight, before and after it is widened."""
    output = node.input_value(1)
    yield from output.get_names()
    while output.get_node().get_type_name() == "Convert":
        output = output.get_node().input_value(0)
        yield from output.get_names()


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the converters tell about themselves."""
    from transformers import logging as own

    before = own.get_verbosity()
    own.set_verbosity_error()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # nncf draws bars there
            warnings.simplefilter("ignore")
            yield
    finally:
        own.set_verbosity(before)
