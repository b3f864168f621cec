"""ONNX Runtime: the graph through the export's own `generate.py`, a memory as the adapter that ships, its
LoRA alone as the part of it that has this name; once token by token with a cache, once in a batch whose first
row is padded on the left.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from program import run

PACKAGES = ["onnxruntime", "tokenizers", "numpy"]
EXTRA = "onnx"
FORMAT = "onnx"
OPTIONS = {"layout": "genai"}  # the same with a file more, and one conversion for two consumers
OTHERWISE: dict[str, Any] = {}
PADDING = 3


def backbone_of(export: Path) -> Any:
    """The class of the export's `generate.py`, with its graph."""
    spec = spec_from_file_location("generate", export / "generate.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Backbone(export, threads=1)


def adapter_of(export: Path, asked: dict[str, Any], place: Path) -> Path | None:
    """The file of what is asked for: all of a memory, or its LoRA."""
    import onnxruntime

    if not (asked["lora"] or asked["kv"]):
        return None
    path = export / "memories" / f"{asked['memory']}.onnx_adapter"
    if asked["kv"]:
        return path
    whole = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    part = onnxruntime.AdapterFormat()
    part.set_adapter_version(1)
    part.set_model_version(1)
    part.set_parameters({name: value for name, value in whole.items() if ".lora_" in name})
    path = place / f"{asked['memory']}.onnx_adapter"
    part.export_adapter(str(path))
    return path


def told(logits: Any, wanted: dict[str, Any]) -> tuple[int, list[list[float]]]:
    """The token to write, and the largest log-probabilities."""
    logits = logits.astype(np.float64)
    values = logits - logits.max()
    values -= np.log(np.exp(values).sum())
    order = np.argsort(-values, kind="stable")[: wanted["top"]]
    logits[wanted["suppress"]] = -np.inf
    return int(logits.argmax()), [[int(index), float(values[index])] for index in order]


def alone(model: Any, prompt: list[int], wanted: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, with a cache."""
    found: dict[str, Any] = {"ids": [], "top": []}
    cache, new = model.empty(), prompt
    for _ in range(wanted["new_tokens"]):
        logits, cache = model.step(new, cache)
        token, top = told(logits[-1], wanted)
        found["ids"].append(token)
        found["top"].append(top)
        new = [token]
    return found


def padded(model: Any, prompt: list[int], wanted: dict[str, Any]) -> dict[str, Any]:
    """The same as the first row of two, behind padding; the other row has a longer prompt."""
    found: dict[str, Any] = {"ids": [], "top": []}
    new = np.array([[0] * PADDING + prompt, prompt[:PADDING] + prompt])
    mask = np.ones_like(new)
    mask[0, :PADDING] = 0
    cache = model.empty(rows=2)
    for _ in range(wanted["new_tokens"]):
        places = np.maximum(mask.cumsum(-1) - 1, 0)[:, -new.shape[1] :]
        feed = {"input_ids": new, "attention_mask": mask, "position_ids": places, **cache}
        results = model.session.run(model.outputs, feed, model.run_options)
        given = dict(zip(model.outputs, results, strict=True))
        cache = {name.replace("present", "past_key_values"): given[name] for name in given}
        logits = cache.pop("logits")
        token, top = told(logits[0, -1], wanted)
        found["ids"].append(token)
        found["top"].append(top)
        new = np.array([[token], [int(logits[1, -1].argmax())]])
        mask = np.concatenate([mask, np.ones_like(new)], axis=1)
    return found


def main(export: Path, questions: Path, answers: Path) -> None:
    wanted = json.loads(questions.read_text())
    model = backbone_of(export)
    settings: dict[str, list[Any]] = {"alone": [], "padded batch": []}
    with tempfile.TemporaryDirectory() as place:
        for asked in wanted["asked"]:
            model.attach(adapter_of(export, asked, Path(place)))
            settings["alone"].append(alone(model, asked["prompt"], wanted))
            settings["padded batch"].append(padded(model, asked["prompt"], wanted))
        model.attach(None)
    versions = {"onnxruntime": version("onnxruntime")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    run(main)
