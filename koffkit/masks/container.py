"""The `config.json` of a sliced backbone: for the family's own class if it fits, else for a stock class that
computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import NO_STOCK
from ..arch.widths import SLICED_LAYERS, LayerWidths
from ..checkpoint.spec import ModelSpec
from .masks import Masks
from .slicing import needs_own_class, rope_pairs, widths_of

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Kinds of layer in `rope_parameters`, each with its own parameters."""
STALE = (
    "_name_or_path",
    "auto_map",
    "transformers_version",
    "rope_scaling",
    "rope_theta",
    "rope_local_base_freq",
    "torch_dtype",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
)


def open_complete(folder: Path) -> ModelSpec:
    """Open a checkpoint with every default of its config spelled out, so that another class cannot fill in
    its own."""
    from transformers import AutoConfig

    return ModelSpec(
        config=AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict(), path=folder
    )


def sliced_config(spec: ModelSpec, masks: Masks) -> dict[str, Any]:
    """The config after slicing: for a stock class if one fits the result, else for koffkit's class.

    Args:
        spec: with a complete config (see `open_complete`).
        masks: of all layers.
    """
    result = {key: value for key, value in spec.config.items() if key not in STALE}
    result["head_dim"] = spec.shape.head_dim
    result["tie_word_embeddings"] = bool(spec.config.get("tie_word_embeddings", spec.arch.ties_by_default))
    stock = None if needs_own_class(spec, masks) else _stock_class(spec, result, widths_of(spec, masks)[0])
    return _readable_by_older(stock or _own_class(spec, result, masks))


def _stock_class(spec: ModelSpec, config: dict[str, Any], widths: LayerWidths) -> dict[str, Any] | None:
    """The config of a stock class for layers that all have these widths; None if no stock class computes the
    same."""
    heads = widths.kv_heads * spec.shape.queries_per_kv
    sizes = {
        "intermediate_size": widths.intermediate,
        "num_key_value_heads": widths.kv_heads,
        "num_attention_heads": heads,
    }
    container = _container(spec, heads)
    if container == NO_STOCK:
        return None
    config = config | sizes
    if container != spec.arch.model_type:
        for key, harmless in spec.arch.container_drops.items():
            value = config.pop(key, None)
            if value is not None and harmless is not ... and value != harmless:
                return None
        config |= dict(spec.arch.container_sets) | {"model_type": container}
    return config | {"architectures": [_class_name(container)]}


def _class_name(model_type: str) -> str:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    return str(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]].__name__)


def _own_class(spec: ModelSpec, config: dict[str, Any], masks: Masks) -> dict[str, Any]:
    """The family's config under koffkit's model type, with the widths of every layer and the code that reads
    them."""
    from ..sliced import CODE, PREFIX, classes

    config_class, model_class = (made.__name__ for made in classes(spec.arch.model_type))
    layers = []
    for index, widths in enumerate(widths_of(spec, masks)):
        pairs = rope_pairs(spec, masks, index)
        layers.append(
            {
                "intermediate": widths.intermediate,
                "kv_heads": widths.kv_heads,
                "rope_pairs": None if pairs is None else [_bit_mask(keep) for keep in pairs],
                "value_channels": widths.value_channels,
            }
        )
    return config | {
        "model_type": PREFIX + spec.arch.model_type,
        "architectures": [model_class],
        "auto_map": {
            "AutoConfig": f"{CODE.stem}.{config_class}",
            "AutoModelForCausalLM": f"{CODE.stem}.{model_class}",
        },
        SLICED_LAYERS: layers,
    }


def _bit_mask(keep: NDArray[np.bool_]) -> str:
    """Bit i is set when element i stays, in hexadecimal."""
    return f"{sum(1 << i for i in np.flatnonzero(keep).tolist()):x}"


def _container(spec: ModelSpec, heads: int) -> str:
    arch, shape = spec.arch, spec.shape
    if heads == shape.query_heads:
        return arch.model_type
    holds = shape.hidden % heads == 0 if arch.reads_head_dim else heads * shape.head_dim == shape.hidden
    return arch.model_type if holds or arch.head_pruned_container is None else arch.head_pruned_container


def _readable_by_older(config: dict[str, Any]) -> dict[str, Any]:
    """Add the old RoPE keys: transformers 5 writes `rope_parameters` only, and without the old keys 4.x
    silently falls back to the family's defaults, without scaling.

    If the kinds of layer rotate differently (Gemma 3), the old keys are those of full attention, and the
    other kind has a base frequency only.
    """
    rope = config.get("rope_parameters") or {}
    local = rope.get(LOCAL)
    if local is not None and "rope_theta" in local:
        config["rope_local_base_freq"] = local["rope_theta"]
    rope = rope.get(GLOBAL, rope)
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        config["rope_scaling"] = scaling
    if config.get("dtype"):
        config["torch_dtype"] = config["dtype"]
    return dict(sorted(config.items()))
