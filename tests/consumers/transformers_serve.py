"""`transformers serve`, as it is, over HTTP (`/v1/completions`): the backbone, a backbone with a memory in
its weights (`--merge`), and LoRA from a folder of links, to the files of the backbone and of the adapter:
what transformers takes for a model with an adapter inside.

It takes text, not tokens, and tells no probabilities.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from http_server import free_port, last_error, serving, tool
from program import run

PACKAGES = ["torch", "transformers[serving]>=5.24", "peft", "openai"]
FORMAT = "hf"
OPTIONS: dict[str, Any] = {}
MERGED = True
WHY = {("merged", "lora"): "the sum of weights and LoRA is rounded to the type of the base"}


def linked(backbone: Path, adapter: Path, target: Path) -> Path:
    """A folder that the server loads as the backbone with an adapter."""
    target.mkdir()
    for path in (*backbone.iterdir(), *adapter.glob("adapter_*")):
        (target / path.name).symlink_to(path)
    return target


def asked_of(client: Any, model: Path, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The text after a prompt; what the server refuses is a reason."""
    from openai import APIError

    generation = {"suppress_tokens": wanted["suppress"], "do_sample": False, "pad_token_id": 0}
    try:
        found = client.completions.create(
            model=str(model),
            prompt=asked["text"],
            max_tokens=wanted["new_tokens"],
            temperature=0,
            extra_body={"generation_config": json.dumps(generation)},
        )
    except APIError:
        time.sleep(1)  # it says why after the answer
        return {"reason": f"the server fails: {last_error(wanted['log'])}"}
    return {"text": found.choices[0].text}


def main(export: Path, questions: Path, answers: Path) -> None:
    from openai import OpenAI

    wanted, port = json.loads(questions.read_text()), free_port()
    command = [tool("transformers"), "serve", "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    command += ["--trust-remote-code"] * any((export / "backbone").glob("modeling_*.py"))
    settings: dict[str, list[Any]] = {"backbone": [], "merged": [], "linked folder": []}
    merged_name = next((asked["memory"] for asked in wanted["asked"] if asked["memory"]), None)
    log = answers.with_name("log")
    with serving(command, port, answers.parent, log, {"HF_HUB_OFFLINE": "1"}) as url:
        wanted["log"] = log
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=1800)
        for number, asked in enumerate(wanted["asked"]):
            name, folder = asked["memory"], answers.parent / f"adapter-{number}"
            bare = asked_of(client, export / "backbone", asked, wanted) if name is None else None
            settings["backbone"].append(bare)
            in_weights = name == merged_name and asked["lora"] and not (asked["kv"] or asked["neurons"])
            merged = Path(wanted["merged"]) / "backbone" if in_weights else None
            settings["merged"].append(asked_of(client, merged, asked, wanted) if merged else None)
            adapter = None
            if asked["kv"] or asked["neurons"]:
                adapter = {"reason": "it has no way in for a cache that is there before the prompt"}
            elif asked["lora"]:
                both = linked(export / "backbone", export / "memories" / name, folder)
                adapter = asked_of(client, both, asked, wanted)
            settings["linked folder"].append(adapter)
    versions = {name: version(name) for name in ("transformers", "peft", "torch", "openai")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    run(main)
