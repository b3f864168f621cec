"""Logits of a checkpoint on a few tokens, with every memory at once and one weight in memory at a time.

This is what the parity gate and `koffkit verify` compare: the class is the stock class of the checkpoint, the
weights are read back from its files, and neither a whole model nor a whole vocabulary projection ever exists.
Everything is computed in float64: in float32, rounding alone moves the logits of a real model by 1e-3, and
would hide an error of that size.

Legend: B rows (one for each condition), T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import sliced  # noqa: F401  # registers the sliced classes with transformers' Auto classes
from ..artefact.bundle import MemoryFolder
from ..checkpoint.reader import CheckpointReader
from ..checkpoint.spec import ModelSpec
from ..masks.convert import as_gates
from ..masks.masks import Masks
from ..masks.repair import Repair
from ..model.bundles import MemoryTensors, load_memory, mixed_kv
from ..model.gating import register_gates
from ..model.kv_attention import set_kv_memory, use_koffkit_attention
from ..model.loaded import LoadedWeights
from ..model.neuron_memory import set_neuron_rows, use_neuron_memory
from .weights import Weights, read_on_demand

ROWS_AT_ONCE = 1 << 22  # bytes of the vocabulary projection
PROBE_TOKENS = 16
FEW_TOKENS, WIDE = 8, 1024
"""Of a model whose hidden states have so many channels: every weight acts on every token but perhaps the
first, so more would find nothing more, and they are most of what comparing a large model costs."""


def probe_tokens(vocabulary: int, count: int = PROBE_TOKENS) -> list[int]:
    """Token ids spread over the whole vocabulary; a fixed choice, so that golden logits can be compared
    later."""
    return [(7919 * (index + 1)) % vocabulary for index in range(count)]


class Probe:
    """A checkpoint with its memories, ready to be evaluated.

    Args:
        folder: a checkpoint.
        memories: memories that fit this checkpoint.
        masks: masks to gate this checkpoint (the unsliced base) with; None for a sliced backbone.
        dtype: dtype of the whole computation; float64, or float32 to measure rounding.
        view: a config.json object and a reader to use instead of those of `folder`: the base as if it were
            sliced already.
        loaded: the weights as transformers reads them, which stand in for those that koffkit reads.
        repair: tensors that stand in for some of them.
        layer_done: called after every layer.

    Attributes:
        memories: as they were read, for another probe.
    """

    def __init__(
        self,
        folder: Path,
        memories: Sequence[MemoryFolder | MemoryTensors] = (),
        masks: Masks | None = None,
        dtype: torch.dtype = torch.float64,
        view: tuple[Mapping[str, Any], CheckpointReader] | None = None,
        loaded: LoadedWeights | None = None,
        repair: Repair | None = None,
        layer_done: Callable[[], None] | None = None,
    ) -> None:
        self.dtype = dtype
        self.reader = loaded or (CheckpointReader(folder) if view is None else view[1])
        with self._arithmetic():
            config = _config(folder, None if view is None else view[0])
            config.update({} if repair is None else repair.config)
            model, *self._vocabulary = _empty_model(config, dtype)
        spec = ModelSpec(config=model.config.to_dict(), path=folder)
        use_koffkit_attention(model)
        use_neuron_memory(model)
        size = spec.widths, spec.shape.hidden
        attached = [
            memory if isinstance(memory, MemoryTensors) else load_memory(memory, *size, on_disk=True)
            for memory in memories
        ]
        self.memories: Sequence[MemoryTensors] = attached
        slots = [f"m{index}" for index in range(len(attached))]
        pairs = list(zip(slots, attached, strict=True))
        self._slots = {memory.domain: slot for slot, memory in pairs if memory.lora is not None}
        self._model: Any = _with_adapters(model, attached, slots)
        if masks is not None:
            values = as_gates(masks)
            register_gates(model, spec, lambda: values)
        if layer_done is not None:
            for layer in model.get_decoder().layers:
                layer.register_forward_hook(lambda *_: layer_done())
        self._kv = {memory.domain: memory.kv for memory in attached}
        self._neurons = {memory.domain: memory.neurons for memory in attached}
        adapters = {slot: memory.adapter for slot, memory in pairs}
        repaired = {} if repair is None else repair.tensors
        weights = Weights(self.reader, adapters, dtype, repaired)
        read_on_demand(self._model, weights, self._vocabulary[0])
        self._plain = model

    @property
    def vocabulary(self) -> int:
        return int(self._plain.config.vocab_size)

    def tokens(self) -> list[int]:
        """What this model is compared on: fewer tokens where a token costs much."""
        wide = self._plain.config.hidden_size >= WIDE
        return probe_tokens(self.vocabulary, FEW_TOKENS if wide else PROBE_TOKENS)

    def _arithmetic(self) -> Any:
        return _Float64() if self.dtype == torch.float64 else nullcontext()

    @torch.no_grad()
    def hidden(self, tokens: Sequence[int], rows: Sequence[str | None]) -> Tensor:
        """Last hidden states [B, T, D]; row b has the memory of domain `rows[b]`, or none.

        Args:
            tokens: ids of one text, T of them.
            rows: the memory's domain of each of B rows; None: no memory.
        """
        embedded = self.reader.gather_rows(self._vocabulary[0], list(tokens), self.dtype)
        set_kv_memory(self._plain, mixed_kv(self._kv, rows))
        set_neuron_rows(self._plain, self._neurons, rows)
        slots = [self._slots.get(row or "", "__base__") for row in rows]
        names = {} if self._model is self._plain else {"adapter_names": slots}
        scale = getattr(self._plain.get_input_embeddings(), "embed_scale", torch.ones(()))  # Gemma's
        batch = (embedded * scale.to(self.dtype)).expand(len(rows), -1, -1).contiguous()
        with self._arithmetic():
            output: Tensor = self._model(inputs_embeds=batch, use_cache=False, **names).logits
        self.reader.release()
        return output

    def logits(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """`(first token id, logits [..., v])` for consecutive parts of the vocabulary."""
        embeddings, head = self._vocabulary
        own = isinstance(self.reader, LoadedWeights) or not self._plain.config.tie_word_embeddings
        untied = own and head in self.reader.tensors
        name = head if untied else embeddings
        for first, rows in self.reader.read_float_rows(name, ROWS_AT_ONCE, self.dtype):
            yield first, F.linear(hidden, rows)


class _Float64(TorchFunctionMode):
    """Runs operations that request float32 by name in float64.

    Norms and rotary angles do so in every family. They would round values that differ by 1e-16 to values that
    differ by 6e-8.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.view:  # weights are read as raw bytes
            return func(*args, **(kwargs or {}))
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        return func(
            *args,
            **{
                key: torch.float64 if value is torch.float32 else value
                for key, value in (kwargs or {}).items()
            },
        )


def _config(folder: Path, given: Mapping[str, Any] | None) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if given is None:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return CONFIG_MAPPING[given["model_type"]].from_dict(dict(given))


def _empty_model(config: Any, dtype: torch.dtype) -> tuple[Any, str, str]:
    """The stock class without weights, and the names of its embeddings and its head; the head is omitted, so
    that its `logits` are hidden states."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    names = {module: name for name, module in model.named_modules()}
    embeddings, head = names[model.get_input_embeddings()], names[model.get_output_embeddings()]
    model.set_submodule(head, nn.Identity())
    return model.eval(), f"{embeddings}.weight", f"{head}.weight"


def _with_adapters(model: Any, memories: Sequence[MemoryTensors], slots: list[str]) -> Any:
    from peft import get_peft_model

    wrapped = model
    for slot, memory in zip(slots, memories, strict=True):
        if memory.lora is None:
            continue
        if wrapped is model:
            wrapped = get_peft_model(model, memory.lora, adapter_name=slot, low_cpu_mem_usage=True)
        else:
            wrapped.add_adapter(slot, memory.lora, low_cpu_mem_usage=True)
    return wrapped.eval()


def golden(probe: Probe, hidden: Tensor, count: int = 8) -> list[dict[str, Any]]:
    """The `count` largest logits after the last token, for each row of hidden states: `{"ids", "logits",
    "dtype"}`.

    Args:
        probe: what the hidden states come from.
        hidden: last hidden states [B, T, D].
        count: logits of each row.
    """
    last = hidden[:, -1]
    best: list[tuple[Tensor, Tensor]] = []
    for first, part in probe.logits(last):
        values, ids = part.topk(min(count, part.shape[-1]), dim=-1)
        best.append((values, ids + first))
    values = torch.cat([value for value, _ in best], dim=-1)
    ids = torch.cat([index for _, index in best], dim=-1)
    top = values.topk(min(count, values.shape[-1]), dim=-1)
    dtype = str(probe.dtype).removeprefix("torch.")
    return [
        {
            "ids": ids[row][top.indices[row]].tolist(),
            "logits": [round(v, 9) for v in top.values[row].tolist()],
            "dtype": dtype,
        }
        for row in range(len(last))
    ]


def distances_to_golden(
    probe: Probe, expected: Mapping[str | None, Mapping[str, Any]]
) -> dict[str | None, float]:
    """max |logit difference| to recorded golden logits, by domain (None = no memory); one pass for each set
    of tokens.

    Args:
        probe: the checkpoint with its memories.
        expected: `tokens`, `ids` and `logits` by domain.
    """
    differences: dict[str | None, float] = {}
    for tokens in {tuple(values["tokens"]) for values in expected.values()}:
        rows = [name for name, values in expected.items() if tuple(values["tokens"]) == tokens]
        last = probe.hidden(tokens, rows)[:, -1]
        logits: dict[tuple[str | None, int], float] = {}
        for first, part in probe.logits(last):
            for row, name in enumerate(rows):
                wanted = [index for index in expected[name]["ids"] if first <= index < first + part.shape[-1]]
                logits |= {(name, index): float(part[row, index - first]) for index in wanted}
        for name in rows:
            pairs = zip(expected[name]["ids"], expected[name]["logits"], strict=True)
            off = torch.tensor([logits[name, index] - value for index, value in pairs], dtype=torch.float64)
            differences[name] = float(off.abs().max())  # NaN stays NaN
    return differences
