"""Run by the parity tests in a process where koffkit cannot be imported: an export, loaded by stock software
only.

    python stock.py EXPORT TOKENS.json OUT.safetensors

Writes logits of the backbone alone (`none`), with each domain's LoRA (`DOMAIN.lora`) and with LoRA and KV
memory (`DOMAIN.both`). The KV memory becomes the start of a DynamicCache: its keys rotated to the position
where the text begins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.modules["koffkit"] = None  # type: ignore[assignment]  # an import of koffkit from here on is an ImportError

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402


def rotate(key: torch.Tensor, rotary: Any, position: int) -> torch.Tensor:
    """Rotate [1, K, P, H] by the angle of one position, as `apply_rotary_pos_emb` does."""
    cos, sin = rotary(key, torch.tensor([[position]]))
    half = key.shape[-1] // 2
    turned = torch.cat([-key[..., half:], key[..., :half]], dim=-1)
    return key * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def with_cache(model: Any, plain: Any, ids: torch.Tensor, memory: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = memory["layers.0.key"].shape[1]
    cache = DynamicCache()
    for layer in range(plain.config.num_hidden_layers):
        key = memory[f"layers.{layer}.key"].unsqueeze(0)
        if (
            getattr(plain.config, "no_rope_layers", None) is None or plain.config.no_rope_layers[layer]
        ):  # 1 = with rotation
            key = rotate(key, plain.model.rotary_emb, tokens)
        value = memory[f"layers.{layer}.value"].unsqueeze(0)
        cache.update(key.repeat(len(ids), 1, 1, 1), value.repeat(len(ids), 1, 1, 1), layer)
    positions = torch.arange(tokens, tokens + ids.shape[1]).unsqueeze(0)
    return model(ids, past_key_values=cache, position_ids=positions).logits


@torch.no_grad()
def main(export: Path, tokens: Path, out: Path) -> None:
    ids = torch.tensor(json.loads(tokens.read_text()))
    found = {
        "none": AutoModelForCausalLM.from_pretrained(export / "backbone", dtype=torch.float32)
        .eval()(ids)
        .logits
    }
    for folder in sorted((export / "memories").iterdir()):
        plain = AutoModelForCausalLM.from_pretrained(export / "backbone", dtype=torch.float32)
        model = PeftModel.from_pretrained(plain, str(folder)).eval()
        found[f"{folder.name}.lora"] = model(ids).logits
        if (folder / "kv_memory.safetensors").exists():
            memory = load_file(folder / "kv_memory.safetensors")
            if len(memory) == 2 * plain.config.num_hidden_layers:
                found[f"{folder.name}.both"] = with_cache(model, plain, ids, memory)
    save_file({name: value.contiguous() for name, value in found.items()}, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
