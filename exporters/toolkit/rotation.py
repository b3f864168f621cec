"""Memory keys as stock caches keep keys: rotated.

Legend: K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Rotary:
    """The rotation of keys in a checkpoint, by the module of its own class.

    Args:
        backbone: the folder of the checkpoint.
    """

    def __init__(self, backbone: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from ... import sliced  # noqa: F401  # registers the sliced classes with transformers' Auto classes

        self.config: Any = AutoConfig.from_pretrained(backbone)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(self.config)
        self.module: Any = type(empty.model.rotary_emb)(config=self.config)

    def __call__(self, key: Tensor, layer: int) -> Tensor:
        """Keys [K, P, H], all turned by the angle of P."""
        import torch

        rotates = getattr(self.config, "no_rope_layers", None)
        if rotates is not None and not rotates[layer]:
            return key
        cos, sin = self.module(key, torch.tensor([[key.shape[1]]]), *self._kind(layer))
        half = key.shape[-1] // 2
        turned = torch.cat([-key[..., half:], key[..., :half]], dim=-1)
        rotated: Tensor = key * cos + turned * sin
        return rotated

    def _kind(self, layer: int) -> list[str]:
        """What the module of a family whose kinds of layer rotate differently wants to know."""
        from inspect import signature

        takes = "layer_type" in signature(self.module.forward).parameters
        return [self.config.layer_types[layer]] if takes else []
