"""The machine's speed is measured once, and again where it is another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from koffkit.planning import machine as module
from koffkit.planning.machine import Machine, known_machine, measured_machine
from koffkit.planning.work import Work

CPU = {"kind": "cpu", "cores": 1}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "COPIED", 1 << 20)
    return tmp_path


def test_it_is_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_machine(CPU) is None
    found = measured_machine(CPU)
    assert found.operations["float32"] > 1e8 and found.bytes > 1e7 and 1e-8 < found.call < 1e-2
    assert not found.at_once
    monkeypatch.setattr(module, "_measure", lambda _: pytest.fail("measured again"))
    assert known_machine(CPU) == measured_machine(CPU) == found


def test_another_machine_other_threads_and_damage_are_measured_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_machine(CPU)
    assert known_machine(CPU | {"cores": 2}) is None
    assert known_machine(CPU | {"name": "another"}) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert known_machine(CPU) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    path = cache / "machine-cpu.json"
    whole = json.loads(path.read_text())
    for damaged in ("", "[]", json.dumps(whole | {"machine": {"call": 1}})):
        path.write_text(damaged)
        assert known_machine(CPU) is None


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Machine(operations={"float32": 1.0}, bytes=1.0, call=1.0, at_once=False)
    monkeypatch.setattr(module, "_measure", lambda _: found)
    (tmp_path / "file").touch()
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "file"))
    assert measured_machine(CPU) == found

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(module, "write_json", refused)
    assert measured_machine(CPU) == found and known_machine(CPU) is None


def test_work_adds_up_on_a_cpu_and_overlaps_on_a_gpu() -> None:
    work = Work(operations=100, bytes=30, calls=4)
    speeds = {"operations": {"float32": 10.0, "bfloat16": 5.0}, "bytes": 3.0}
    cpu, gpu = Machine(**speeds, call=5.0, at_once=False), Machine(**speeds, call=5.0, at_once=True)
    assert cpu.seconds(work, "float32") == 100 / 10 + 30 / 3 + 4 * 5
    assert cpu.seconds(work, "float16") == 100 / 5 + 30 / 3 + 4 * 5
    assert gpu.seconds(work, "float32") == 20
    assert Machine(**speeds, call=9.0, at_once=True).seconds(work, "float32") == 36
