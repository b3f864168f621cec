"""llama.cpp: llama-server, as the wheel `xllamacpp` has it inside, over HTTP.

The server gets the options of the command in the export's README, and what is asked goes through the
export's own `ask.py`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from program import run

PACKAGES = ["xllamacpp", "openai"]
PLACE = "openai_llama"
FORMAT = "gguf"
OPTIONS = {"type": "f32", "cache_type": "f32"}
SETTINGS = {"-fa off": False, "-fa on": True}
UNBOUNDED = ("-fa on",)  # rounds more by design
FLASH = {"on": 1, "off": 0}  # llama_flash_attn_type
TYPES = {"f32": 0, "f16": 1}  # ggml_type


def server_options(export: Path) -> list[str]:
    """The words of the command in the README after `llama-server`."""
    text = (export / "README.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if part.strip().startswith("llama-server"))
    return shlex.split(block.replace("\\\n", " "))[1:]


def params_of(export: Path, flash: bool) -> Any:
    """xllamacpp's parameters for a command of llama-server. An option that is not known here is a
    KeyError."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(TYPES["f32"])  # llama.cpp's own is f16
    words = server_options(export)
    adapters = []
    while words:
        option = words.pop(0)
        value = "" if option == "--lora-init-without-apply" else words.pop(0)
        if option == "-m":
            params.model.path = str(export / value)
        elif option == "-c":
            params.n_ctx = int(value)
        elif option == "-np":
            params.n_parallel = int(value)
        elif option == "--lora":
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(export / value), 0.0
            adapters.append(adapter)
        elif option == "--cache-ram":
            params.cache_ram_mib = int(value)
        elif option == "--slot-save-path":
            params.slot_save_path = f"{export / value}{os.sep}"
        elif option == "-ctk":
            params.cache_type_k = xllamacpp.ggml_type(TYPES[value])
        elif option == "-ctv":
            params.cache_type_v = xllamacpp.ggml_type(TYPES[value])
        elif option not in ("-fa", "--port", "--lora-init-without-apply"):
            raise KeyError(option)
    params.lora_adapters = adapters
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(FLASH["on" if flash else "off"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    return params


@contextmanager
def serving(export: Path, flash: bool) -> Iterator[str]:
    """llama-server; its address."""
    import xllamacpp

    server = xllamacpp.Server(params_of(export, flash))
    yield server.listening_address
    del server


def client(export: Path) -> Any:
    """The export's own `ask.py`, as a module."""
    spec = spec_from_file_location("ask", export / "ask.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(
    ask: Any, url: str, asked: dict[str, Any], questions: dict[str, Any], flash: bool
) -> dict[str, Any]:
    """Greedy tokens after one prompt, and the largest log-probabilities of each step."""
    options = {
        "n_predict": questions["new_tokens"],
        "temperature": 0,
        "n_probs": questions["top"],
        "return_tokens": True,
        "logit_bias": [[index, False] for index in questions["suppress"]],
    }
    found = ask.complete(
        url, 0, asked["memory"] or "none", asked["prompt"], flash, **options, **halves(asked)
    )
    steps = found["completion_probabilities"]
    return {
        "ids": found["tokens"],
        "top": [[[top["id"], top["logprob"]] for top in step["top_logprobs"]] for step in steps],
    }


def halves(asked: dict[str, Any]) -> dict[str, bool]:
    """Which halves of the memory to attach, where not both."""
    return {} if asked["lora"] == asked["kv"] else {"with_kv": asked["kv"]}


def main(export: Path, questions: Path, answers: Path) -> None:
    wanted = json.loads(questions.read_text())
    ask = client(export)
    settings = {}
    for name, flash in SETTINGS.items():
        with serving(export, flash) as url:
            settings[name] = [answer(ask, url, asked, wanted, flash) for asked in wanted["asked"]]
    answers.write_text(json.dumps({"versions": {"xllamacpp": version("xllamacpp")}, "settings": settings}))


if __name__ == "__main__":
    run(main)
