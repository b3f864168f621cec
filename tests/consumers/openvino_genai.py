"""OpenVINO GenAI: the pipeline of the export's own `example.py`, memories switched by request.

GenAI tells no probabilities of tokens that it does not choose, so they come from OpenVINO itself: a loop over
the same IR with its cache, and the memory's file added where GenAI would.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from program import run

PACKAGES = ["openvino>=2026.4", "openvino-genai>=2026.4", "safetensors"]
EXTRA = "openvino"
FORMAT = "openvino"
OPTIONS: dict[str, Any] = {}
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
LORA = "-lora"
PREFIX = "base_model.model."
IR = "backbone/openvino_model.xml"


def tensors_of(export: Path, name: str, *, lora: bool, kv: bool) -> dict[str, Any]:
    """What a memory's file holds of its halves."""
    from safetensors.numpy import load_file

    whole = load_file(export / "memories" / f"{name}.safetensors")
    return {key: value for key, value in whole.items() if (kv if ".memory_" in key else lora)}


def compiled(export: Path, adapter: dict[str, Any] | None) -> Any:
    """The model with an adapter as constants."""
    import openvino as ov
    from openvino import opset14 as op

    core = ov.Core()
    model = core.read_model(export / IR)
    for node in model.get_ordered_ops():
        name = PREFIX + node.get_friendly_name().removesuffix("/MatMul")
        if adapter and f"{name}.lora_A.weight" in adapter:
            a, b = (op.constant(adapter[f"{name}.lora_{half}.weight"]) for half in "AB")
            consumers = list(node.output(0).get_target_inputs())
            low = op.matmul(op.matmul(node.input_value(0), a, False, True), b, False, True)
            total = op.add(node.output(0), low)
            for consumer in consumers:
                consumer.replace_source_output(total.output(0))
    model.validate_nodes_and_infer_types()
    return core.compile_model(model, "CPU", FLOAT32).create_infer_request()


def by_step(export: Path, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, one at a time, and the largest log-probabilities of each step."""
    import numpy as np

    name = asked["memory"]
    adapter = None if name is None else tensors_of(export, name, lora=asked["lora"], kv=asked["kv"])
    request = compiled(export, adapter)
    new, ids, top = asked["prompt"], [], []
    past = 0
    for _ in range(wanted["new_tokens"]):
        inputs = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, past + len(new)), np.int64),
            "position_ids": np.arange(past, past + len(new), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = request.infer(inputs)["logits"][0, -1].astype(np.float64)
        past += len(new)
        logs = logits - logits.max()
        logs -= np.log(np.exp(logs).sum())
        order = np.argsort(-logs, kind="stable")[: wanted["top"]]
        top.append([[int(index), float(logs[index])] for index in order])
        logits[wanted["suppress"]] = -np.inf
        new = [int(logits.argmax())]
        ids += new
    return {"ids": ids, "top": top}


def suppressing(export: Path, ids: list[int], target: Path) -> Any:
    """The export's `example.py` as a module, of a copy whose model never chooses some ids, for which GenAI
    has no option, and which has the LoRA half of every memory as one more."""
    import numpy as np
    import openvino as ov
    from openvino import opset14 as op
    from safetensors.numpy import save_file

    shutil.copytree(export, target)
    for path in sorted(target.glob("memories/*")):
        save_file(tensors_of(export, path.stem, lora=True, kv=False), path.with_stem(path.stem + LORA))
    model = ov.Core().read_model(export / IR)
    result = model.output("logits").get_node()
    bias = np.zeros((1, 1, int(result.get_output_partial_shape(0)[2].get_length())), np.float32)
    bias[..., ids] = np.finfo(np.float32).min / 2
    result.input(0).replace_source_output(op.add(result.input_value(0), bias).output(0))
    ov.save_model(model, target / IR, compress_to_fp16=False)
    spec = spec_from_file_location("example", target / "example.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_pipeline(export: Any, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of GenAI."""
    import numpy as np
    import openvino as ov

    name = asked["memory"] or "none"
    prompt = ov.Tensor(np.array([asked["prompt"]], np.int64))
    found = export.write(
        prompt,
        name if asked["lora"] == asked["kv"] else name + LORA,
        max_new_tokens=wanted["new_tokens"],
        ignore_eos=True,
        do_sample=False,
    )
    return {"ids": list(found.tokens[0]), "top": []}


def main(export: Path, questions: Path, answers: Path) -> None:
    wanted = json.loads(questions.read_text())
    example = suppressing(export, wanted["suppress"], answers.parent / "suppressing")
    pipeline = example.Export(**FLOAT32)
    settings = {
        "GenAI": [by_pipeline(pipeline, asked, wanted) for asked in wanted["asked"]],
        "OpenVINO": [by_step(export, asked, wanted) for asked in wanted["asked"]],
    }
    versions = {name: version(name) for name in ("openvino", "openvino-genai")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where the name of this file hides GenAI
    run(main)
