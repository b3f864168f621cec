"""The README of the format: how to serve the folder, and how to ask for a memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...artefact.card import front_matter
from ...artefact.manifest import Manifest
from ...artefact.names import BACKBONE, CARD
from ...checkpoint.files import CONFIG
from ...storage.files import write_atomically
from ...storage.read_json import read_json
from ..toolkit.quantised import readme_section
from ..toolkit.root_card import origin, title

CONNECTOR = "koffkit.serving.vllm_connector"
EMPTY_SLOTS = 1
"""Of a batch's adapters: on a CPU, vLLM 0.32 gives rows without an adapter the one in the last slot."""


def connector_config(export: str) -> dict[str, Any]:
    """What `--kv-transfer-config` is given.

    Args:
        export: the folder of the export, as the server finds it.
    """
    return {
        "kv_connector": "KoffkitConnector",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"export": export},
    }


def write_readme(folder: Path, manifest: Manifest, serving: Mapping[str, Any]) -> None:
    """Write the README.

    Args:
        folder: of the export.
        manifest: what was written.
        serving: the content of `serving.json`.
    """
    config = read_json(folder / BACKBONE / CONFIG, remedy="export again")
    header = front_matter(manifest.base, "vllm", ["koffkit", "pruned"], derived=True)
    memories = serving["memories"]
    parts = [title(manifest), _serve(manifest.name, config, serving), _ask(manifest.name, memories)]
    if manifest.consumer is not None:
        parts.append(readme_section(manifest.consumer, "`pip install torchao` beside vLLM first"))
    if any(entry["kv"] for entry in memories.values()):
        parts.append(_kv(manifest.name, memories, serving["chat_template"]))
    write_atomically(folder / CARD, header + "\n".join([*parts, origin(manifest)]))


def _serve(name: str, config: Mapping[str, Any], serving: Mapping[str, Any]) -> str:
    kv = any(entry["kv"] for entry in serving["memories"].values())
    needs = "\n`pip install --no-deps koffkit` beside vLLM first: the KV memories need its connector.\n" * kv
    command = " \\\n    ".join(_command(name, config, serving))
    return f"""## Serve

In this folder:

```console
{command}
```
{needs}"""


def _command(name: str, config: Mapping[str, Any], serving: Mapping[str, Any]) -> Iterator[str]:
    """The command, a line at a time."""
    yield f"vllm serve {BACKBONE} --served-model-name {name} --dtype {config.get('dtype') or 'auto'}"
    if "block_configs" in config:
        yield "--trust-remote-code"  # the config class that lies beside the weights
    if serving["chat_template"] is not None:
        yield f"--chat-template {serving['chat_template']}"
    adapters = {
        domain: entry["lora"] for domain, entry in serving["memories"].items() if entry["lora"] is not None
    }
    if adapters:
        rank = max(entry["rank"] for entry in adapters.values())
        yield f"--enable-lora --max-loras {len(adapters) + EMPTY_SLOTS} --max-lora-rank {rank}"
        yield "--lora-modules " + " ".join(f"{domain}={entry['path']}" for domain, entry in adapters.items())
    if any(entry["kv"] for entry in serving["memories"].values()):
        yield f"--kv-transfer-config '{json.dumps(connector_config('.'))}'"


def _ask(name: str, memories: Mapping[str, Any]) -> str:
    with_lora = [domain for domain, entry in memories.items() if entry["lora"] is not None]
    if not with_lora:
        return ""
    return f"""## Ask

The model `{name}` is the bare backbone; {", ".join(f"`{domain}`" for domain in with_lora)} \
{"are" if with_lora[1:] else "is"} the backbone with the LoRA half of that memory. One batch may mix them:
`--max-loras` has a slot for each and an empty one, without which vLLM 0.32 on a CPU gives rows that ask for
the backbone the adapter in the last slot.
"""


def _kv(name: str, memories: Mapping[str, Any], template: str | None) -> str:
    rows = "\n".join(
        f"| `{domain}` | {entry['kv']['sentinel']} | {entry['kv']['tokens']} |"
        for domain, entry in memories.items()
        if entry["kv"]
    )
    domain, entry = next((domain, entry) for domain, entry in memories.items() if entry["kv"])
    sentinel, tokens = entry["kv"]["sentinel"], entry["kv"]["tokens"]
    model = domain if entry["lora"] is not None else name
    chat = (
        ""
        if template is None
        else f"""
For chat the template of this folder puts them there:

```python
client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "A question"}}],
    extra_body={{"chat_template_kwargs": {{"memory": "{domain}"}}}},
)
```
"""
    )
    return f"""## The whole memory, KV half included

A prompt asks for it by beginning with the memory's sentinel, as often as the memory has tokens; these
tokens are never computed, the connector writes the memory in their place:

| memory | sentinel | tokens |
|---|---|---|
{rows}

```python
from openai import OpenAI
from transformers import AutoTokenizer

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
ids = AutoTokenizer.from_pretrained("{BACKBONE}")("A prompt").input_ids
answer = client.completions.create(model="{model}", prompt=[{sentinel}] * {tokens} + ids, max_tokens=64)
```
{chat}
Without sentinels a request has the LoRA half alone. Sentinels of another memory than the model's are text
like any other, and the server logs an error. `--max-model-len` counts memory tokens. Requests for
`prompt_logprobs` bypass the connector: vLLM computes the whole prompt for them, sentinels included.
"""
