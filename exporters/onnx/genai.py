"""`genai_config.json`: how onnxruntime-genai calls the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoint.spec import ModelSpec
from ...storage.files import write_json
from ...storage.read_json import read_json

FILE = "genai_config.json"
GENERATION = "generation_config.json"


def write_genai_config(backbone: Path, spec: ModelSpec, family: str) -> None:
    """Write the file.

    Args:
        backbone: the folder of the graph, with tokenizer and generation config.
        spec: of the checkpoint that the graph was traced from, with heads of one shape.
        family: `model_type` of the base.
    """
    from .files import GRAPH

    config, shape = spec.config, spec.shape
    given = backbone / GENERATION
    generation = read_json(given, remedy="export again") if given.is_file() else {}
    heads = spec.widths[0].kv_heads
    context = int(config["max_position_embeddings"])
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
        "head_size": shape.head_dim,
        "hidden_size": shape.hidden,
        "num_attention_heads": heads * shape.queries_per_kv,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ids = {name: generation.get(name, config.get(name)) for name in ("bos_token_id", "eos_token_id")}
    model = {
        "type": family,
        "vocab_size": config["vocab_size"],
        "context_length": context,
        "decoder": decoder,
        "pad_token_id": _padding(generation, config),
        **{name: value for name, value in ids.items() if value is not None},
    }
    search = {"max_length": context, "do_sample": False, "past_present_share_buffer": False}
    write_json(backbone / FILE, {"model": model, "search": search})


def _padding(generation: Any, config: Any) -> int:
    """The token to pad with; what stands in padding is masked, so any will do."""
    for name in ("pad_token_id", "eos_token_id"):
        value = generation.get(name, config.get(name))
        if value is not None:
            return int(value[0] if isinstance(value, list) else value)
    return 0
