from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from koffkit.errors import IntegrityError, UsageError
from koffkit.run.finished import FinishedRun
from koffkit.run.folder import RunFolder

from ...common import write_record
from ...conftest import Shipped
from .states import run_state


def test_everything_of_a_run_is_there(shipped: Shipped) -> None:
    run = FinishedRun.open(shipped.run)
    assert run.name == "tiny"
    assert run.spec.arch.model_type == "llama"
    assert {layer for layer, _ in run.masks} == set(range(run.spec.num_layers))
    assert {name: path.is_dir() for name, path in run.memories.items()} == {"north": True, "south": True}
    assert run.router == shipped.run / "router"
    assert run.figures("north")["matched"]["perplexity"] > 1
    assert run.figures("west") == {}
    assert run.sliced_config["architectures"] == ["LlamaForCausalLM"]


def test_a_run_without_memories_has_none(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    state["recipe"]["memory"] |= {"lora": None, "kv": None}
    state["files"] = {name: entry for name, entry in state["files"].items() if "router" not in name}
    write_record(run / "run.json", state)
    shutil.rmtree(run / "router")
    opened = FinishedRun.open(run)
    assert (dict(opened.memories), opened.router) == ({}, None)


def test_another_base_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    state["base"]["digest"] = "0" * 64
    write_record(run / "run.json", state)
    with pytest.raises(IntegrityError, match=r"this is not the base that .*run was made from"):
        FinishedRun.open(run)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).write(run_state())
    with pytest.raises(UsageError, match="not finished"):
        FinishedRun.open(tmp_path)
