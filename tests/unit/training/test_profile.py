from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from koffkit.training import profile
from koffkit.training.profile import peak_memory


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
