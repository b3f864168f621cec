"""Names of a step's parts for a profiler, and the memory it took."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch


def span(name: str) -> Any:
    """A part of a step, by name, for torch's profiler; costs nothing when none is running."""
    return torch.profiler.record_function(f"koffkit.{name}")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the allocator on a GPU, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
