"""Training what the backbone keeps (ours; the paper's backbone is the base, sliced): the modules that read
removed units learn, by distillation and for all domains at once, to do without them.

What they learn is stored like a repair, which it continues: tensors that stand in for the base's while the
model is pruned.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UsageError
from ..masks.convert import as_masks
from ..model.linear import plain_linear, plain_weight
from .context import Context
from .repair import kept_inputs, write_repair

KIND = "trained"


def begin(context: Context) -> None:
    """Let the backbone's modules train from now on, from the repair's weights where there is one.

    Args:
        context: its masks are final.

    Raises:
        UsageError: the backbone is sliced already, and shared with other memories.
    """
    if context.teacher is not None or context.masks is None:
        raise UsageError(
            "recover: lr.backbone trains the backbone that all memories share, and this one is finished; set "
            "it to null."
        )
    repaired, model = context.student.repaired, context.student.model
    for module in kept_inputs(context, as_masks(context.masks)):
        name = f"{module}.weight"
        weight = plain_weight(plain_linear(model.get_submodule(module)))
        start = repaired.get(name, weight).detach().to(weight.device, torch.float32)
        context.backbone[name] = nn.Parameter(start.clone())
    context.student.repair(repaired | context.backbone)


def finish(context: Context) -> None:
    """Write what the backbone has learned, and use it as it was written."""
    trained = {name: value.detach() for name, value in context.backbone.items()}
    context.backbone.clear()
    context.learned["repair"] = {"kind": KIND} | (context.learned.get("repair") or {}) | {"trained": True}
    tensors = context.student.repaired | trained
    context.use_repair(write_repair(context, tensors, context.run.trained_file))
