from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from koffkit.artefact.export import open_export
from koffkit.errors import IntegrityError, UsageError
from koffkit.memories.collect import collect_memories
from koffkit.memories.manage import list_memories, remove_memory
from koffkit.runtime.verify import verify_export
from koffkit.storage.lock import claim

from ...common import digests, write_record
from ...conftest import Shipped
from ...torture.world import litter


@pytest.fixture
def out(shipped: Shipped, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped.export, tmp_path / "out"))


def bundle(out: Path, name: str, folder: Path, like: str = "north", **changes: object) -> Path:
    """A copy of a memory under another name."""
    place = Path(shutil.copytree(out / "memories" / like, folder / name))
    info = json.loads((place / "memory.json").read_text())
    write_record(place / "memory.json", info | {"domain": name} | changes)
    return place


def test_bundles_become_part_of_the_export_and_its_manifest(out: Path, tmp_path: Path) -> None:
    before = digests(out)
    places = [bundle(out, name, tmp_path / "new") for name in ("east", "west")]
    result = collect_memories(out, [tmp_path / "new"])
    assert (result["collected"], result["already"]) == (["east", "west"], [])
    assert result["memories"] == ["east", "north", "south", "west"]
    after = digests(out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"koffkit.json"}
    for place in places:
        for file in place.iterdir():
            assert (out / "memories" / place.name / file.name).read_bytes() == file.read_bytes()
    manifest = open_export(out).manifest
    assert list(manifest.domains) == ["north", "south", "east", "west"]
    assert manifest.domains["east"].path == "memories/east"
    assert set(after) - set(before) == {
        name for name in after if name.startswith(("memories/east/", "memories/west/"))
    }
    listed = {name for name in after if not name.endswith("README.md")} - {"koffkit.json"}
    assert set(manifest.files) == listed
    verified = verify_export(out)
    assert verified["ok"], verified["problems"]
    assert set(verified["golden"]) == {"none", "north", "south", "east", "west"}


def test_what_the_manifest_lists_is_seen_to_change_and_to_go(out: Path, tmp_path: Path) -> None:
    bundle(out, "east", tmp_path / "new")
    collect_memories(out, [tmp_path / "new" / "east"])
    swapped = out / "memories" / "east" / "memory.json"
    info = json.loads(swapped.read_text())
    write_record(swapped, info | {"figures": {}})
    assert "memories/east/memory.json" in verify_export(out)["problems"][0]
    remove_memory(out, "east")
    assert list_memories(out)["removed"] == ["east"]
    assert verify_export(out)["ok"]
    assert collect_memories(out, [tmp_path / "new"])["collected"] == ["east"]
    assert list_memories(out)["removed"] == []


def test_the_second_time_nothing_is_left_to_do(out: Path, tmp_path: Path) -> None:
    bundle(out, "east", tmp_path / "new")
    collect_memories(out, [tmp_path / "new"])
    bundle(out, "west", tmp_path / "new")
    assert collect_memories(out, [tmp_path / "new"])["collected"] == ["west"]
    before = (out / "koffkit.json").stat().st_ino, digests(out)
    again = collect_memories(out, [tmp_path / "new", tmp_path / "new" / "west"])
    assert (again["collected"], again["already"]) == ([], ["east", "west"])
    assert ((out / "koffkit.json").stat().st_ino, digests(out)) == before


def _flip(place: Path) -> None:
    file = place / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)


def test_all_that_is_refused_is_named_and_nothing_changes(out: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    bundle(out, "east", new)
    bundle(out, "north", new, like="south")
    bundle(out, "west", new, backbone_digest="0" * 64)
    _flip(bundle(out, "up", new))
    bundle(out, "none", new)
    before = digests(out)
    with pytest.raises(IntegrityError) as refused:
        collect_memories(out, [new])
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    for part in (
        "none: cannot be a domain",
        "has another memory 'north'",
        "up/adapter_model.safetensors: its sha256 is not the one in memory.json",
        "this memory (west) belongs to backbone 000000000000",
    ):
        assert any(part in line for line in lines), part
    assert digests(out) == before
    assert not litter(tmp_path)


def test_one_name_stands_for_one_memory(out: Path, tmp_path: Path) -> None:
    bundle(out, "east", tmp_path / "a")
    bundle(out, "east", tmp_path / "b", like="south")
    with pytest.raises(UsageError, match="another memory 'east' is in"):
        collect_memories(out, [tmp_path / "a", tmp_path / "b"])
    bundle(out, "east", tmp_path / "c")
    collect_memories(out, [tmp_path / "a", tmp_path / "c"])
    assert "east" in open_export(out).manifest.domains


def test_a_folder_without_bundles_and_one_of_the_export_are_refused(out: Path, tmp_path: Path) -> None:
    bundle(out, ".east.koffkit-partial-1", tmp_path / "new")
    for folder in (tmp_path / "new", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no memory bundle"):
            collect_memories(out, [folder])
    with pytest.raises(UsageError, match="a folder of the export itself"):
        collect_memories(out, [out / "memories"])


@pytest.mark.parametrize("held", ["out", "out/memories/north"])
def test_one_process_at_a_time_changes_an_export(held: str, out: Path, tmp_path: Path) -> None:
    bundle(out, "east", tmp_path / "new")
    before = digests(out)
    with claim(tmp_path / held), pytest.raises(UsageError, match="is writing it; wait"):
        collect_memories(out, [tmp_path / "new"])
    assert digests(out) == before
    with claim(out), pytest.raises(UsageError, match="is writing it; wait"):
        remove_memory(out, "north")
    assert (out / "memories" / "north").is_dir()


@pytest.mark.parametrize(("code", "linked"), [(None, True), (errno.EPERM, False)])
def test_where_there_are_no_hard_links_files_are_copied(
    code: int | None, linked: bool, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no links here")

    if code is not None:
        monkeypatch.setattr(os, "link", refuse)
    bundle(out, "east", tmp_path / "new")
    weights = out / "backbone" / "model.safetensors"
    before = weights.stat().st_ino
    collect_memories(out, [tmp_path / "new"])
    assert (weights.stat().st_ino == before) is linked
    assert verify_export(out)["ok"]


def test_a_bundle_that_changes_while_it_is_copied_is_refused(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(out, "east", tmp_path / "new")
    before, copy = digests(out), shutil.copyfile

    def damage(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name == "kv_memory.safetensors":
            target.write_bytes(target.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(shutil, "copyfile", damage)
    with pytest.raises(IntegrityError, match=r"kv_memory\.safetensors"):
        collect_memories(out, [tmp_path / "new"])
    assert digests(out) == before
    assert not litter(tmp_path)
