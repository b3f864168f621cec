"""The frozen weights of a model divided among the processes of a run (FSDP2): each keeps its part, and has a
layer whole only while it computes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import place, ranks
from .lean import let_go

if TYPE_CHECKING:
    from torch import Tensor, nn


def asked_by_accelerate() -> bool:
    """Whether `accelerate launch --use_fsdp` (or `accelerate config`) asks several processes for it."""
    return place.num_processes() > 1 and place.launcher_says("ACCELERATE_USE_FSDP")


def shard(model: nn.Module, layers: Sequence[nn.Module], trained: Iterable[Tensor]) -> None:
    """Divide the frozen matrices of the layers. Vectors, what is trained, embeddings and the head stay whole
    in every process. With one process nothing happens.

    Args:
        model: whose forward pass goes through the layers; on the CPU, so that no device ever holds all of it.
        layers: its decoder layers.
        trained: parameters that are learned now or later.
    """
    if not ranks.together():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device().type, (ranks.size(),))
    learned = set(trained)
    for layer in layers:
        kept = {value for value in layer.parameters() if value in learned or value.dim() < 2}
        read = [value.data for value in layer.parameters() if value not in kept]
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        let_go(read)
    fully_shard(
        model, mesh=mesh, ignored_params={value for value in model.parameters() if not _divided(value)}
    )


def to_device(module: nn.Module, device: object) -> None:
    """Move what is not divided; the parts of what is are on their devices already."""
    for part in module.modules():
        for value in part.parameters(recurse=False):
            if not _divided(value):
                value.data = value.data.to(device)  # type: ignore[call-overload]
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)  # type: ignore[call-overload]


def whole(weight: Tensor) -> Tensor:
    """A weight of which this process may hold a part. All processes call it alike."""
    if not _divided(weight):
        return weight
    full: Tensor = weight.full_tensor()  # type: ignore[attr-defined]
    return full


def broken_off(model: nn.Module) -> None:
    """Note that a forward pass of a model, divided or not, has ended before its end."""
    reset = getattr(model, "reset_iter_state", None)
    if reset is not None:
        reset()


def is_divided(module: nn.Module) -> bool:
    """Whether processes hold parts of it, and so must go through it together."""
    return any(_divided(value) for value in module.parameters())


def bytes_at_hand(module: nn.Module) -> int:
    """Bytes of the parameters that this process holds."""
    own = (value.to_local() if _divided(value) else value for value in module.parameters())  # type: ignore[attr-defined]
    return sum(value.numel() * value.element_size() for value in own)


def _divided(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")
