from __future__ import annotations

import pytest
import torch

from koffkit.devices import find_device, parse_dtype
from koffkit.errors import ResourceError, UsageError


def with_accelerators(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 0) -> None:
    """As if the machine had `count` accelerators of a kind."""
    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_the_accelerator_of_the_machine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, None)
    assert find_device() == torch.device("cpu")
    with_accelerators(monkeypatch, "cuda", 2)
    assert find_device() == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cuda:-1"])
def test_what_is_no_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=r"^device '.*': not one of cpu, cuda, mps"):
        find_device(name)


@pytest.mark.parametrize("name", ["mps", "cuda:2", "cpu:1"])
def test_a_device_that_is_not_there_names_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerators(monkeypatch, "cuda", 2)
    with pytest.raises(ResourceError, match=rf"^device '{name}': not available here; .* cpu, cuda:0, cuda:1"):
        find_device(name)


def test_types_by_name() -> None:
    assert parse_dtype("bfloat16") is parse_dtype(torch.bfloat16) is torch.bfloat16
    assert parse_dtype(None) is parse_dtype("auto") is None
    for wrong in ("int8", "bfloat", torch.int32):
        with pytest.raises(UsageError, match=r"^dtype '.*': not one of float32, bfloat16, float16"):
            parse_dtype(wrong)
