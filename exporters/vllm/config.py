"""The `config.json` that vLLM reads: the sliced backbone's own, or DeciLM's where layers differ in
neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...arch.widths import SLICED_LAYERS, LayerWidths
from ...artefact.routes import Facts
from ...checkpoint.files import CONFIG
from ...checkpoint.spec import ModelSpec
from ...storage.files import write_atomically, write_json
from ..toolkit import Draft

CLASS = "DeciLMConfig"
MODULE = "configuration_decilm"
SOURCE = f'''"""A DeciLM whose layers differ in their neurons: vLLM has the model, not the config."""

from transformers import PretrainedConfig


class Block(dict):
    """A JSON object whose keys are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _block(value):
    return Block({{key: _block(inner) for key, inner in value.items()}}) if isinstance(value, dict) else value


class {CLASS}(PretrainedConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [_block(block) for block in block_configs]
'''


def write_config(draft: Draft, facts: Facts) -> None:
    """Replace koffkit's own config and code by DeciLM's, where layers differ in neurons.

    Args:
        draft: the export, with its backbone written and its parity checked.
        facts: what the backbone is like.
    """
    if not facts.own_class:
        return
    from ...sliced import CODE

    backbone = draft.backbone
    spec = ModelSpec.open(backbone)
    own = (SLICED_LAYERS, "auto_map", "architectures", "model_type", "num_key_value_heads")
    config = {key: value for key, value in spec.config.items() if key not in own}
    config |= {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{MODULE}.{CLASS}"},
        "block_configs": _blocks(spec.widths, spec.shape.queries_per_kv),
        "num_attention_heads": spec.widths[0].kv_heads * spec.shape.queries_per_kv,  # of every layer
        "qkv_bias": draft.run.spec.arch.has_bias("self_attn.q_proj", config),
    }
    write_json(backbone / CONFIG, dict(sorted(config.items())))
    write_atomically(backbone / f"{MODULE}.py", SOURCE)
    (backbone / CODE.name).unlink()


def _blocks(widths: Sequence[LayerWidths], queries_per_kv: int) -> list[dict[str, Any]]:
    attention = {"no_op": False, "n_heads_in_group": queries_per_kv}
    return [
        {"attention": attention, "ffn": {"no_op": False, "intermediate_size": layer.intermediate}}
        for layer in widths
    ]
