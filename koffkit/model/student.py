"""Teacher and student in one: a frozen model, its gates and its memories (method, sections 1 and 2).

With gates and memories off it is the teacher.

Legend: B batch, T tokens, D hidden, L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError
from ..parallel.lean import let_go
from ..parallel.sharding import broken_off
from .gating import Gates, GateValues, register_gates
from .kv_attention import transformer, use_koffkit_attention
from .lower_layers import LowerLayers
from .memory import Memories
from .repair import use_repair


class LayerCalls:
    """How a model calls its decoder layers on one sequence.

    Attributes:
        hidden: what enters the first layer, [B, T, D].
        arguments: all else that each layer is given, by layer.
    """

    hidden: Tensor

    def __init__(self) -> None:
        self.arguments: list[dict[str, Any]] = []

    def receive(self, _: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        """A hook before the forward pass of a layer."""
        if not self.arguments:
            self.hidden = inputs[0]
        self.arguments.append(arguments)


class _ThatIsEnough(Exception):
    """Ends a forward pass whose rest nobody needs."""


class _FirstLayer(LayerCalls):
    def receive(self, _: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        super().receive(_, inputs, arguments)
        raise _ThatIsEnough


class Student(nn.Module):
    """The frozen base with gates and memories.

    Args:
        model: a transformers causal LM; frozen here and switched to koffkit's attention.
    """

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        gate_set: Gates | None,
        memories: Memories | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.gates = gate_set
        self.memories = memories
        self.spec = spec
        self._divisor = (
            float(getattr(model.config, spec.arch.logit_divisor)) if spec.arch.logit_divisor else 1.0
        )
        self._values: GateValues | None = None
        self.repaired: dict[str, Tensor] = {}  # by parameter name
        self._pruned: tuple[GateValues, int] | None = None  # masks, and the lowest layer that they change
        register_gates(model, spec, lambda: self._values)
        self.train()

    def train(self, mode: bool = True) -> Student:
        """Switch gradient checkpointing, if enabled, on (True) or off (False).

        Dropout of the frozen model stays off either way: teacher and student must differ by gates and memory
        only. transformers couples checkpointing to a layer's training mode and dropout to that of the
        modules within.
        """
        super().train(False)
        self.training = mode
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def forward(
        self,
        input_ids: Tensor,
        gate_values: GateValues | None = None,
        memory: str | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, T, D], after the final norm; `head` projects them to logits.

        Args:
            input_ids: [B, T], packed, no padding.
            gate_values: [L, U] by gate; None switches all gates off.
            memory: the domain whose memory is attached, or None.
            positions: [B, T]; where they restart, another document begins, whose tokens see the KV memory but
                no earlier document (`model.batch.Batch`). None: every row is one text.
        """
        if self.memories is not None:
            self.memories.attach(memory)
        self._values = gate_values
        hidden: Tensor = self.model.model(
            input_ids=input_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        return hidden if self._divisor == 1.0 else hidden / self._divisor

    def repair(self, tensors: Mapping[str, Tensor]) -> None:
        """Compute with other weights from now on whenever gates are on; the teacher keeps its own.

        Args:
            tensors: by parameter name, at the widths of the base.
        """
        use_repair(self.model, tensors, lambda: self._values is not None)
        self.repaired |= tensors

    def lower_layers(self, gate_values: GateValues | None, *, sampled: bool) -> LowerLayers:
        """The layers below everything in which the student differs from the unpruned model.

        Args:
            gate_values: [L, U] by gate; None: all gates are off.
            sampled: the values are drawn anew every time, in all layers that have gates.
        """
        changed = [len(self.decoder_layers)]
        if gate_values is not None:
            changed += [int(name.split("layers.")[1].split(".")[0]) for name in self.repaired]
            changed.append(min(self.gates.layers) if sampled and self.gates else self._lowest(gate_values))
        if self.memories is not None:
            changed.append(self.memories.lowest_layer(len(self.decoder_layers)))
        return LowerLayers(self.decoder_layers[: min(changed)])

    def _lowest(self, masks: GateValues) -> int:
        """The lowest layer in which a unit is gone."""
        if self._pruned is None or self._pruned[0] is not masks:
            gone = torch.stack([(values != 1).any(-1) for values in masks.values()]).any(0).tolist()
            self._pruned = masks, gone.index(True) if True in gone else len(gone)
        return self._pruned[1]

    def hidden_states(self, input_ids: Tensor, layer: int, gate_values: GateValues | None = None) -> Tensor:
        """Hidden states [B, T, D] after `layer` layers (0: the embeddings), without memory.

        Args:
            input_ids: [B, T].
            layer: how many layers to go through.
            gate_values: [L, U] by gate; None: the unpruned model.
        """
        return self.every_hidden_state(input_ids, gate_values)[layer]

    def every_hidden_state(
        self, input_ids: Tensor, gate_values: GateValues | None = None
    ) -> tuple[Tensor, ...]:
        """Hidden states [B, T, D] of the embeddings and after every layer, without memory."""
        if self.memories is not None:
            self.memories.attach(None)
        self._values = gate_values
        states: tuple[Tensor, ...] = self.model.model(
            input_ids=input_ids, use_cache=False, output_hidden_states=True
        ).hidden_states
        return states

    def layer_calls(
        self, input_ids: Tensor, positions: Tensor | None = None, known: LayerCalls | None = None
    ) -> tuple[Tensor, LayerCalls]:
        """What enters the first layer, [B, T, D], and how every layer is called.

        Args:
            input_ids: [B, T].
            positions: as in `forward`.
            known: of a sequence of the same length and positions: the model is left at its first layer.
        """
        calls = LayerCalls() if known is None else _FirstLayer()
        handles = [
            layer.register_forward_pre_hook(calls.receive, with_kwargs=True) for layer in self.decoder_layers
        ]
        try:
            self(input_ids, positions=positions)
        except _ThatIsEnough:
            broken_off(self.model.model)
        finally:
            for handle in handles:
                handle.remove()
        return calls.hidden, calls if known is None else known

    def run_layer(self, index: int, hidden: Tensor, calls: LayerCalls, values: GateValues | None) -> Tensor:
        """Hidden states [B, T, D] after one layer; whatever memory is attached stays attached.

        Args:
            index: of the layer.
            hidden: what enters it, [B, T, D].
            calls: of a sequence with the same positions.
            values: [L, U] by gate; None switches all gates off.
        """
        self._values = values
        output = self.decoder_layers[index](hidden, **calls.arguments[index])
        after: Tensor = output if isinstance(output, Tensor) else output[0]
        return after

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the model, in order."""
        layers: Sequence[nn.Module] = transformer(self.model).model.layers
        return layers

    @property
    def head(self) -> Tensor:
        """The vocabulary projection [V, D]."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight


def load_frozen(path: str, dtype: str, *, trust_remote_code: bool = False, lean: bool = False) -> Any:
    """Load the base as a frozen transformers model with koffkit's attention.

    Args:
        path: a checkpoint folder.
        dtype: dtype of the weights, a name in torch.
        trust_remote_code: allow code from the folder.
        lean: let go of what is mapped from the files once it was looked at.

    Raises:
        IntegrityError: a weight is NaN or infinite.
    """
    from transformers import AutoModelForCausalLM

    from .. import sliced  # noqa: F401  # registers koffkit's own classes, which a backbone may need

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    model.requires_grad_(False)
    _require_finite(model, path, lean)
    use_koffkit_attention(model)
    return model


@torch.no_grad()
def _require_finite(model: nn.Module, path: str, lean: bool) -> None:
    """Refuse NaN in the base, which would later look like too high a learning rate."""
    for name, weight in model.named_parameters():
        if weight.numel() and not bool(torch.stack(weight.aminmax()).isfinite().all()):
            raise IntegrityError(
                f"{path}: {name}: the base itself holds NaN or infinite values; download it again."
            )
        if lean:
            let_go([weight])
