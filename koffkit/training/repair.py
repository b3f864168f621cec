"""Making the repair of a run, once its masks are known: on calibration text, module by module, with a guard.

A part of the text is held out: a module is repaired only if that brings its output on the held-out part
closer to the unpruned one. Layers are repaired on the unpruned model's activations, each alone; what the
layers before do wrong is not corrected.

Legend: F inputs of a module, D outputs, B batch, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..artefact.digests import file_entry
from ..errors import DataError, IntegrityError
from ..masks.masks import Masks
from ..masks.repair import FORMAT, Repair, new_biases, readers
from ..masks.slicing import backbone_slices
from ..method.repair import Moments, least_squares, mean_bias, squared_error
from ..model.batch import Batch
from ..model.linear import plain_linear
from ..model.top_k_gates import TopKGates
from ..storage.files import write_atomically
from .checkpoint import STORED
from .context import Context, watched
from .scales import folded_scales

HELD_OUT = 0.25
"""Share of the calibration text that decides whether a repair helps."""
STORED_AS = {name: dtype for dtype, name in STORED.items()}
AT_ONCE = 1 << 31
"""Bytes of moments that exist at one time; more modules take another pass over the text."""


@dataclass
class Repaired:
    """One module's repair, and the mean squared error of its output on held-out text.

    Attributes:
        tensors: by the name in the module, `weight` or `bias`; empty: the repair does not help.
        before, after: the error without and with it.
    """

    tensors: dict[str, Tensor]
    before: float
    after: float


def make_repair(context: Context, masks: Masks) -> Repair | None:
    """Compute the repair that the recipe asks for and write it into the run folder; None: there is none, or
    stage `restore` makes it together with the memories' neurons.

    Args:
        context: see `Context`.
        masks: the final masks.

    Raises:
        DataError: the text is too short to hold out a part.
        Interrupted: the user asked to stop.
    """
    kind, gates = context.loaded.recipe.mask.repair, context.student.gates
    context.run.repair_file.unlink(missing_ok=True)
    if isinstance(gates, TopKGates):
        context.learned["repair"] = {"kind": "scales"}
        return _written(context, folded_scales(context.student, gates, masks))
    if kind == "none" or context.loaded.recipe.repairs_with_neurons:
        return None
    kept = kept_inputs(context, masks)
    return repair_modules(context, kept, {})


def repair_modules(
    context: Context, kept: Mapping[str, Tensor], done: Mapping[str, Repaired]
) -> Repair | None:
    """Repair modules one by one, and write the repair of all.

    Args:
        context: see `Context`.
        kept: the modules, with the input channels that stay, boolean [F].
        done: modules that are repaired already.
    """
    kind, found = context.loaded.recipe.mask.repair, dict(done)
    for group in _groups(context, list(kept)):
        moments = _moments(context, group)
        for name in group:
            found[name] = _repair(context, name, kept[name], *moments.pop(name))
    helped = [name for name, part in found.items() if part.tensors]
    before = sum(part.before for part in found.values())
    after = sum(part.after for part in found.values())
    context.progress.message(
        f"repair ({kind}): {len(helped)} of {len(found)} modules, squared error of their outputs on held-out "
        f"text {before:.4g} -> {after:.4g}"
    )
    figures = {"kind": kind, "modules": len(found), "repaired": len(helped)}
    context.learned["repair"] = figures | {"error_before": before, "error_after": after}
    tensors = {
        f"{module}.{kind}": value for module, part in found.items() for kind, value in part.tensors.items()
    }
    return _written(context, tensors) if helped else None


def kept_inputs(context: Context, masks: Masks) -> dict[str, Tensor]:
    """The modules that read removed channels, with the channels that stay, boolean [F]."""
    spec, kept = context.student.spec, {}
    for name, cuts in backbone_slices(spec, masks).items():
        if 1 in cuts:
            width = spec.weight_shapes[name][1]
            kept[name.removesuffix(".weight")] = torch.zeros(width, dtype=torch.bool)
            kept[name.removesuffix(".weight")][torch.from_numpy(cuts[1])] = True
    return kept


def _groups(context: Context, names: list[str]) -> Iterator[list[str]]:
    """Modules in parts whose moments fit into `AT_ONCE`."""
    widest = max((context.student.spec.weight_shapes[f"{name}.weight"][1] for name in names), default=1)
    count = max(1, AT_ONCE // (2 * 4 * widest**2))
    for first in range(0, len(names), count):
        yield names[first : first + count]


class _Gathering:
    """Moments of the inputs of some modules: on text to fit, and on held-out text."""

    def __init__(self, context: Context, names: Sequence[str]) -> None:
        self.moments: dict[str, tuple[Moments, Moments]] = {}
        self.held_out = False
        self.handles = []
        device = context.student.head.device
        for name in names:
            module = context.student.model.get_submodule(name)
            width = plain_linear(module).in_features
            self.moments[name] = Moments.zeros(width, device), Moments.zeros(width, device)
            self.handles.append(module.register_forward_pre_hook(partial(self._receive, name)))

    def _receive(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.moments[name][self.held_out].add(inputs[0].flatten(0, -2).float())


@torch.no_grad()
def _moments(context: Context, names: Sequence[str]) -> dict[str, tuple[Moments, Moments]]:
    """Run the calibration text through the unpruned model."""
    gathering = _Gathering(context, names)
    try:
        for batch, held_out in watched("repair", _text(context), context):
            gathering.held_out = held_out
            with context.accelerator.autocast():
                there = batch.to(context.accelerator.device)
                context.unpruned(there.ids, there.positions)
    finally:
        for handle in gathering.handles:
            handle.remove()
    return gathering.moments


def _text(context: Context) -> list[tuple[Batch, bool]]:
    """Sequences [1, T] of the training text of all domains and of retention text, each with whether it is
    held out; no token comes twice."""
    recipe, corpus = context.loaded.recipe, context.corpus
    streams = [*corpus.train.values(), *([] if corpus.retention is None else [corpus.retention])]
    wanted = math.ceil(recipe.mask.repair_tokens / recipe.sequence_length / len(streams))
    text = []
    for stream in streams:
        count = min(wanted, stream.sequences_of_epoch(recipe.sequence_length))
        fitted = count - int(count * HELD_OUT) if count > 3 else max(1, count - 1)
        for visit in range(count):
            batch = stream.batch(visit, 1, recipe.sequence_length, recipe.seed)
            text.append((batch, visit >= fitted))
    if not any(held_out for _, held_out in text):
        raise DataError(
            f"mask.repair: {len(text)} sequences of calibration text are too few to hold one out; add text, "
            "raise mask.repair_tokens, shorten sequence_length, or use repair: none."
        )
    return text


def _repair(context: Context, name: str, kept: Tensor, fit: Moments, held_out: Moments) -> Repaired:
    """The repair of one module, if it helps on held-out text."""
    mask = context.loaded.recipe.mask
    linear = plain_linear(context.student.model.get_submodule(name))
    kept = kept.to(linear.weight.device)
    before = squared_error(linear.weight, kept, held_out)
    if mask.repair == "bias":
        bias = mean_bias(linear.weight, kept, fit)
        after = squared_error(linear.weight, kept, held_out, bias=bias)
        tensors = {"bias": bias if linear.bias is None else bias + linear.bias}
    else:
        tried = [least_squares(linear.weight, kept, fit, damping) for damping in mask.dampings]
        errors = [squared_error(linear.weight, kept, held_out, replaced=replaced) for replaced in tried]
        after = min(errors)
        tensors = {"weight": tried[errors.index(after)]}
    return Repaired(tensors, before, after) if after < before else Repaired({}, before, before)


def _written(context: Context, replaced: Mapping[str, Tensor]) -> Repair:
    """Write `repair.safetensors` in the types of the base's file, with every bias that the config switches
    on."""
    from safetensors.torch import save

    spec, mask = context.student.spec, context.loaded.recipe.mask
    sizes = new_biases(spec, readers(spec, mask.structure_names)) if mask.repair == "bias" else {}
    stored, typed = spec.reader().tensors, {}
    for name, value in ({name: torch.zeros(size) for name, size in sizes.items()} | dict(replaced)).items():
        dtype = STORED_AS[stored[f"{name.rpartition('.')[0]}.weight"].dtype]
        typed[name] = value.detach().cpu().to(dtype).contiguous()
    path = context.run.repair_file
    write_atomically(path, save(typed, metadata={"format": FORMAT}))
    context.learned["repair"]["sha256"] = file_entry(path).sha256
    return Repair.open(path, spec)


def read_repair(context: Context, expected: str | None) -> Repair | None:
    """The repair that an earlier command of this run made.

    Args:
        context: see `Context`.
        expected: the sha256 of its file as `run.json` has it; None: there is none.

    Raises:
        IntegrityError: the file is missing or another one.
    """
    if expected is None:
        return None
    path = context.run.repair_file
    if not path.is_file() or file_entry(path).sha256 != expected:
        raise IntegrityError(
            f"{path}: missing, or not the file that this run made; start anew with another --output."
        )
    return Repair.open(path, context.student.spec)
