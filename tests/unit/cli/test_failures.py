from __future__ import annotations

import errno
import os

import pytest

from koffkit.cli.failures import as_koffkit_error


@pytest.mark.parametrize("name", ["EIO", "EFBIG", "ENOSPC", "ENAMETOOLONG", "ENOTDIR", "ELOOP", "EINTR"])
def test_a_fault_of_the_system_is_one_line_with_the_file(name: str) -> None:
    code = getattr(errno, name)
    error = as_koffkit_error(OSError(code, os.strerror(code), "runs/x"))
    assert error is not None
    assert error.exit_code == 5
    assert str(error).startswith(f"runs/x: {os.strerror(code)}; ")
    assert "\n" not in str(error)


def test_faults_of_ours_stay_what_they_are() -> None:
    assert as_koffkit_error(ValueError("x")) is None
    assert as_koffkit_error(RuntimeError("shape mismatch")) is None


def test_memory_that_is_used_up() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        known = as_koffkit_error(error)
        assert known is not None
        assert known.exit_code == 5


def test_what_is_nested_too_deeply_for_a_library() -> None:
    error = as_koffkit_error(RecursionError("maximum recursion depth exceeded"))
    assert error is not None
    assert error.exit_code == 4
