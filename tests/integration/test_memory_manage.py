"""`koffkit memory list` and `remove`, and what the other commands say of added and removed memories."""

from __future__ import annotations

from pathlib import Path

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
    assert "break_even" in koffkit("inspect", grown).out
