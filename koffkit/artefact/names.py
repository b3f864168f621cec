"""Names of the files that ship."""

from __future__ import annotations

FORMAT = 1
MANIFEST = "koffkit.json"
BACKBONE = "backbone"
MEMORIES = "memories"
# The base model in a bundle's PEFT configuration: its place in the export relative to the bundle, never the
# name of a repository on a hub. PEFT resolves it against the working folder:
# `AutoPeftModelForCausalLM.from_pretrained(".")` works inside the bundle.
BACKBONE_OF_BUNDLE = f"../../{BACKBONE}"
ROUTER = "router"
MASKS = "masks.safetensors"
REMOVED = "removed"
REMOVED_WEIGHTS = "removed.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
KV_MEMORY = "kv_memory.safetensors"
CARTRIDGE = "cartridge"
"""In a bundle: the KV half once more, as a folder of PEFT's (`export --format peft`)."""
NEURONS = "neurons.safetensors"
# Names that PEFT does not look for, because it would take the integers for weights.
ADAPTER_PACKED = "adapter_packed.safetensors"
KV_MEMORY_PACKED = "kv_memory_packed.safetensors"
NEURONS_PACKED = "neurons_packed.safetensors"
MEMORY_FILE = "memory.json"
ROUTER_COLUMN = "router_column.safetensors"
CARD = "README.md"
SERVING = "serving.json"
"""Of formats for a server of other software: what it loads."""
