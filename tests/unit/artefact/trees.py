"""The objects in `koffkit.json` and `memory.json` as the first koffkit that shipped artefacts wrote them."""

from __future__ import annotations

from typing import Any

DIGEST = "0" * 64
ENTRY = {"sha256": DIGEST, "size": 3}
GOLDEN = {"tokens": [1, 2], "ids": [5, 3], "logits": [7.5, 6.25]}


def manifest_tree(**changes: Any) -> dict[str, Any]:
    """A manifest with parity and golden logits in float32, which did not say so."""
    tree: dict[str, Any] = {
        "koffkit": 1,
        "format": "hf",
        "name": "tiny",
        "created": "2026-11-26T21:10:59Z",
        "versions": {"koffkit": "0.1.0"},
        "base": {
            "model": "./base",
            "digest": DIGEST,
            "architecture": "llama",
            "parameters": 1000,
            "bytes": 4000,
        },
        "backbone": {
            "path": "backbone",
            "digest": DIGEST,
            "class": "LlamaForCausalLM",
            "parameters": 800,
            "bytes": 3200,
        },
        "removed": {"parameters": 200, "target": 190, "global_sparsity": 0.2},
        "kept": {"mlp_neuron": [24, 24]},
        "masked": {},
        "domains": {"north": {"path": "memories/north", "parameters": 10, "bytes": 40}},
        "parity": {"tolerance": 0.0001, "tokens": 16, "max_abs": {"none": 1e-6, "north": 2e-6}},
        "results": {},
        "recipe": {"koffkit": 1, "name": "tiny"},
        "golden": GOLDEN,
        "files": {"backbone/config.json": ENTRY, "memories/north/memory.json": ENTRY},
    }
    return tree | changes


def bundle_tree(**changes: Any) -> dict[str, Any]:
    """A bundle with both halves."""
    tree: dict[str, Any] = {
        "koffkit": 1,
        "domain": "north",
        "backbone_digest": DIGEST,
        "layers": [0, 1],
        "lora": {"rank": 4, "alpha": 8.0, "targets": ["gate_proj"]},
        "kv": {"tokens": 3, "init_std": 0.02},
        "parameters": 10,
        "parameters_by_half": {"lora": 6, "kv": 4},
        "figures": {"matched": {"perplexity": 2.5}},
        "files": {"adapter_model.safetensors": ENTRY},
        "golden": GOLDEN,
    }
    return tree | changes
