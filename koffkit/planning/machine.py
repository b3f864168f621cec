"""How fast this machine is: measured once, and kept in the user's cache.

Three numbers make a time of the work of a step (`work`): operations of matrix products a second, bytes of
memory a second, and the time to start one operator.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.gguf import cache_folder
from ..errors import UsageError
from ..storage.files import make_folder, write_json
from .work import Work

FORMAT = 1
ROUNDS = 5
ROWS, WIDE, INNER = 512, 2048, 1024
"""Of the matrix product that is timed: tokens of a batch by the sizes of a small LLM."""
COPIED = 1 << 26
"""Bytes of the tensor that is copied, more than caches hold."""
CALLS = 200
DTYPES = ("float32", "bfloat16")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was measured.

    Args:
        operations: of matrix products a second, by dtype.
        bytes: of memory, read or written, a second.
        call: seconds to start an operator.
        at_once: operators are started while earlier ones compute, as on a GPU.
    """

    operations: dict[str, float]
    bytes: float
    call: float
    at_once: bool

    def seconds(self, work: Work, dtype: str) -> float:
        """The time that a step takes."""
        rate = self.operations.get(dtype, self.operations[DTYPES[-1]])
        computing = work.operations / rate + work.bytes / self.bytes
        calling = work.calls * self.call
        return max(computing, calling) if self.at_once else computing + calling


def known_machine(device: dict[str, Any]) -> Machine | None:
    """What was measured before; None if that was another machine, another number of threads or nothing.

    Args:
        device: from `devices.device_at_hand`.
    """
    try:
        kept = json.loads(_file(device).read_text(encoding="utf-8"))
        return Machine(**kept["machine"]) if kept["of"] == machine_key(device) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def measured_machine(device: dict[str, Any], name: str | None = None) -> Machine:
    """What is known, or else measured now, which takes a second or two and imports torch.

    Args:
        device: from `devices.device_at_hand`. name: of the device, for torch.
    """
    machine = known_machine(device)
    if machine is None:
        machine = _measure(name or str(device["kind"]))
        folder = cache_folder()
        try:
            make_folder(folder)
            write_json(_file(device), {"of": machine_key(device), "machine": asdict(machine)})
        except (OSError, UsageError):  # a home that cannot be written to: measured again next time
            pass
    return machine


def _file(device: dict[str, Any]) -> Path:
    return cache_folder() / f"machine-{device['kind']}.json"


def machine_key(device: dict[str, Any]) -> dict[str, Any]:
    """What figures of this machine depend on.

    Args:
        device: from `devices.device_at_hand`.
    """
    name = device.get("name") or _processor()
    threads = os.environ.get("OMP_NUM_THREADS") or device.get("cores")
    return {"format": FORMAT, "name": name, "threads": str(threads)}


def _processor() -> str:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())  # `processor` would start a program


def _measure(name: str) -> Machine:
    import torch

    device = torch.device(name)

    def best(run: Callable[[], Any], repeats: int = 1) -> float:
        """The fewest seconds of a run: other work on the machine makes it longer, never shorter."""
        taken = []
        for _ in range(ROUNDS + 1):  # the first is not counted
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begin)
        return min(taken[1:])

    operations = {}
    for dtype in DTYPES:
        left = torch.ones(ROWS, INNER, device=device, dtype=getattr(torch, dtype))
        right = torch.ones(INNER, WIDE, device=device, dtype=left.dtype)
        operations[dtype] = 2.0 * ROWS * INNER * WIDE / best(lambda: left @ right)  # noqa: B023 - run at once
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    small, linear = torch.zeros(8, 8, device=device), torch.nn.Linear(8, 8, device=device)
    return Machine(
        operations=operations,
        bytes=2.0 * COPIED / best(lambda: target.copy_(source)),
        call=best(lambda: linear(small), CALLS) / CALLS,
        at_once=device.type != "cpu",
    )
