"""Prefill and decoding of GGUF models in llama.cpp, for `speed.py`; run by a Python that has `xllamacpp`."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp


def server(path: str, context: int, rows: int) -> Any:
    """llama-server inside the wheel, on one thread."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = path, context * rows, rows
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(0)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(0)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def answer(url: str, prompt: list[int], decode: int) -> None:
    """One request, for a prompt that the server has not seen."""
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
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()


def seconds(one: Any, rows: int, prefill: int, decode: int, seed: int) -> float:
    """CPU time of this process, which the server is a part of, for `rows` requests at once."""
    prompts = [
        [1000 + (7919 * (index + 1) * (seed + 1) + 131 * row) % 40000 for index in range(prefill)]
        for row in range(rows)
    ]
    start = time.process_time()
    with ThreadPoolExecutor(rows) as pool:
        list(pool.map(lambda prompt: answer(one.listening_address, prompt, decode), prompts))
    return time.process_time() - start


def main(files: dict[str, str], rounds: int, prefill: dict[str, int], decode: int) -> None:
    """Print seconds by task and model, round by round."""
    found: dict[str, dict[str, list[float]]] = {}
    for rows, tokens in ((int(rows), tokens) for rows, tokens in prefill.items()):
        servers = {name: server(path, tokens + decode + 16, rows) for name, path in files.items()}
        both = [found.setdefault(f"{task}, batch {rows}", {}) for task in ("prefill", "decode")]
        for number in range(rounds + 1):
            for name, one in servers.items():
                read = seconds(one, rows, tokens, 1, number)
                begun = seconds(one, rows, 8, 1, number)
                whole = seconds(one, rows, 8, 1 + decode, number)
                if number:
                    both[0].setdefault(name, []).append(read)
                    both[1].setdefault(name, []).append(whole - begun)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
