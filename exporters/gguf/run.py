"""llama-server on an export of this format, in a process of its own: what is wrong there cannot take the
exporter with it. Needs the package `xllamacpp`, which has llama-server inside.

    python -m koffkit.exporters.gguf.run EXPORT QUESTIONS ANSWERS

QUESTIONS, JSON: `tokens` of a prompt, `memories` (null: none), `suppress` (ids that are never chosen),
`new_tokens`, `top` (log-probabilities of each step). ANSWERS, JSON: of every memory `ids` and `top`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from . import ask

CACHES = {"f32": "GGML_TYPE_F32", "f16": "GGML_TYPE_F16"}


def parameters(export: Path, serving: dict[str, Any]) -> Any:
    """Those of the command in the export's README."""
    import xllamacpp

    found = xllamacpp.CommonParams()
    found.model.path = str(export / serving["model"])
    found.n_ctx, found.n_parallel, found.cache_ram_mib = min(serving["context"], 4096), 1, 0
    adapters = []
    for files in serving["memories"].values():
        if files.get("lora") is not None:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(export / files["lora"]), 0.0
            adapters.append(adapter)
    found.lora_adapters = adapters
    cache = getattr(xllamacpp.ggml_type, CACHES[serving["cache_type"]])
    found.cache_type_k = found.cache_type_v = cache
    found.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    found.slot_save_path = f"{export / 'memories'}{os.sep}"
    found.warmup = found.fit_params = False
    found.verbosity = 0
    return found


def main(export: Path, questions: Path, answers: Path) -> None:
    """Answer all questions."""
    import xllamacpp

    wanted = json.loads(questions.read_text(encoding="utf-8"))
    ask.HERE = export
    server = xllamacpp.Server(parameters(export, json.loads((export / "serving.json").read_text())))
    options = {
        "n_predict": wanted["new_tokens"],
        "temperature": 0,
        "n_probs": wanted["top"],
        "return_tokens": True,
        "logit_bias": [[index, False] for index in wanted["suppress"]],
    }
    found = []
    for memory in wanted["memories"]:
        told = ask.complete(server.listening_address, 0, memory or "none", wanted["tokens"], False, **options)
        steps = [step["top_logprobs"] for step in told["completion_probabilities"]]
        top = [[[one["id"], one["logprob"]] for one in step] for step in steps]
        found.append({"ids": told["tokens"], "top": top})
    answers.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
