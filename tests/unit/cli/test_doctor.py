from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from koffkit.cli import doctor

from ...conftest import Koffkit


def test_it_says_what_is_there(koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "x").write_bytes(b"12345")
    shown = koffkit("doctor", "--json").json
    assert shown["packages"]["torch"]["version"] == metadata.version("torch")
    assert shown["devices"][0]["name"] == "cpu"
    assert shown["cores"] >= 1
    assert (shown["hub"]["models"], shown["hub"]["bytes"]) == (1, 5)
    assert "matplotlib" in shown["extras"]["plot"]
    assert "dev" not in shown["extras"]


def test_in_words(koffkit: Koffkit) -> None:
    result = koffkit("doctor")
    for word in ("koffkit", "packages", "extra data", "disk", "hub cache", "devices", "cpu ("):
        assert word in result.out


def test_a_package_that_is_missing_is_exit_5_with_a_remedy(
    koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else real(name))
    result = koffkit("doctor", "--json")
    assert result.code == 5
    assert result.json["ok"] is False
    assert "pip install 'peft>=0.19'" in result.json["problems"][0]


def test_an_old_package_is_named_with_its_version(koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "accelerate" else real(name))
    assert "accelerate is 0.1, koffkit needs" in koffkit("doctor").err


def test_a_full_disk_is_a_problem(koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1 << 60)
    assert any(
        "bytes free, a run needs" in problem for problem in koffkit("doctor", "--json").json["problems"]
    )
