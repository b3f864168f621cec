from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from koffkit.report.duration import duration
from koffkit.run.folder import RunFolder
from koffkit.runtime.inspect import describe
from koffkit.runtime.overview import overview

from ...conftest import Koffkit, Shipped


def lines_of(path: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in overview(describe(path)))


def test_every_kind_fits_into_ten_lines(shipped: Shipped, llama: Path, koffkit: Koffkit) -> None:
    bundle = shipped.export / "memories" / "north"
    for path in (shipped.run, shipped.export, bundle, llama):
        shown = koffkit("inspect", path)
        assert shown.code == 0
        assert len(shown.out.splitlines()) <= 10
        assert len(koffkit("inspect", path, "--all").out.splitlines()) > 10


def test_an_export(shipped: Shipped) -> None:
    lines = lines_of(shipped.export)
    assert lines["memories"] == "2: north, south"
    assert "MB" not in lines["net"]
    assert "LlamaForCausalLM" in lines["backbone"]
    assert str(shipped.run.parent) not in "\n".join(lines.values())


def test_a_run_that_was_interrupted(shipped: Shipped, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shipped.run, tmp_path / "run")))
    state = run.read().with_stage("recover", "running").with_stage("route", "pending")
    run.write(state.evolve(state="running"))
    rows = [line for line in run.metrics_file.read_text().splitlines(keepends=True) if '"recover"' in line]
    run.metrics_file.write_text("".join(rows[:3]))
    shown = describe(run.path)
    assert shown["live"]["writer"] is None
    lines = dict(line.split(maxsplit=1) for line in overview(shown))
    assert lines["now"].startswith("recover step 3 of 4, kl ")
    assert lines["writer"].endswith("interrupted, go on with --resume")
    assert len(overview(shown)) == 9


def test_an_expected_sparsity_stands_beside_its_target() -> None:
    live: dict[str, Any] = {
        "writer": "process 7 on here (koffkit compress)",
        "stage": "learn_masks",
        "stage_of_step": "learn_masks",
        "step": 5,
        "steps": 240,
        "kl": 0.04,
        "sparsity": 0.345,
        "expected_sparsity": 0.11,
        "seconds_left": 200.0,
        "seconds_since": 1.0,
    }
    budget = {"base_params": 10, "total_units": {}, "keep": {}, "global_sparsity": 0.345, "layout": "uniform"}
    run = {"kind": "run", "name": "a", "state": "running", "base": {"model": "b"}, "budget": budget}
    run |= {"domains": [], "memory_layers": [], "stages": [], "started": "now", "seed": 0, "live": live}
    *_, now, writer = overview(run)
    assert "sparsity 11.0% expected of 34.5%, about 3 min 20 s of training left" in now
    assert writer.endswith("last step 1 s ago; process 7 on here (koffkit compress)")


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
