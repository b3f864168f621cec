"""The memories of all domains, resident beside one frozen model; one is attached at a time.

LoRA uses peft (one named adapter per domain), the KV memory uses `kv_attention`, restored neurons use
`neuron_memory`.

Legend: K KV heads, H head dim, P memory tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..arch.widths import LayerWidths
from ..recipe.schema import KV, Lora
from .kv_attention import KVMemory, set_kv_memory
from .neuron_memory import NeuronMemory, Neurons, set_neuron_memory, use_neuron_memory


def lora_config(lora: Lora, layers: list[int]) -> LoraConfig:
    """The adapter's configuration, in training and in bundles.

    Args:
        lora: the recipe's settings.
        layers: indices of the layers that carry it.
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        layers_to_transform=list(layers),
        layers_pattern="layers",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


class Memories(nn.Module):
    """LoRA adapters and KV memories by domain.

    Args:
        model: the frozen transformers model; LoRA layers are injected in place.
        widths: of every layer of the model.
        seed: memories are initialised from it alone.
    """

    def __init__(
        self,
        model: nn.Module,
        widths: Sequence[LayerWidths],
        domains: list[str],
        layers: list[int],
        lora: Lora | None,
        kv: KV | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.domains = domains
        self.lora = lora if layers else None
        self._model = [model]  # in a list: the model is not a submodule of its memories
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.lora is not None:
                self._config = lora_config(self.lora, layers)
                for domain in domains:
                    with warnings.catch_warnings():  # peft warns of a second adapter; here many are the point
                        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                        inject_adapter_in_model(self._config, model, adapter_name=self.slot(domain))
            self.kv: Any = nn.ModuleDict()  # domain -> layer -> (key, value)
            if kv is not None:
                for domain in domains:
                    pairs = {
                        str(i): nn.ParameterList(
                            [torch.randn(size) * kv.init_std for size in _sizes(widths[i], kv)]
                        )
                        for i in layers
                    }
                    self.kv[self.slot(domain)] = nn.ModuleDict(pairs)
        if kv is not None and kv.freezes_first:
            for parameter in self.kv_parameters():
                parameter.register_hook(_without_first)  # type: ignore[no-untyped-call]
        self._tuners: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for parameter in self.lora_parameters():
            parameter.data = parameter.data.float()
        self._base_scaling = [dict(tuner.scaling) for tuner in self._tuners]
        self._tuner_layers = [
            _layer(name) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
        ]
        self.layers = list(layers)
        self.neurons: dict[str, NeuronMemory] = {}  # by slot; empty until stage `restore` has chosen them
        self.before_attaching: Callable[[str], None] | None = None
        self._attached: str | None = None
        self._changed = False  # whether the model must be updated to the attached memory
        self._enable(False)

    def slot(self, domain: str) -> str:
        """The name of a domain's modules; `training` or `keys` cannot be the name of a module."""
        return f"m{self.domains.index(domain)}"

    @property
    def exist(self) -> bool:
        return bool(self._tuners or len(self.kv) or self.neurons)

    def lowest_layer(self, num_layers: int) -> int:
        """The lowest layer that carries memory of any domain; `num_layers` if none does."""
        restored = [layer for memory in self.neurons.values() for layer in memory]
        return min([*(self.layers if self._tuners or len(self.kv) else []), *restored], default=num_layers)

    def attach(self, domain: str | None) -> None:
        """Attach the memory of `domain`, or none. Only the LoRA of the attached memory receives gradients."""
        if domain == self._attached and not self._changed:
            return
        if domain is not None and self.before_attaching is not None:
            self.before_attaching(domain)
        self._changed = False
        if domain is not None:
            for tuner in self._tuners:
                tuner.set_adapter(self.slot(domain))
        self._enable(domain is not None)
        set_kv_memory(self._model[0], None if domain is None else self._kv_memory(domain))
        if self.neurons:
            set_neuron_memory(self._model[0], None if domain is None else self.neurons.get(self.slot(domain)))
        self._attached = domain

    def _kv_memory(self, domain: str) -> dict[int, KVMemory] | None:
        if not len(self.kv):
            return None
        pairs = ((int(index), pair) for index, pair in self.kv[self.slot(domain)].items())
        return {index: KVMemory(pair[0], pair[1]) for index, pair in pairs if index in self.layers}

    def keep_layers(self, layers: list[int]) -> None:
        """Let only these layers carry memory from now on. The memory of the others is switched off and not
        saved, but not lost."""
        self.layers, self._changed = list(layers), True
        for tuner, layer, base in zip(self._tuners, self._tuner_layers, self._base_scaling, strict=True):
            for slot, value in base.items():
                tuner.scaling[slot] = value if layer in layers else 0.0

    def _enable(self, enabled: bool) -> None:
        for tuner in self._tuners:
            tuner.enable_adapters(enabled)

    def lora_parameters(self) -> Iterator[nn.Parameter]:
        for _, parameter in self._named_lora():
            yield parameter

    def kv_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.kv.parameters()

    def set_neurons(self, domain: str, memory: NeuronMemory, *, tuned: bool) -> None:
        """Give the memory of `domain` its restored neurons.

        Args:
            memory: neurons by layer.
            tuned: their weights are trained from now on, in float32.
        """
        use_neuron_memory(self._model[0])
        self.neurons[self.slot(domain)] = (
            {layer: _trainable(neurons) for layer, neurons in memory.items()} if tuned else dict(memory)
        )
        self._changed = True

    def read_neurons(self, tensors: Mapping[str, Tensor], device: torch.device, *, tuned: bool) -> None:
        """Take restored neurons from the tensors of a checkpoint, if it has any."""
        memories: dict[str, dict[int, dict[str, Tensor]]] = {}
        for name, value in tensors.items():
            kind, slot, layer, *rest = (*name.split(".", 3), "", "")
            if kind == "neurons":
                memories.setdefault(slot, {}).setdefault(int(layer), {})[rest[0]] = value.to(device)
        for place, domain in enumerate(self.domains):
            if f"m{place}" in memories:
                memory = {layer: Neurons.of(values) for layer, values in memories[f"m{place}"].items()}
                self.set_neurons(domain, memory, tuned=tuned)

    def neuron_parameters(self) -> Iterator[nn.Parameter]:
        for memory in self.neurons.values():
            for neurons in memory.values():
                yield from (value for value in neurons.tensors().values() if isinstance(value, nn.Parameter))

    @property
    def num_kv_tokens(self) -> int:
        """Memory tokens of each layer; 0 without KV memories."""
        return next((parameter.shape[1] for parameter in self.kv_parameters()), 0)

    def kv_shape(self, layer: int) -> tuple[torch.Size, torch.Size]:
        """Shapes of the keys and the values of a layer, [K, P, H] each."""
        key, value = self.kv[self.slot(self.domains[0])][str(layer)]
        return key.shape, value.shape

    @torch.no_grad()
    def set_kv(self, domain: str, tensors: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Overwrite keys and values, [K, P, H] by layer, of one domain.

        Args:
            domain: whose memory it is.
            tensors: `layers.{i}.key` and `layers.{i}.value`, each [K, P, H].
        """
        for layer, pair in tensors.items():
            for parameter, value in zip(self.kv[self.slot(domain)][str(layer)], pair, strict=True):
                parameter.copy_(value)

    def _named_lora(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model[0].named_parameters():
            if "lora_" in name:
                yield name, parameter

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the memories by a stable name, for checkpoints."""
        lora: dict[str, Tensor] = {f"lora.{name}": parameter for name, parameter in self._named_lora()}
        neurons = {
            f"neurons.{slot}.{layer}.{name}": value
            for slot, memory in self.neurons.items()
            for layer, own in memory.items()
            for name, value in own.tensors().items()
        }
        return lora | {f"kv.{name}": parameter for name, parameter in self.kv.named_parameters()} | neurons

    def adapter(self, domain: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The PEFT config (a JSON object) and the tensors of one domain's adapter, named as peft names them
        on disk."""
        if self.lora is None:
            return None
        config = self._config.to_dict() | {"layers_to_transform": self.layers}
        config = {key: (sorted(value) if isinstance(value, set) else value) for key, value in config.items()}
        state = get_peft_model_state_dict(self._model[0], adapter_name=self.slot(domain))
        kept = {name: value for name, value in state.items() if _layer(name) in self.layers}
        named = {
            f"base_model.model.{name}": value.detach().float().cpu().contiguous()
            for name, value in kept.items()
        }
        return config | {"inference_mode": True}, named

    def kv_tensors(self, domain: str) -> dict[str, Tensor] | None:
        """`layers.{i}.key` and `layers.{i}.value`, each [K, P, H], unrotated."""
        if not len(self.kv):
            return None
        names = ("key", "value")
        return {
            f"layers.{i}.{name}": tensor.detach().float().cpu().contiguous()
            for i, pair in self.kv[self.slot(domain)].items()
            if int(i) in self.layers
            for name, tensor in zip(names, pair, strict=True)
        }

    @torch.no_grad()
    def neuron_tensors(self, domain: str, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """`layers.{i}.neurons`, `layers.{i}.gate_proj.weight`, ... of one domain's restored neurons.

        Args:
            dtype: of the files. The neurons in memory are rounded to it too: what is measured is what ships.
        """
        memory = self.neurons.get(self.slot(domain))
        if memory is None:
            return None
        tensors = {}
        for layer, own in memory.items():
            for name, value in own.tensors().items():
                if name != "neurons":
                    value.copy_(value.to(dtype))
                stored = value if name == "neurons" else value.to(dtype)
                tensors[f"layers.{layer}.{name}"] = stored.detach().cpu().contiguous()
        return tensors


def _trainable(neurons: Neurons) -> Neurons:
    """The same neurons as parameters in float32; their places stay what they are."""
    return Neurons.of(
        {
            name: value if name == "neurons" else nn.Parameter(value.detach().float().clone())
            for name, value in neurons.tensors().items()
        }
    )


def _sizes(widths: LayerWidths, kv: KV) -> list[tuple[int, int, int]]:
    """Sizes of the keys and the values of one layer."""
    return [(widths.kv_heads, kv.tokens, width) for width in (widths.key_channels, widths.value_channels)]


def _without_first(gradient: Tensor) -> Tensor:
    """The gradient [K, P, H] with zeros for the first memory token, which is an attention sink and stays
    fixed."""
    gradient = gradient.clone()
    gradient[:, 0] = 0
    return gradient


def _layer(name: str) -> int:
    """The layer index in the name of a module or parameter."""
    return int(name.split("layers.")[1].split(".")[0])
