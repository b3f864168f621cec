"""`koffkit memory list` and `remove`, and what the other commands say of added and removed memories."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from koffkit.artefact.names import ROUTER_COLUMN

from ..common import digests, sentences
from ..conftest import Koffkit

FAST = ("--set", "stages.recover.max_steps=6")


def test_list_says_where_memories_come_from_and_what_the_router_knows(grown: Path, koffkit: Koffkit) -> None:
    found = koffkit("memory", "list", grown, "--json").json
    assert {name: (row["origin"], row["in_router"]) for name, row in found["memories"].items()} == {
        "east": ("added", True), "north": ("shipped", True), "south": ("shipped", True),
    }  # fmt: skip
    row = found["memories"]["east"]
    sizes = sum(
        (grown / "memories" / "east" / name).stat().st_size
        for name in (
            "adapter_model.safetensors",
            "kv_memory.safetensors",
            "adapter_config.json",
            "router_column.safetensors",
        )
    )
    assert (row["rank"], row["kv_tokens"], row["layers"], row["dtype"], row["bytes"]) == (
        4,
        3,
        [0, 1, 2],
        "float32",
        sizes,
    )
    assert {"perplexity", "kl"} <= set(row["figures"]["matched"])
    assert row["routing"]["recognised"] > 0.5 and row["routing"]["against"] == ["north", "south", "none"]
    assert "north" in koffkit("memory", "list", grown).out


def test_a_removed_memory_is_gone_and_nothing_else_changes(out: Path, koffkit: Koffkit) -> None:
    before = digests(out)
    assert koffkit("memory", "remove", out, "south", "--json").json["memories"] == ["north"]
    assert digests(out) == {
        name: value for name, value in before.items() if not name.startswith("memories/south/")
    }
    verified = koffkit("verify", out, "--json")
    assert verified.code == 0
    assert verified.json["removed"] == ["south"]
    assert "south" not in verified.json["golden"]
    assert "Removed since the export: south" in koffkit("verify", out).out
    assert koffkit("memory", "list", out, "--json").json["removed"] == ["south"]
    assert koffkit("inspect", out, "--json").json["removed_memories"] == ["south"]
    text = sentences(2, 80)[-1]  # a text the router would give to it
    row = koffkit("generate", out, "--prompt", text, "--max-new-tokens", 2, "--json").json["completions"][0]
    assert row["memory"] in ("north", None)
    again = koffkit("memory", "remove", out, "south")
    assert again.code == 2 and "no memory 'south'; there is north" in again.err


def test_a_folder_with_files_missing_is_not_a_removed_one(out: Path, koffkit: Koffkit) -> None:
    (out / "memories" / "south" / "memory.json").unlink()
    found = koffkit("verify", out, "--json")
    assert found.code == 4
    assert found.json["removed"] == []
    assert "south/memory.json: missing" in found.json["problems"][0]


def test_a_removed_domain_can_be_learned_anew_and_then_the_router_knows_it(
    out: Path, koffkit: Koffkit
) -> None:
    assert koffkit("memory", "remove", out, "south").code == 0
    added = koffkit("memory", "add", out, "south", "--text", "east.txt", *FAST, "--json").json
    assert added["in_router"] is True
    assert added["routing"] is None
    assert not (out / "memories" / "south" / ROUTER_COLUMN).exists()
    assert koffkit("verify", out, "--json").json["ok"] is True
    assert koffkit("memory", "list", out, "--json").json["memories"]["south"]["origin"] == "added"
    (out / "memories" / "south" / "kv_memory.safetensors").unlink()
    found = koffkit("verify", out, "--json")
    assert found.code == 4 and "kv_memory.safetensors: missing" in found.json["problems"][0]


def test_inspect_states_net_bytes_and_the_break_even(grown: Path, llama: Path, koffkit: Koffkit) -> None:
    net = koffkit("inspect", grown, "--json").json["net"]
    assert net["base"] == (llama / "model.safetensors").stat().st_size
    assert net["backbone"] == (grown / "backbone" / "model.safetensors").stat().st_size
    assert net["memories"] == sum(
        row["bytes"] for row in koffkit("memory", "list", grown, "--json").json["memories"].values()
    )
    assert net["router"] == sum(path.stat().st_size for path in (grown / "router").iterdir())
    assert (
        net["total"] == net["backbone"] + net["memories"]
        and net["total_with_router"] == net["total"] + net["router"]
    )
    assert net["saved"] == net["base"] - net["total"]
    assert net["break_even"] == (net["base"] - net["backbone"]) // (net["memories"] / 3)
    assert "break_even" in koffkit("inspect", grown, "--all").out


def test_a_kept_memory_can_be_put_back(out: Path, koffkit: Koffkit) -> None:
    before = digests(out)
    inside = koffkit("memory", "remove", out, "south", "--keep", out / "old")
    assert inside.code == 2
    assert "name one outside" in inside.err
    assert digests(out) == before
    shown = koffkit("memory", "remove", out, "south", "--keep", "old", "--json").json
    assert shown["kept"] == "old/south"
    assert koffkit("verify", out, "--json").json["removed"] == ["south"]
    shutil.copytree("old/south", out / "memories" / "south")
    assert digests(out) == before
    again = koffkit("memory", "remove", out, "south", "--keep", "old")
    assert again.code == 2
    assert "exists already" in again.err
    assert digests(out) == before


def test_a_replaced_memory_is_another_one_under_the_same_name(out: Path, koffkit: Koffkit) -> None:
    before = digests(out)
    replaced = koffkit("memory", "replace", out, "south", "--text", "east.txt", *FAST, "--json")
    assert replaced.code == 0, replaced.err
    assert replaced.json["in_router"] is True
    after = digests(out)
    assert set(after) == set(before)
    changed = {name for name in before if after[name] != before[name]}
    assert "memories/south/adapter_model.safetensors" in changed
    assert all(name.startswith("memories/south/") for name in changed)
    assert koffkit("verify", out, "--json").json["ok"] is True
    assert list(Path("runs").iterdir()) == []


def test_an_added_memory_that_is_replaced_is_taught_to_the_router_again(
    grown: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = shutil.copytree(grown, tmp_path / "out")
    shutil.copytree(grown.parent / "data", tmp_path / "data")
    (tmp_path / "west.txt").write_text("\n\n".join(sentences(9, 80)) + "\n")
    replaced = koffkit("memory", "replace", out, "east", "--text", "west.txt", *FAST, "--json")
    assert replaced.code == 0, replaced.err
    assert replaced.json["in_router"] is True
    assert replaced.json["routing"]["documents"] > 0
    assert (out / "memories" / "east" / ROUTER_COLUMN).is_file()
    assert koffkit("verify", out, "--json").json["ok"] is True


def test_only_a_memory_that_is_there_is_replaced(out: Path, koffkit: Koffkit) -> None:
    refused = koffkit("memory", "replace", out, "sout", "--text", "east.txt")
    assert refused.code == 2
    assert "did you mean south?" in refused.err
    before = digests(out)
    missing = koffkit("memory", "replace", out, "south", "--text", "nowhere.txt")
    assert missing.code == 3
    assert "loading torch" not in missing.err
    assert digests(out) == before
