"""Making the repair of a run, once its masks are known: on calibration text, layer by layer, with a guard.

A part of the text is held out: a module is repaired only if that brings its output on the held-out part
closer to what it should be. Every layer is repaired on what the repaired layers before it hand on; see
`layerwise`.

Legend: F inputs of a module, D outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..artefact.digests import file_entry
from ..errors import IntegrityError
from ..masks.masks import Masks
from ..masks.repair import FORMAT, Repair, new_biases, readers
from ..masks.slicing import backbone_slices
from ..method.repair import Means, least_squares, mean_bias, output_error
from ..model.linear import plain_linear, plain_weight
from ..model.top_k_gates import TopKGates
from ..parallel import ranks
from ..storage.files import write_atomically
from .checkpoint import STORED
from .context import Context, watched
from .layerwise import MLP, walking
from .scales import folded_scales

if TYPE_CHECKING:
    from .neuron_repair import Together

STORED_AS = {name: dtype for dtype, name in STORED.items()}


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
    if ranks.leads():
        context.run.repair_file.unlink(missing_ok=True)
    if isinstance(gates, TopKGates):
        context.learned["repair"] = {"kind": "scales"}
        tensors = folded_scales(context.student, gates, masks)
        return write_repair(context, tensors, context.run.repair_file)
    if kind == "none" or context.loaded.recipe.repairs_with_neurons:
        return None
    return repair_modules(context, masks)


def repair_modules(context: Context, masks: Masks, together: Together | None = None) -> Repair | None:
    """Repair all modules that read removed channels, and write the repair.

    Args:
        context: see `Context`.
        masks: the final masks.
        together: fits the down projections and the memories' neurons; None: there are no neurons.
    """
    kind, kept = context.loaded.recipe.mask.repair, kept_inputs(context, masks)
    spec, found = context.student.spec, {}
    with walking(context, {} if together is None else together.neurons) as walk:
        for layer in watched("repair", range(spec.num_layers), context):
            walk.unpruned(layer)
            for name in _in_order(kept, spec.arch.layer(layer)):
                keep = kept[name].to(context.accelerator.device)
                if together is not None and name.endswith("mlp.down_proj"):
                    found[name] = together.fit(context, walk, layer, name, keep)
                else:
                    moments = walk.moments(layer, name, apart=False)[""]
                    found[name] = _repair(context, name, keep, moments.fit.means(), moments.check.means())
                tensors = {f"{name}.{part}": value for part, value in found[name].tensors.items()}
                context.student.repair(_stored(context, tensors))
            walk.pruned(layer)
    return _summed_up(context, kind, found)


def _in_order(modules: Iterable[str], layer: str) -> list[str]:
    """The modules of a layer in the order of the forward pass."""
    return sorted((name for name in modules if name.startswith(layer)), key=lambda name: MLP in name)


def _summed_up(context: Context, kind: str, found: Mapping[str, Repaired]) -> Repair | None:
    helped = keep_figures(context, kind, list(found.values()))
    tensors = {
        f"{module}.{part}": value for module, own in found.items() for part, value in own.tensors.items()
    }
    return write_repair(context, tensors, context.run.repair_file) if ranks.of_leader(helped) else None


def keep_figures(context: Context, kind: str, found: Sequence[Repaired]) -> int:
    """Say what a repair brought, and keep it for `run.json`; returns how many modules it helps."""
    helped = sum(bool(part.tensors) for part in found)
    before, after = sum(part.before for part in found), sum(part.after for part in found)
    context.progress.message(
        f"repair ({kind}): {helped} of {len(found)} modules, squared error of their outputs on held-out "
        f"text {before:.4g} -> {after:.4g}"
    )
    figures = {"kind": kind, "modules": len(found), "repaired": helped}
    context.learned["repair"] = figures | {"error_before": before, "error_after": after}
    return helped


def kept_inputs(context: Context, masks: Masks) -> dict[str, Tensor]:
    """The modules that read removed channels, with the channels that stay, boolean [F]."""
    spec, kept = context.student.spec, {}
    for name, cuts in backbone_slices(spec, masks).items():
        if 1 in cuts:
            width = spec.weight_shapes[name][1]
            kept[name.removesuffix(".weight")] = torch.zeros(width, dtype=torch.bool)
            kept[name.removesuffix(".weight")][torch.from_numpy(cuts[1])] = True
    return kept


def _repair(context: Context, name: str, kept: Tensor, fit: Means, check: Means) -> Repaired:
    """The repair of one module, if it helps on held-out text."""
    mask = context.loaded.recipe.mask
    linear = plain_linear(context.student.model.get_submodule(name))
    known = plain_weight(linear).detach()
    weight = known * kept
    fit, check = fit.without(linear.bias), check.without(linear.bias)
    before = output_error(weight, check)
    if mask.repair == "bias":
        bias = mean_bias(known, kept, fit)
        after = output_error(weight, check, bias)
        tensors = {"bias": bias if linear.bias is None else bias + linear.bias}
    else:
        tried = [least_squares(known, kept, fit, damping) for damping in mask.dampings]
        errors = [output_error(replaced * kept, check) for replaced in tried]
        after = min(errors)
        tensors = {"weight": tried[errors.index(after)]}
    return Repaired(tensors, before, after) if after < before else Repaired({}, before, before)


def write_repair(context: Context, replaced: Mapping[str, Tensor], path: Path) -> Repair:
    """Write a repair in the types of the base's file, with every bias that the config switches on.

    Args:
        context: see `Context`.
        replaced: tensors by the name of the base's that they stand in for.
        path: of the file, in the run folder.
    """
    from safetensors.torch import save

    spec, mask = context.student.spec, context.loaded.recipe.mask
    sizes = new_biases(spec, readers(spec, mask.structure_names)) if mask.repair == "bias" else {}
    tensors = {name: torch.zeros(size) for name, size in sizes.items()} | dict(replaced)
    typed = {name: value.cpu().contiguous() for name, value in _stored(context, tensors).items()}
    with ranks.leader_first():
        if ranks.leads():
            write_atomically(path, save(typed, metadata={"format": FORMAT}))
    context.learned["repair"]["sha256"] = file_entry(path).sha256
    return Repair.open(path, spec)


def _stored(context: Context, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the types of the base's file; a new bias in that of its module's weight."""
    known = context.student.spec.reader().tensors
    return {
        name: value.detach().to(STORED_AS[known[f"{name.rpartition('.')[0]}.weight"].dtype])
        for name, value in tensors.items()
    }


def read_repair(context: Context, learned: Mapping[str, Any] | None) -> Repair | None:
    """The repair that an earlier command of this run made.

    Args:
        context: see `Context`.
        learned: what `run.json` says of it; None: there is none.

    Raises:
        IntegrityError: the file is missing or another one.
    """
    expected = None if learned is None else learned.get("sha256")
    if learned is None or expected is None:
        return None
    path = context.run.file_of_repair(bool(learned.get("trained")))
    if not path.is_file() or file_entry(path).sha256 != expected:
        raise IntegrityError(
            f"{path}: missing, or not the file that this run made; start anew with another --output."
        )
    return Repair.open(path, context.student.spec)
