"""The OpenAI client against llama-server (as `llama_cpp.py` starts it): the export's own `ask.py` attaches
what is asked for, then `/v1/completions` with the sentinels in front, streamed and not."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_cpp import client as export_client
from llama_cpp import serving
from program import run

PACKAGES = ["xllamacpp", "openai"]
FORMAT = "gguf"
OPTIONS = {"type": "f32", "cache_type": "f32"}


def attached(ask: Any, url: str, asked: dict[str, Any]) -> tuple[list[int], list[dict[str, Any]]]:
    """What a prompt begins with, and the adapters of the request."""
    memories = json.loads((Path(ask.__file__).parent / "serving.json").read_text())["memories"]
    with_lora = [name for name, files in memories.items() if "lora" in files]
    lora = [
        {"id": index, "scale": float(asked["lora"] and name == asked["memory"])}
        for index, name in enumerate(with_lora)
    ]
    memory = memories[asked["memory"]] if asked["kv"] else {}
    return ask.attach(url, 0, memory, lora, False), lora


def create(client: Any, front: list[int], lora: Any, asked: Any, wanted: Any, **more: Any) -> Any:
    """The client's call."""
    return client.completions.create(
        model="koffkit",
        prompt=front + asked["prompt"],
        max_tokens=wanted["new_tokens"],
        temperature=0,
        logit_bias={str(index): -100 for index in wanted["suppress"]},
        extra_body={"id_slot": 0, "cache_prompt": bool(front), "lora": lora},
        **more,
    )


def answer(client: Any, ask: Any, url: str, asked: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Tokens and their log-probabilities; llama-server's are objects of chat completions."""
    found = create(client, *attached(ask, url, asked), asked, wanted, logprobs=wanted["top"])
    steps = found.choices[0].logprobs.content
    return {
        "ids": [step["id"] for step in steps],
        "top": [[[top["id"], top["logprob"]] for top in step["top_logprobs"]] for step in steps],
    }


def streamed(client: Any, ask: Any, url: str, asked: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The text as it is written."""
    events = create(client, *attached(ask, url, asked), asked, wanted, stream=True)
    return {"text": "".join(event.choices[0].text for event in events if event.choices)}


def main(export: Path, questions: Path, answers: Path) -> None:
    from openai import OpenAI

    wanted, ask = json.loads(questions.read_text()), export_client(export)
    with serving(export, False) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        settings = {
            "in one piece": [answer(client, ask, url, asked, wanted) for asked in wanted["asked"]],
            "streamed": [streamed(client, ask, url, asked, wanted) for asked in wanted["asked"]],
        }
    versions = {name: version(name) for name in ("openai", "xllamacpp")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    run(main)
