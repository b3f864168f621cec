"""What a process no longer needs does not stay with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit.parallel.lean import MAPS, let_go

pytestmark = pytest.mark.skipif(not MAPS.is_file(), reason="the system does not say what is mapped")
GLIBC = MAPS.is_file() and "/libc.so.6" in MAPS.read_text()
TAKEN = """
import ctypes
from koffkit.parallel.lean import free_at_once

def held(bytes):
    class Info(ctypes.Structure):
        _fields_ = [(str(place), ctypes.c_size_t) for place in range(4)]
        _fields_ += [("mapped", ctypes.c_size_t)] + [(f"l{place}", ctypes.c_size_t) for place in range(5)]
    mallinfo2 = libc.mallinfo2
    mallinfo2.restype = Info
    before, block = mallinfo2().mapped, libc.malloc(bytes)
    return mallinfo2().mapped - before >= bytes

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
libc.free(libc.malloc(30_000_000))  # glibc's limit is now as high as that
free_at_once()
print(held(1_000_000), held(100_000))
"""


def resident(path: Path) -> int:
    """Bytes of a file that this process has in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counts = line.endswith(str(path))
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_weights_of_a_file_leave_memory_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"large": torch.arange(1 << 22, dtype=torch.float32), "small": torch.ones(3)}, path)
    weights = load_file(path)
    assert int(weights["large"].sum()) > 0
    assert resident(path) > 4 << 22
    let_go(weights.values())
    assert resident(path) < 1 << 20
    assert torch.equal(weights["large"], torch.arange(1 << 22, dtype=torch.float32))
    assert torch.equal(weights["small"], torch.ones(3))


def test_what_is_not_of_a_file_stays() -> None:
    values = torch.ones(1 << 22)
    let_go([values, torch.empty(0)])
    assert bool((values == 1).all())


@pytest.mark.skipif(not GLIBC, reason="not glibc's allocator")
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({}, "True False"),
        ({"MALLOC_MMAP_THRESHOLD_": "4000000"}, "False False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4000000"}, "False False"),
    ],
)
def test_large_blocks_go_back_unless_the_user_said_otherwise(said: dict[str, str], answer: str) -> None:
    done = subprocess.run([sys.executable, "-c", TAKEN], env=said, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer
