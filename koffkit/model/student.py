"""Teacher and student in one: a frozen model, its gates and its memories (method, sections 1 and 2).

With gates and memories off it is the teacher. A gate multiplies the input of the module that consumes its unit, after the
LoRA sum, which covers the LoRA branch and the values of the KV memory too.

Legend: B batch, T tokens, D hidden, L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import Architecture, Shape
from ..method import gates
from .kv_attention import use_koffkit_attention
from .memory import Memories

GateValues = Mapping[str, Tensor]


class Gates(nn.Module):
    """One `log_alpha` per unit: `log_alpha[structure]` is [L, U]."""

    def __init__(self, arch: Architecture, shape: Shape, structures: list[str], open_probability: float, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        start = gates.initial_log_alpha(open_probability, temperature)
        self.log_alpha = nn.ParameterDict(
            {name: torch.full((shape.num_layers, arch.structures[name].num_units(shape)), start) for name in structures}
        )

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Relaxed gates, [L, U] by structure."""
        return {name: gates.sample(alpha, self.temperature, generator) for name, alpha in self.log_alpha.items()}

    def active_fraction(self) -> dict[str, Tensor]:
        """Expected active fraction of every layer, [L] by structure."""
        return {name: gates.active_probability(alpha, self.temperature).mean(-1) for name, alpha in self.log_alpha.items()}

    def hard(self, keep: Mapping[str, int]) -> dict[str, Tensor]:
        """The projection onto the budget: in every layer the units with the highest scores, [L, U] of 0 and 1."""
        return {name: gates.top_units(alpha.detach(), keep[name]).float() for name, alpha in self.log_alpha.items()}


def register_gates(model: nn.Module, arch: Architecture, shape: Shape, current: Callable[[], GateValues | None]) -> None:
    """Make every unit's consumer scale its input by `current()`; None, or a structure left out, leaves it alone.

    Call it after LoRA was injected: the hook belongs before the LoRA sum of the consumer.
    """
    for structure in arch.structures.values():
        block = structure.gate.channels_per_unit(shape)
        for index in range(shape.num_layers):
            module = model.get_submodule(arch.layer(index) + structure.gate.module)
            module.register_forward_pre_hook(partial(_scale, current, structure.name, index, block))


def _scale(
    current: Callable[[], GateValues | None], structure: str, index: int, block: int, _: nn.Module, inputs: tuple[Tensor, ...]
) -> Any:
    values = current()
    if values is None or structure not in values:
        return None
    gate = values[structure][index]
    gate = gate if block == 1 else gate.repeat_interleave(block)
    return (inputs[0] * gate.to(inputs[0].dtype), *inputs[1:])


class Student(nn.Module):
    """The frozen base with gates and memories.

    Args:
        model: a transformers causal LM; frozen here and switched to koffkit's attention.
    """

    def __init__(self, model: Any, arch: Architecture, shape: Shape, gate_set: Gates | None, memories: Memories | None) -> None:
        super().__init__()
        self.model = model
        self.gates = gate_set
        self.memories = memories
        self.arch, self.shape = arch, shape
        self._divisor = float(getattr(model.config, arch.logit_divisor)) if arch.logit_divisor else 1.0
        self._values: GateValues | None = None
        register_gates(model, arch, shape, lambda: self._values)

    def forward(self, input_ids: Tensor, gate_values: GateValues | None = None, memory: str | None = None) -> Tensor:
        """Last hidden states [B, T, D], after the final norm; `head` makes logits of them.

        Args:
            input_ids: [B, T], packed, no padding.
            gate_values: [L, U] by structure; None switches all gates off.
            memory: the domain whose memory is attached, or None.
        """
        if self.memories is not None:
            self.memories.attach(memory)
        self._values = gate_values
        hidden: Tensor = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden if self._divisor == 1.0 else hidden / self._divisor

    @property
    def head(self) -> Tensor:
        """The vocabulary projection [V, D]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight


def load_frozen(path: str, dtype: str, *, trust_remote_code: bool = False) -> Any:
    """The base as a frozen transformers model with koffkit's attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    use_koffkit_attention(model)
    return model
