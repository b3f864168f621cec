"""Where a model runs and in which dtype: the values of `--device` and `--dtype`.

Training leaves the choice to accelerate; everything else chooses here, and gets the same device.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
NVIDIA = Path("/proc/driver/nvidia/gpus")
"""Where Linux lists the cards of that maker."""
KINDS = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
"""Kinds of device that models run on; torch has others, such as `meta`."""


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device with this name; None: the accelerator of this machine, or the CPU if it has none.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps`, ...

    Raises:
        UsageError: there is no such kind of device.
        ResourceError: this machine, or this build of torch, does not have it.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return accelerator or torch.device("cpu")
    require_kind(str(name))
    kind, _, number = str(name).partition(":")
    count = 1
    if kind != "cpu":
        same = accelerator is not None and accelerator.type == kind
        count = torch.accelerator.device_count() if same else 0
    if int(number or 0) >= count:
        raise ResourceError(
            f"device {str(name)!r}: not available here; there is {', '.join(_available(accelerator))}. "
            "Leave it out for the accelerator of the machine, or the CPU without one."
        )
    return torch.device(name)


def require_kind(name: str) -> None:
    """Refuse what is no name of a device; needs no torch.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps`, ...

    Raises:
        UsageError: there is no such kind of device, or what follows the colon is no number.
    """
    if not re.fullmatch(rf"({'|'.join(KINDS)})(:[0-9]{{1,2}})?", name):
        raise UsageError(f"device {name!r}: not one of {', '.join(KINDS)}, or one with a number: cuda:0.")


def require_device(name: str | None) -> None:
    """Refuse a device that is not there before anything is read or written; see `find_device`."""
    if name is not None:
        find_device(name)


def _available(accelerator: torch.device | None) -> list[str]:
    import torch

    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]


def device_at_hand(name: str | None = None) -> dict[str, Any]:
    """What models will most likely run on, told without importing torch: `kind` (cpu, cuda, mps), and `name`
    or `cores`.

    Args:
        name: the device that the user names; only `cpu` changes what is said.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        built_without = version("torch").endswith("+cpu")
    except PackageNotFoundError:
        built_without = True
    cards = sorted(NVIDIA.glob("*/information"))
    if cards and not built_without and name != "cpu":
        lines = cards[0].read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
        return {"kind": "cuda", "name": name, "count": len(cards)}
    if sys.platform == "darwin" and platform.machine() == "arm64" and name != "cpu":
        return {"kind": "mps", "name": platform.processor()}
    affinity = getattr(os, "sched_getaffinity", None)
    return {"kind": "cpu", "cores": len(affinity(0)) if affinity else os.cpu_count() or 1}


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype with this name; None for None and `auto`, which mean the dtype of the checkpoint.

    Raises:
        UsageError: koffkit does not support it.
    """
    import torch

    if name is None or name == "auto":
        return None
    word = str(name).removeprefix("torch.")
    if word not in (*DTYPES, "float64"):
        raise UsageError(f"dtype {str(name)!r}: not one of {', '.join(DTYPES)}.")
    dtype: torch.dtype = getattr(torch, word)
    return dtype
