"""Names of a step's parts for the profiler, and peak memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")


def span(name: str) -> Any:
    """Mark a part of a step for torch's profiler; free of cost when no profiler is running."""
    return torch.profiler.record_function(f"koffkit.{name}")


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the allocator on a GPU, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = STATUS.read_text().splitlines() if STATUS.is_file() else []
    for line in status:  # what getrusage says begins with what the process that started this one had
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
