"""onnxruntime-genai: the folder of layout `genai`, every adapter loaded once and switched by name; the LoRA
alone as in `onnx_runtime.py`."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx_runtime import adapter_of, told
from program import run

PACKAGES = ["onnxruntime-genai", "numpy"]
EXTRA = "onnx"
FORMAT = "onnx"
OPTIONS = {"layout": "genai"}


def answer(model: Any, adapters: Any, name: str | None, prompt: list[int], wanted: dict[str, Any]) -> Any:
    """Greedy tokens and the largest log-probabilities of each step."""
    import onnxruntime_genai

    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + wanted["new_tokens"])
    generator = onnxruntime_genai.Generator(model, params)
    if name is not None:
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    tops = []
    while not generator.is_done():
        logits = np.array(generator.get_logits(), dtype=np.float32)
        tops.append(told(logits.reshape(-1, logits.shape[-1])[-1].copy(), wanted)[1])
        logits[..., wanted["suppress"]] = -np.inf
        generator.set_logits(logits)
        generator.generate_next_token()
    ids = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    return {"ids": ids, "top": tops}


def main(export: Path, questions: Path, answers: Path) -> None:
    import onnxruntime_genai

    wanted = json.loads(questions.read_text())
    model = onnxruntime_genai.Model(str(export / "backbone"))
    adapters, names, found = onnxruntime_genai.Adapters(model), [], []
    with tempfile.TemporaryDirectory() as place:
        for asked in wanted["asked"]:
            path = adapter_of(export, asked, Path(place))
            name = None if path is None else f"{asked['memory']} {asked['kv']}"
            if name is not None and name not in names:
                adapters.load(str(path), name)
                names.append(name)
            found.append(answer(model, adapters, name, asked["prompt"], wanted))
    versions = {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")}
    answers.write_text(json.dumps({"versions": versions, "settings": {"alone": found}}))


if __name__ == "__main__":
    run(main)
