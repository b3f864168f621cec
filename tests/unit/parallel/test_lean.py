"""What a process no longer needs does not stay with it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit.parallel.lean import MAPS, give_back, let_go

from ...common import make_checkpoint

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
LOADED = """
import re, sys
from pathlib import Path
import torch
from koffkit.checkpoint.spec import ModelSpec
from koffkit.model.loaded import require_same_tensors
from koffkit.model.student import load_frozen
from koffkit.parallel import ranks, sharding

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def peak(run):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = megabytes("VmRSS")
    run()
    print(round(megabytes("VmHWM") - before))

folder, lean = sys.argv[1], sys.argv[2] == "lean"
load_frozen(folder, "float32")  # what is imported on the way
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=0, world_size=1)
ranks._device = torch.device("cpu")
models = []
peak(lambda: models.append(load_frozen(folder, "float32", lean=lean)))
peak(lambda: require_same_tensors(models[0], ModelSpec.open(Path(folder)), lean=lean))
peak(lambda: sharding.shard(models[0].model, models[0].model.layers, []))
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


def test_a_model_is_divided_without_being_in_memory_twice(tmp_path: Path) -> None:
    """64 MB, of which the one process of this test keeps all."""
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 9, "head_dim": 64}
    folder = make_checkpoint(tmp_path / "model", **sizes)
    found = {}
    for way in ("lean", "plain"):
        line = [sys.executable, "-c", LOADED, str(folder), way]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        found[way] = [int(text) for text in done.stdout.split()]
    looked_at, compared, divided = found["lean"]
    assert looked_at < 25 and compared < 25 and divided < 90
    looked_at, compared, divided = found["plain"]  # the file was in memory, and leaves it layer by layer
    assert looked_at > 55 and divided < 25


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


@pytest.mark.skipif(not GLIBC, reason="not glibc's allocator")
def test_what_lies_below_something_in_use_is_given_back() -> None:
    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    large = torch.ones(6 << 20)  # glibc takes what is smaller than this from one piece from now on
    del large
    before = taken()
    blocks = [torch.ones(1 << 18) for _ in range(300)]  # 1 MB each
    held = blocks[-1]
    del blocks
    kept = taken() - before
    give_back()
    assert kept > 200e6 and taken() - before < 50e6 and held.sum() == 1 << 18
