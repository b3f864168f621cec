"""`compress --dry-run --probe`, and what a run did cost beside what was planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit


@pytest.fixture
def recipe(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "kept"))
    found = recipe_dict(llama, tmp_path / "data")
    found["distill"] |= {"cache": True, "cache_dir": "teacher"}
    return write_recipe(tmp_path / "recipe.yaml", found)


def test_real_steps_make_the_plan_and_the_run_is_held_against_it(
    recipe: Path, koffkit: Koffkit, tmp_path: Path
) -> None:
    planned = koffkit("compress", recipe, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert planned.json["forecast"]["basis"] == "machine"
    before = set(tmp_path.iterdir())
    probed = koffkit("compress", recipe, "--dry-run", "--probe", 2, "--json")
    assert probed.code == 0, probed.err
    forecast: dict[str, Any] = probed.json["forecast"]
    assert forecast["basis"] == "probe"
    assert set(tmp_path.iterdir()) == before  # no run, and nothing in the cache that the recipe names
    assert all(forecast["seconds"][name] > 0 for name in ("learn_masks", "recover", "evaluate"))
    assert forecast["seconds"]["route"] is None
    assert 1e8 < forecast["peak_memory"] < 1e10
    shown = koffkit("compress", recipe, "--dry-run")
    assert "by real steps" in shown.out and "peak memory, measured" in shown.out
    run = koffkit("compress", recipe, "--output", "run", "--json")
    assert run.code == 0, run.err
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run.json["costs"] == {"foreseen": state["foreseen"], "spent": state["spent"]}
    assert state["foreseen"] == forecast
    spent = state["spent"]
    assert spent["seconds"] == {stage["name"]: stage["seconds"] for stage in state["stages"]}
    assert spent["basis"] == "run"
    kept = [path for path in (tmp_path / "teacher").iterdir() if path.suffix == ".targets"]
    assert spent["disk"] > sum(path.stat().st_blocks * 512 for path in kept) > 0


def test_the_table_at_the_end_and_the_report_show_both(recipe: Path, koffkit: Koffkit) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("vl_convert")
    run = koffkit("compress", recipe, "--output", "run")
    assert run.code == 0, run.err
    assert "planned (by the machine's measured speed) and actual" in run.out
    assert koffkit("report", "run").code == 0
    page = Path("run/report.html").read_text()
    rows = page[page.index("Planned and actual") :]
    for what in ("learn_masks: time", "evaluate: time", "peak memory", "disk"):
        assert what in rows


def test_probing_is_a_part_of_the_plan(recipe: Path, koffkit: Koffkit) -> None:
    alone = koffkit("compress", recipe, "--probe", 2)
    assert alone.code == 2 and "--probe" in alone.err and "--dry-run" in alone.err
    assert koffkit("compress", recipe, "--dry-run", "--probe", 0).code == 2
    assert not Path("runs").exists()
