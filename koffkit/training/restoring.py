"""Choosing the neurons that a memory gives back, on the domain's own text (ours).

Legend: B batch, T tokens, D hidden, V vocabulary, L layers, U neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.spec import ModelSpec
from ..method.restoring import NeuronSums, choose_neurons, mixed
from ..model.linear import plain_linear, plain_weight
from ..model.neuron_memory import BIASES, WEIGHTS, Neurons, mlp_modules
from ..parallel import ranks
from ..parallel.sharding import whole
from ..planning.neurons import STRUCTURE, restored_neurons
from .choosing import Learning, learned_scores
from .context import Context, watched
from .shared import computed_once

SEED = 7919
"""Of the labels drawn, beside the recipe's."""


def choose_by_domain(
    context: Context,
    score: str,
    own_share: float,
    batches: int,
    batch_size: int,
    learning: Learning | None = None,
) -> dict[str, dict[int, Tensor]]:
    """The removed neurons that each domain gets back: their places by layer, by domain.

    Args:
        context: its masks are final; the unpruned model is its teacher, or its student with all gates off.
        score: `sensitivity` or `activation`.
        own_share: see `koffkit.method.restoring.mixed`.
        batches: batches of training text of each domain.
        batch_size: sequences in a batch.
        learning: how the choice by these scores is improved; None: it stays.

    Raises:
        IntegrityError: a loss that is learned from is not a number.
        Interrupted: the user asked to stop.
    """
    masks, wanted = context.final_masks, context.loaded.recipe.memory.neurons
    assert masks is not None and wanted is not None
    student = context.teacher or context.student
    spec = student.spec
    student.eval()  # no gradient checkpointing: a layer's activation and slope are read in one pass
    settings = {"batches": batches, "batch_size": batch_size}
    found = computed_once(
        context, "restore", settings, lambda: _by_name(_sums_by_domain(context, batches, batch_size))
    )
    ranks.take_from_leader(found[name] for name in sorted(found))  # one choice, whatever each process rounded
    sums = {domain: _of_domain(found, domain) for domain in context.corpus.domains}
    columns = torch.stack(
        [plain_weight(mlp.down_proj).float().norm(dim=0) for _, mlp in mlp_modules(student.model)]
    )
    scores = {
        domain: own.activation(columns.to(own.squares.device)) if score == "activation" else own.sensitivity()
        for domain, own in sums.items()
    }
    removed = masks[STRUCTURE].to(columns.device) == 0
    count = restored_neurons(wanted, spec, stored_dtype(spec).itemsize)
    final = mixed(scores, own_share)
    if learning is not None:
        final = learned_scores(context, final, count, wanted.layout, learning)
        ranks.take_from_leader(final.values())
    return {domain: choose_neurons(own, removed, count, wanted.layout) for domain, own in final.items()}


def _by_name(sums: Mapping[str, NeuronSums]) -> dict[str, Tensor]:
    return {
        f"{domain}.{name}": torch.as_tensor(value)
        for domain, own in sums.items()
        for name, value in vars(own).items()
    }


def _of_domain(tensors: Mapping[str, Tensor], domain: str) -> NeuronSums:
    squares, slopes, products, tokens = (
        tensors[f"{domain}.{name}"] for name in ("squares", "slopes", "products", "tokens")
    )
    return NeuronSums(squares, slopes, products, int(tokens))


def stored_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype of the MLPs' weights in the base's files."""
    from ..checkpoint.reader import torch_dtype

    return torch_dtype(spec.reader().tensors[f"{spec.arch.layer(0)}mlp.down_proj.weight"].dtype)


def _sums_by_domain(context: Context, batches: int, batch_size: int) -> dict[str, NeuronSums]:
    recipe, corpus = context.loaded.recipe, context.corpus
    student = context.teacher or context.student
    shape, device = student.spec.shape, context.accelerator.device
    sums = {
        domain: NeuronSums.zeros(shape.num_layers, shape.intermediate, device) for domain in corpus.domains
    }
    jobs = [(domain, visit) for domain in corpus.domains for visit in range(batches)]
    for place, (domain, visit) in enumerate(watched("restore", jobs, context)):
        batch = corpus.train[domain].batch(visit, batch_size, recipe.sequence_length, recipe.seed).to(device)
        generator = torch.Generator().manual_seed((recipe.seed + SEED) * 1_000_003 + place)
        with _reading(student.model, sums[domain]), context.accelerator.autocast():
            hidden = student(batch.ids, positions=batch.positions)
            hidden.backward(
                _likelihood_slope(hidden.detach(), student.head, generator, recipe.distill.chunk_tokens)
            )
        sums[domain].tokens += batch.ids.numel()
    return sums


@contextmanager
def _reading(model: Any, sums: NeuronSums) -> Iterator[None]:
    """Add up what the MLPs' neurons do in the forward and backward passes of this block."""

    def read(index: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        activation = inputs[0]
        values = activation.detach().float().flatten(0, -2)
        sums.squares[index] += values.square().sum(0)

        def with_slope(slope: Tensor) -> None:
            slopes = slope.float().flatten(0, -2)
            sums.slopes[index] += slopes.square().sum(0)
            sums.products[index] += (slopes * values).square().sum(0)

        activation.register_hook(with_slope)

    def differentiable(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    handles = [model.get_input_embeddings().register_forward_hook(differentiable)]
    handles += [
        mlp.down_proj.register_forward_pre_hook(partial(read, index)) for index, mlp in mlp_modules(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _likelihood_slope(hidden: Tensor, head: Tensor, generator: torch.Generator, chunk_tokens: int) -> Tensor:
    """The derivative, by the last hidden states [B, T, D], of the log-likelihood of labels drawn from the
    model itself; the logits of a chunk of tokens exist at one time."""
    rows = hidden.flatten(0, 1)
    slopes = torch.empty_like(rows)
    for first in range(0, len(rows), chunk_tokens):
        part = rows[first : first + chunk_tokens].to(head.dtype)
        probabilities = (part @ head.T).float().softmax(-1)
        labels = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(head.device)
        slope = head[labels] - probabilities.to(head.dtype) @ head
        slopes[first : first + chunk_tokens] = slope.to(slopes.dtype)
    return slopes.view_as(hidden)


def silent_outputs(spec: ModelSpec, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Outputs of the MLPs that a structure masks (`mlp_output`): channels [D'] by layer.

    Args:
        spec: the unpruned model.
        masks: hard gates, [L, U] by structure.
    """
    silent: dict[int, Tensor] = {}
    for name, table in masks.items():
        for cut in spec.arch.structures[name].masked_cuts:
            if cut.module == "mlp.down_proj":
                units = torch.from_numpy(cut.unit_of_channel(spec.shape)).to(table.device)
                silent |= {layer: (keep[units] == 0).nonzero().flatten() for layer, keep in enumerate(table)}
    return silent


def take_neurons(
    model: Any,
    places: Mapping[int, Tensor],
    dtype: torch.dtype,
    silent: Mapping[int, Tensor] | None = None,
    columns: Mapping[int, Tensor] | None = None,
) -> dict[int, Neurons]:
    """Copies of neurons of a model, by layer.

    Args:
        model: the unpruned transformers model.
        places: of the neurons, by layer.
        dtype: of the copies.
        silent: outputs of the MLPs that stay zero, by layer (`silent_outputs`).
        columns: columns of down [D, n] that stand in for the model's own, by layer.
    """
    taken = {}
    for index, mlp in mlp_modules(model):
        if index not in places:
            continue
        chosen = places[index]
        values = {"neurons": chosen}
        for name in (*WEIGHTS.values(), *BIASES.values()):
            module, _, half = name.partition(".")
            value = getattr(plain_linear(getattr(mlp, module)), half)
            if value is not None:
                value = whole(value)
                own = value[:, chosen] if module == "down_proj" else value[chosen]
                values[name] = own.detach().to(dtype).clone()
        if columns is not None and index in columns:
            values["down_proj.weight"] = columns[index].to(dtype)
        values["down_proj.weight"][(silent or {}).get(index, [])] = 0
        taken[index] = Neurons.of(values)
    return taken


__all__ = ["choose_by_domain", "silent_outputs", "stored_dtype", "take_neurons"]
