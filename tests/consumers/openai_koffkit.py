"""The OpenAI client against `koffkit serve`: completions of text and of tokens, streamed and not; `model`
names the memory. The server tells no probabilities and cannot be told which tokens never to choose, so texts
end where they end."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from http_server import free_port, serving, tool
from program import run

PACKAGES = ["torch", "-e.[serve]", "openai"]
FORMAT = "hf"
OPTIONS: dict[str, Any] = {}
ANSWERS = "text"


def whole(client: Any, model: str, prompt: Any, wanted: dict[str, Any]) -> str:
    """An answer in one piece."""
    found = client.completions.create(
        model=model, prompt=prompt, max_tokens=wanted["new_tokens"], temperature=0
    )
    assert found.choices[0].koffkit["memory"] == (None if model == "none" else model), found
    return str(found.choices[0].text)


def streamed(client: Any, model: str, prompt: Any, wanted: dict[str, Any]) -> str:
    """An answer as it is written."""
    stream = client.completions.create(
        model=model, prompt=prompt, max_tokens=wanted["new_tokens"], temperature=0, stream=True
    )
    return "".join(event.choices[0].text for event in stream if event.choices)


def main(export: Path, questions: Path, answers: Path) -> None:
    from openai import OpenAI

    wanted, port = json.loads(questions.read_text()), free_port()
    command = [tool("koffkit"), "serve", str(export), "--port", str(port), "--dtype", "float32"]
    settings: dict[str, list[Any]] = {"tokens, in one piece": [], "text, streamed": []}
    with serving(command, port, answers.parent, answers.with_name("log")) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        names = {model.id for model in client.models.list()}
        for asked in wanted["asked"]:
            model = asked["memory"] or "none"
            assert model in names, names
            if not asked["whole"]:
                for given in settings.values():
                    given.append({"reason": "it attaches whole memories"})
                continue
            one = {"text": whole(client, model, asked["prompt"], wanted)}
            settings["tokens, in one piece"].append(one)
            settings["text, streamed"].append({"text": streamed(client, model, asked["text"], wanted)})
    versions = {name: version(name) for name in ("openai", "transformers", "torch")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    run(main)
