"""Ask llama-server with one memory of this export attached. Needs Python alone.

    python ask.py MEMORY "A prompt" [--chat] [--url http://127.0.0.1:8080] [--slot 0] [--tokens 64]
    [--flash-attention]

MEMORY is a name of `serving.json`, or `none`. The README beside this file says how to start the server.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request; what the server refuses ends the program with its words."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code}: {error.read().decode(errors='replace')}")


def attach(url: str, slot: int, memory: dict[str, Any], lora: list[dict[str, Any]], flash: bool) -> list[int]:
    """Put a memory into a slot; returns the tokens that every prompt must begin with.

    A slot forgets what it has read when its adapters change, so they are set first, by a request that reads
    one token and writes none.
    """
    post(url, "/completion", {"prompt": [0], "n_predict": 0, "id_slot": slot, "lora": lora})
    kv = memory.get("kv")
    if kv is None:
        return []
    name = kv["file_flash_attention"] if flash else kv["file"]
    post(url, f"/slots/{slot}?action=restore", {"filename": name})
    return [kv["sentinel"]] * kv["tokens"]


def complete(
    url: str, slot: int, name: str, ids: list[int], flash: bool, with_kv: bool = True, **options: Any
) -> dict[str, Any]:
    """Complete a text, given as token ids, with a memory, or with its LoRA alone; the server's answer."""
    memories = json.loads((HERE / "serving.json").read_text(encoding="utf-8"))["memories"]
    if name != "none" and name not in memories:
        sys.exit(f"{name}: no such memory; there is none, {', '.join(memories)}.")
    with_lora = [domain for domain, files in memories.items() if "lora" in files]
    lora = [{"id": index, "scale": float(domain == name)} for index, domain in enumerate(with_lora)]
    memory = dict(memories.get(name, {}))
    if not with_kv:
        memory.pop("kv", None)
    front = attach(url, slot, memory, lora, flash)
    # The server finds what it has read by tokens alone, whatever adapter read them: only what begins with the
    # memory's own sentinels is looked for.
    body = {"prompt": front + ids, "id_slot": slot, "cache_prompt": bool(front), "lora": lora, **options}
    answer = post(url, "/completion", body)
    if answer["timings"]["cache_n"] < len(front):  # the server read the sentinels as text
        sys.exit(f"{name}: the slot lost its KV memory; start the server as the README says.")
    return answer


def read_ids(url: str, prompt: str, chat: bool) -> list[int]:
    """The token ids of a prompt, or of what a user says."""
    if chat:
        messages = [{"role": "user", "content": prompt}]
        prompt = post(url, "/apply-template", {"messages": messages})["prompt"]
    body = {"content": prompt, "add_special": True, "parse_special": chat}
    return list(post(url, "/tokenize", body)["tokens"])


def main() -> None:
    """Print a completion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memory")
    parser.add_argument("prompt")
    parser.add_argument("--chat", action="store_true", help="the prompt is what a user says")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--slot", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64, help="the most to write")
    parser.add_argument("--flash-attention", action="store_true", help="the server runs with -fa on")
    given = parser.parse_args()
    ids = read_ids(given.url, given.prompt, given.chat)
    answer = complete(
        given.url,
        given.slot,
        given.memory,
        ids,
        given.flash_attention,
        n_predict=given.tokens,
        temperature=0,
    )
    sys.stdout.write(answer["content"] + "\n")


if __name__ == "__main__":
    main()
