"""What torch keeps of kernels that it compiled."""

from __future__ import annotations

import subprocess
import sys

GROWN = """
import resource
from koffkit.cli.console import quiet_libraries
quiet_libraries()
import torch
torch.set_num_threads(1)
weights = [torch.zeros(width, 256, dtype=torch.bfloat16) for width in (64, 128, 256, 512, 768)]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with torch.inference_mode():
    for rows in range(1, 500):
        for weight in weights:
            torch.nn.functional.linear(torch.zeros(rows, 256, dtype=torch.bfloat16), weight)
        if rows == 50:
            warm = peak()
print(peak() - warm)
"""


def test_products_of_ever_new_sizes_take_no_more_memory() -> None:
    """On CPUs that multiply bfloat16, torch keeps a kernel for every number of rows: without limit 767 MB."""
    done = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # MB
