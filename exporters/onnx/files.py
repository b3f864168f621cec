"""The files of the format: graph, adapters, tokenizer and configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...artefact.bundle import Bundle
from ...artefact.names import BACKBONE, MEMORIES
from ...checkpoint.files import CONFIG
from ...checkpoint.spec import ModelSpec
from ...storage.files import write_json
from ..toolkit.backbone import copy_tokenizer
from .genai import write_genai_config
from .parameters import parameters_of, shapes_of
from .plan import OnnxPlan

if TYPE_CHECKING:
    from torch import Tensor

GRAPH = "backbone.onnx"
VERSION = 1
"""Of adapters and graph, which ONNX Runtime stores and does not compare."""


def graph_path(export: Path) -> Path:
    """The file of the graph."""
    return export / BACKBONE / GRAPH


def graph_bytes(export: Path) -> int:
    """Size of the graph with its weights."""
    return sum(path.stat().st_size for path in (export / BACKBONE).glob(f"{GRAPH}*"))


def adapter_path(export: Path, domain: str) -> Path:
    """The file of a memory."""
    return export / MEMORIES / f"{domain}.onnx_adapter"


def write_files(export: Path, checkpoint: Path, bundles: Sequence[Bundle], plan: OnnxPlan) -> None:
    """Write everything that is made from the checkpoint.

    Args:
        export: the folder to write to.
        checkpoint: the backbone, which has passed the parity gate.
        bundles: its memories.
        plan: what to write.

    Raises:
        IntegrityError: a file of a bundle is damaged.
    """
    from .graph import save, trace

    spec = ModelSpec.open(checkpoint)
    memories = {bundle.domain: parameters_of(bundle, spec) for bundle in bundles}
    graph_path(export).parent.mkdir()
    save(trace(checkpoint, shapes_of(list(memories.values()))), graph_path(export))
    if memories:
        (export / MEMORIES).mkdir()
    for domain, parameters in memories.items():
        _write_adapter(adapter_path(export, domain), parameters)
    copy_tokenizer(checkpoint, export / BACKBONE)
    config = {key: value for key, value in spec.config.items() if key != "auto_map"}  # its code stays behind
    write_json(export / BACKBONE / CONFIG, config)
    if plan.options.layout == "genai":
        write_genai_config(export / BACKBONE, spec, plan.run.spec.arch.model_type)


def _write_adapter(path: Path, parameters: Mapping[str, Tensor]) -> None:
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(VERSION)
    adapter.set_model_version(VERSION)
    values = {name: value.numpy() for name, value in parameters.items()}
    adapter.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    )
    adapter.export_adapter(str(path))
