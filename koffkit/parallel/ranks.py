"""What the processes of one run tell each other. No other module speaks to `torch.distributed`.

All processes run the same program on the same numbers, so that each knows what the others know; process 0
leads: it alone writes, and where a figure leads to a decision, the decision is the leader's. With one process
every function here does nothing, and nothing of `torch.distributed` is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from ..errors import PeerLost, UsageError
from . import place

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""The longest that processes wait for each other: one may tokenise a corpus meanwhile. Those that die are
noticed at once, whatever this is."""
SUPPORTED = ("MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_MUSA")
ELSEWHERE = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
"""What accelerate may be set up for and koffkit does not do, by the variable that its launcher sets. On a CPU
accelerate would not say so, elsewhere it would miss their packages first."""
_device: torch.device | None = None  # of this process among several; None: it is alone


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Be one of the processes that the launcher started, until the block ends.

    Args:
        device: as the user named it; each process has its own, so a name with a number is refused.

    Raises:
        UsageError: the device cannot be divided, or accelerate is configured for something that koffkit does
            not do.
        PeerLost: the processes do not find each other, or in the block another one has ended.
    """
    global _device
    for name, engine in ELSEWHERE.items():
        if place.launcher_says(name):
            raise _unsupported(engine)
    if place.num_processes() == 1 or _device is not None:
        yield
        return
    if device is not None and ":" in device:
        raise UsageError(
            f"--device {device}: {place.num_processes()} processes cannot share it; leave the number out."
        )
    from accelerate.utils import patch_environment

    # Whoever asked accelerate for FSDP gets it from koffkit. If they knew, transformers would load no weights
    # but in the first process of a machine, and accelerate wrap the model once more.
    with patch_environment(accelerate_use_fsdp="false"):
        _device = _join(device)
        try:
            yield
        except RuntimeError as error:
            if _is_of_peers(error):  # FSDP calls for the others itself
                raise _lost() from error
            raise
        finally:
            _device = None


def _join(device: str | None) -> torch.device:
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or torch.accelerator.current_accelerator(check_available=True) is None
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    with _peers():
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    kind = str(state.distributed_type.value)
    if kind not in SUPPORTED:
        raise _unsupported(kind)
    found: torch.device = state.device
    return found


def _unsupported(kind: str) -> UsageError:
    return UsageError(
        f"accelerate is set up for {kind}, which koffkit does not do; use {' or '.join(SUPPORTED[:2])} "
        "(accelerate launch --multi_gpu, or --use_fsdp --fsdp_version 2), or torchrun."
    )


def together() -> bool:
    """Whether several processes work on this run."""
    return _device is not None


def rank() -> int:
    """The number of this process, from 0."""
    return place.rank() if together() else 0


def size() -> int:
    """How many processes work on this run."""
    return place.num_processes() if together() else 1


def device() -> torch.device:
    """Where this process, one of several, computes."""
    assert _device is not None
    return _device


def leads() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes are here: what the leader has written, the others can read."""
    if together():
        import torch

        with _peers():
            torch.distributed.all_reduce(torch.zeros(1, device=_device))
            if _device is not None and _device.type != "cpu":
                torch.accelerator.synchronize(_device)


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader runs the block, then the others do; they wait for nothing if it fails."""
    if not leads():
        wait()
    yield
    if leads():
        wait()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, the same bits in each."""
    if together():
        import torch

        with _peers():
            pending = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in pending:
                work.wait()


def added_up(figures: Mapping[str, float]) -> dict[str, float]:
    """Numbers, each summed over all processes; every process has the same names."""
    if not together():
        return dict(figures)
    import torch

    names = sorted(figures)
    values = torch.tensor([float(figures[name]) for name in names], dtype=torch.float64, device=_device)
    add_up([values])
    return dict(zip(names, values.tolist(), strict=True)) if names else {}


def collected(figure: int) -> list[int]:
    """One number of every process, by rank."""
    if not together():
        return [figure]
    import torch

    values = torch.zeros(size(), dtype=torch.int64, device=_device)
    values[rank()] = figure
    add_up([values])
    return [int(value) for value in values.tolist()]


def take_from_leader(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with the leader's."""
    if together():
        import torch

        with _peers(), torch.no_grad():
            for tensor in tensors:
                value = tensor.detach().to(_device).contiguous()  # some may lie on another device
                torch.distributed.broadcast(value, 0)
                tensor.copy_(value)


def of_leader(value: T) -> T:
    """The leader's value, of anything that JSON can hold."""
    if not together():
        return value
    import torch

    text = json.dumps(value).encode() if leads() else b""
    size = torch.tensor([len(text)], device=_device)
    take_from_leader([size])
    room = bytearray(text.ljust(int(size), b" ") if int(size) else b" ")
    letters = torch.frombuffer(room, dtype=torch.uint8).to(_device)
    take_from_leader([letters])
    told: T = json.loads(bytes(letters.tolist()))
    return told


def agreed(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop` in a form that says the same in all processes: True as soon as one of them was asked to. All
    call it equally often."""
    if not together():
        return stop
    return lambda: added_up({"stop": float(stop())})["stop"] > 0


@contextmanager
def _peers() -> Iterator[None]:
    """Say so if another process has ended."""
    try:
        yield
    except NotImplementedError:  # a RuntimeError too, and a fault of ours
        raise
    except RuntimeError as error:  # of gloo and of NCCL; DistBackendError is one too
        raise _lost() from error


def _is_of_peers(error: RuntimeError) -> bool:
    """Whether a call of `torch.distributed` has failed; gloo's errors have no type of their own."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _lost() -> PeerLost:
    """The error of a process that others have left."""
    return PeerLost(
        "another process of this run has ended; see why above (or in its machine's log), then continue with "
        "the same command and --resume, with as many processes as you like."
    )
