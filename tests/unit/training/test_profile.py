from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from koffkit.training import profile
from koffkit.training.profile import give_back, peak_memory


def test_peak_memory_is_that_of_this_program_and_not_of_what_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert peak_memory(cpu) > 1e8  # torch alone
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    5 kB\nVmRSS:\t 4 kB\n")
    monkeypatch.setattr(profile, "STATUS", status)
    assert peak_memory(cpu) == 5 * 1024
    status.unlink()  # not Linux
    assert peak_memory(cpu) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do it themselves")
def test_freed_memory_is_given_back() -> None:
    large = torch.ones(6 << 20)  # glibc takes what is smaller than this from one piece from now on
    del large
    before = resident()
    blocks = [torch.ones(1 << 18) for _ in range(300)]  # 1 MB each
    held = blocks[-1]
    del blocks
    kept = resident() - before
    give_back()
    assert kept > 200e6 and resident() - before < 50e6 and held.sum() == 1 << 18
