from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from koffkit.artefact.export import open_export, removed_memories, replaces
from koffkit.memories.manage import list_memories, remove_memory
from koffkit.report.memories import layer_range, memories_table
from koffkit.storage import publish
from koffkit.storage.publish import discard

from ...common import write_record
from ...conftest import Shipped


def test_a_bundle_that_is_just_being_written_is_not_seen(shipped: Shipped, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shipped.export, tmp_path / "out"))
    shutil.copytree(out / "memories" / "north", out / "memories" / ".east.koffkit-partial-1")
    assert [bundle.path.name for bundle in open_export(out).bundles()] == ["north", "south"]


def test_a_memory_is_renamed_away_before_it_is_deleted(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle of deleting leaves no half of a memory under its name."""
    out = Path(shutil.copytree(shipped.export, tmp_path / "out"))

    def crash(folder: Path, ignore_errors: bool = False) -> None:
        if folder.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(publish.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        remove_memory(out, "north")
    assert removed_memories(open_export(out)) == ["north"] and list(list_memories(out)["memories"]) == [
        "south"
    ]


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    discard(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_memory_from_elsewhere_counts_as_copied(shipped: Shipped, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shipped.export, tmp_path / "out"))
    shutil.copytree(out / "memories" / "north", out / "memories" / "east")
    info = json.loads((out / "memories" / "east" / "memory.json").read_text())
    write_record(out / "memories" / "east" / "memory.json", info | {"domain": "east"})
    assert list_memories(out)["memories"]["east"]["origin"] == "copied"


def test_replaced_is_only_what_says_so(shipped: Shipped, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shipped.export, tmp_path / "out"))
    export, path = open_export(out), out / "memories" / "north" / "memory.json"
    assert replaces(export, "west") is None
    assert not export.is_replaced("north")
    info = json.loads(path.read_text())
    write_record(path, info | {"replaces": "0" * 64})
    assert not export.is_replaced("north")
    write_record(path, info | {"replaces": replaces(export, "north")})
    assert export.is_replaced("north")
    path.write_text("{")
    assert not export.is_replaced("north")


def test_layers_are_a_range_or_a_list() -> None:
    layers = [0, 1, 2], [3], [1, 3], [0, 2, 3, 4, 6]
    assert [layer_range(own) for own in layers] == ["0-2", "3", "1,3", "0,2-4,6"]


def test_the_table_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "parameters": 433152,
        "bytes": 1742450,
        "layers": [0, 1, 2],
        "rank": 32,
        "kv_tokens": None,
        "neurons": None,
        "dtype": "float32",
        "in_router": False,
        "origin": "shipped",
        "compacted": True,
        "figures": {"matched": {"kl": 0.0414, "perplexity": 2.036, "recall": 1.0}},
    }
    Console(width=80).print(memories_table({"pt": row, "bare": row | {"figures": {}}}))
    shown = capsys.readouterr().out
    for part in ("433,152", "1,742,450", "0-2", "float32", "no", "shipped*", "0.041", "2.04", "100.0%"):
        assert part in shown
