"""Prefill and decoding of GGUF models in llama.cpp, for `speed.py`; run by a Python that has `xllamacpp`."""

from __future__ import annotations

import json
import sys
import urllib.request
from statistics import median
from typing import Any

import xllamacpp


def server(path: str, context: int) -> Any:
    """llama-server inside the wheel, on one thread."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = path, context, 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(0)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(0)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def timings(url: str, prefill: int, decode: int, seed: int) -> dict[str, float]:
    """The server's own clock, for a prompt it has not seen."""
    prompt = [1000 + (7919 * (index + 1) * (seed + 1)) % 40000 for index in range(prefill)]
    asked = {
        "prompt": prompt,
        "n_predict": decode,
        "cache_prompt": False,
        "ignore_eos": True,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, float] = json.load(answer)["timings"]
    return found


def main(files: dict[str, str], rounds: int, prefill: int, decode: int) -> None:
    servers = {name: server(path, prefill + decode + 8) for name, path in files.items()}
    seen: dict[str, dict[str, list[float]]] = {
        "prefill, batch 1": {name: [] for name in files},
        "decode, batch 1": {name: [] for name in files},
    }
    for number in range(rounds + 1):
        for name, one in servers.items():
            found = timings(one.listening_address, prefill, decode, number)
            if number:
                seen["prefill, batch 1"][name].append(found["prompt_ms"] / 1000)
                seen["decode, batch 1"][name].append(found["predicted_ms"] / 1000)
    medians = {task: {name: median(own) for name, own in values.items()} for task, values in seen.items()}
    sys.stdout.write(json.dumps(medians) + "\n")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
