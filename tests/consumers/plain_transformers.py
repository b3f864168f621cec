"""transformers alone: the backbone, transformers' own `load_adapter` for LoRA, and the KV half as a cache
that is there before the prompt, as in the export's `example.py`."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from program import run

PACKAGES = ["torch", "transformers>=5.15", "peft"]
FORMAT = "peft"
OPTIONS: dict[str, Any] = {}


def load(export: Path) -> Any:
    """The backbone in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    code = "auto_map" in json.loads((export / "backbone" / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(
        export / "backbone", dtype=torch.float32, trust_remote_code=code
    ).eval()


def prefilled(export: Path, name: str, config: Any) -> tuple[Any, int]:
    """A cache that holds the KV half of a memory, and its number of tokens P."""
    from safetensors.torch import load_file
    from transformers import DynamicCache

    flat = load_file(export / "memories" / name / "cartridge" / "adapter_model.safetensors")[
        "prompt_embeddings"
    ]
    cache, tokens, layers = DynamicCache(), len(flat), config.num_hidden_layers
    halves = flat.view(tokens, layers, 2, config.num_key_value_heads, -1).permute(1, 2, 3, 0, 4)
    for layer, (key, value) in enumerate(halves):
        cache.update(key[None], value[None], layer)
    return cache, tokens


def told(found: Any, before: int, top: int) -> dict[str, Any]:
    """Greedy ids and the largest log-probabilities of each step."""
    steps = [logits[0].double().log_softmax(-1).topk(min(top, logits.shape[-1])) for logits in found.logits]
    return {
        "ids": found.sequences[0, before:].tolist(),
        "top": [
            [list(pair) for pair in zip(s.indices.tolist(), s.values.tolist(), strict=True)] for s in steps
        ],
    }


def generate(model: Any, ids: Any, wanted: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Greedy tokens after `ids` [1, T]."""
    import torch

    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=wanted["new_tokens"],
        do_sample=False,
        suppress_tokens=wanted["suppress"],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **more,
    )
    return told(found, ids.shape[1], wanted["top"])


def answer(export: Path, asked: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """One answer, by a model loaded for it."""
    import torch

    model, cache, before = load(export), None, 0
    if asked["lora"]:
        model.load_adapter(str(export / "memories" / asked["memory"]))
    if asked["kv"]:
        cache, before = prefilled(export, asked["memory"], model.config)
    ids = torch.tensor([[0] * before + asked["prompt"]])
    return generate(model, ids, wanted, past_key_values=cache)


def main(export: Path, questions: Path, answers: Path) -> None:
    wanted = json.loads(questions.read_text())
    versions = {name: version(name) for name in ("transformers", "peft", "torch")}
    found = [answer(export, asked, wanted) for asked in wanted["asked"]]
    answers.write_text(json.dumps({"versions": versions, "settings": {"prefilled cache": found}}))


if __name__ == "__main__":
    run(main)
