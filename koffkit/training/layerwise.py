"""The unpruned and the pruned model on the same text, side by side, one layer after the other.

What a module of the pruned model should write is what it writes in the unpruned one, plus what the residual
stream has lost on the way. So a repair is made for the inputs that the module will have, and for the errors
of the layers before it too.

Legend: T tokens of a sequence, D hidden, F inputs of a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, Interrupted
from ..method.repair import Moments
from ..model.batch import Batch
from ..model.linear import plain_linear
from ..model.neuron_memory import NeuronMemory, mlp_modules, set_neuron_memory, use_neuron_memory
from ..model.student import LayerCalls, Student
from .context import Context

CHECKED = 4
"""Every so many sequences one is kept out of the fit, to check it."""
RETENTION = "retention text"
"""The name of retention text among the domains; no domain has a space in its name."""
ROUNDING = 1e-3
"""Layers whose outputs are the sum of their modules' to this share."""
ATTENTION, MLP = "self_attn.o_proj", "mlp"


@dataclass
class Passage:
    """One sequence on its way through both models.

    Args:
        stream: the domain, or `RETENTION`.
        check: it is kept out of fits.
        calls: how layers of the pruned model are called. above: those of the unpruned one.
        unpruned, pruned: hidden states [1, T, D] that enter the next layer of either model.
        entered: what entered the present layer of the unpruned model, [1, T, D].
        written: what modules of the present layer write in the unpruned model, [1, T, D] by name.
    """

    stream: str
    check: bool
    calls: LayerCalls
    above: LayerCalls
    unpruned: Tensor
    pruned: Tensor
    entered: Tensor
    written: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ReadAndWanted:
    """Moments of what a module reads and should write, on text to fit and on text to check."""

    fit: Moments
    check: Moments

    def add(self, check: bool, read: Tensor, wanted: Tensor) -> None:
        """Add tokens, [1, T, F] and [1, T, D]."""
        moments = self.check if check else self.fit
        moments.add(read.flatten(0, -2).float(), wanted.flatten(0, -2).float())


class Walk:
    """Both models and all calibration text, before a layer.

    Args:
        context: its masks are final.
        neurons: of the memories, by domain and layer; may be changed on the way.
    """

    def __init__(self, context: Context, neurons: dict[str, dict[int, Any]]) -> None:
        self.context, self.neurons = context, neurons
        self.teacher = context.teacher or context.student
        known: dict[tuple[Student, int], LayerCalls] = {}
        self.passages = [
            self._begin(stream, check, batch, known) for stream, batch, check in calibration_text(context)
        ]

    def _begin(
        self, stream: str, check: bool, batch: Batch, known: dict[tuple[Student, int], LayerCalls]
    ) -> Passage:
        batch = batch.to(self.context.accelerator.device)
        hidden, above = self._enter(self.teacher, batch, known)
        pruned, calls = hidden, above
        if self.teacher is not self.context.student:
            pruned, calls = self._enter(self.context.student, batch, known)
        return Passage(stream, check, calls, above, hidden, pruned, hidden)

    def _enter(
        self, model: Student, batch: Batch, known: dict[tuple[Student, int], LayerCalls]
    ) -> tuple[Tensor, LayerCalls]:
        """What enters the first layer of a model, and how its layers are called."""
        key = model, batch.ids.shape[1]
        with self.context.accelerator.autocast():
            hidden, calls = model.layer_calls(
                batch.ids, batch.positions, known.get(key) if batch.positions is None else None
            )
        if batch.positions is None:
            known[key] = calls
        return hidden, calls

    def _through(self, index: int, *, pruned: bool) -> Iterator[tuple[Passage, Tensor]]:
        """Every passage with its hidden states after the layer."""
        context = self.context
        for passage in self.passages:
            if context.stop():
                raise Interrupted("interrupted in repair; continue with the same command and --resume.")
            if self.neurons:
                own: NeuronMemory | None = self.neurons.get(passage.stream) if pruned else None
                set_neuron_memory(context.student.model, own)
            with context.accelerator.autocast():
                if pruned:
                    after = context.student.run_layer(index, passage.pruned, passage.calls, context.masks)
                else:
                    after = self.teacher.run_layer(index, passage.unpruned, passage.above, None)
            yield passage, after

    def unpruned(self, index: int) -> None:
        """Take the unpruned model through a layer, and remember what the modules write there."""
        names = [self.context.student.spec.arch.layer(index) + part for part in (ATTENTION, MLP)]
        with self._watching(self.teacher, names) as seen:
            for passage, after in self._through(index, pruned=False):
                passage.entered, passage.unpruned = passage.unpruned, after
                passage.written = dict(zip((ATTENTION, MLP), (seen[name] for name in names), strict=True))

    def pruned(self, index: int) -> None:
        """Take the pruned model through the layer that the unpruned one has left."""
        for passage, after in self._through(index, pruned=True):
            passage.pruned = after

    def moments(self, index: int, name: str, *, apart: bool = True) -> dict[str, ReadAndWanted]:
        """What a module of the pruned model reads and should write, by stream.

        Args:
            index: of the layer; the unpruned model has left it, the pruned one has not.
            name: of the module.
            apart: each stream has its own; else all are together under the empty name.
        """
        linear = plain_linear(self.context.student.model.get_submodule(name))
        sizes = linear.in_features, linear.out_features, linear.weight.device
        streams = {passage.stream if apart else "" for passage in self.passages}
        found = {stream: ReadAndWanted(Moments(*sizes), Moments(*sizes)) for stream in sorted(streams)}
        for passage, read, wanted in self._read_and_wanted(index, name):
            found[passage.stream if apart else ""].add(passage.check, read, wanted)
        return found

    def moments_with_neurons(self, index: int, domain: str) -> ReadAndWanted:
        """What the MLP of a sliced layer should write in a domain's text, and what its down projection reads
        together with the columns of the memory's neurons, in this order: K + n channels.

        Args:
            index: as in `moments`. domain: whose memory.
        """
        own, mlp = self.neurons[domain][index], dict(mlp_modules(self.context.student.model))[index]
        down = plain_linear(mlp.down_proj)
        sizes = down.in_features + len(own.index), down.out_features, down.weight.device
        found = ReadAndWanted(Moments(*sizes), Moments(*sizes))
        layer = self.context.student.spec.arch.layer(index)
        with self._reading(layer + MLP) as entered:
            for passage, read, wanted in self._read_and_wanted(index, f"{layer}{MLP}.down_proj"):
                if passage.stream == domain:
                    given = own.activations(entered[0], mlp.act_fn)
                    found.add(passage.check, torch.cat([read, given], -1), wanted)
        return found

    def _read_and_wanted(self, index: int, name: str) -> Iterator[tuple[Passage, Tensor, Tensor]]:
        """Every passage with what a module reads, [1, T, F], and should write, [1, T, D]."""
        student, part = self.context.student, ATTENTION if ATTENTION in name else MLP
        writes = student.spec.arch.layer(index) + part
        with self._watching(student, [writes]) as seen, self._reading(name) as read:
            for passage, after in self._through(index, pruned=True):
                wanted = passage.written[part]
                if _adds_up(passage):
                    wanted = wanted + _lost(passage, part, after, seen[writes])
                yield passage, read[0], wanted

    @contextmanager
    def _watching(self, student: Student, names: list[str]) -> Iterator[dict[str, Tensor]]:
        """What modules of a model write in the last call."""
        seen: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        model = student.model
        handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _reading(self, name: str) -> Iterator[list[Tensor]]:
        """What a module reads in the last call, removed channels included."""
        read: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            read[:] = [inputs[0]]

        module = self.context.student.model.get_submodule(name)
        handle = module.register_forward_pre_hook(keep, prepend=True)
        try:
            yield read
        finally:
            handle.remove()


def _lost(passage: Passage, part: str, after: Tensor, written: Tensor) -> Tensor:
    """What the residual stream of the pruned model lacks where a module's output is added, [1, T, D].

    Args:
        passage: between the two models.
        part: of the layer.
        after: the pruned model's hidden states after the layer.
        written: what the part wrote for them.
    """
    if part == ATTENTION:
        return passage.entered - passage.pruned
    return (passage.unpruned - passage.written[part]) - (after - written)


def _adds_up(passage: Passage) -> bool:
    """Whether the layer's output is what entered it plus what its modules write; some families normalise or
    scale that first, and then only the module's own output is a target."""
    error = passage.unpruned - passage.entered - passage.written[ATTENTION] - passage.written[MLP]
    change = passage.unpruned - passage.entered
    return bool(error.abs().amax() <= ROUNDING * change.abs().amax())


@contextmanager
def walking(context: Context, neurons: dict[str, dict[int, Any]]) -> Iterator[Walk]:
    """A walk from the first layer on, without LoRA and KV memory.

    Args:
        context: its masks are final.
        neurons: see `Walk`.

    Raises:
        DataError: the text is too short to hold out a part.
    """
    student = context.student
    student.eval()
    if student.memories is not None:
        student.memories.attach(None)
    if neurons:
        use_neuron_memory(student.model)
    try:
        with torch.no_grad():
            yield Walk(context, neurons)
    finally:
        if neurons:
            set_neuron_memory(student.model, None)


def calibration_text(context: Context) -> list[tuple[str, Batch, bool]]:
    """`mask.repair_tokens` of the training text of all domains and of retention text: sequences [1, T] with
    the name of their text, and whether they only check. No token comes twice.

    Raises:
        DataError: there is too little to keep some of it out.
    """
    recipe, corpus = context.loaded.recipe, context.corpus
    streams = dict(corpus.train)
    if corpus.retention is not None:
        streams[RETENTION] = corpus.retention
    wanted = math.ceil(recipe.mask.repair_tokens / recipe.sequence_length / len(streams))
    text = []
    for name, stream in streams.items():
        for visit in range(min(wanted, stream.sequences_of_epoch(recipe.sequence_length))):
            batch = stream.batch(visit, 1, recipe.sequence_length, recipe.seed)
            text.append((name, batch, visit % CHECKED == 1))
    if not any(check for _, _, check in text):
        raise DataError(
            f"mask.repair: {len(text)} sequences of calibration text are too few to hold one out; add text, "
            "raise mask.repair_tokens, shorten sequence_length, or use repair: none."
        )
    return text
