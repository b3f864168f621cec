"""Nothing published names a place on the disk of the maker; what lies beside it is found all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from koffkit.artefact.export import open_export
from koffkit.errors import DataError
from koffkit.memories.recipe import find_base

from ..common import sentences, write_record
from ..conftest import Koffkit, Shipped


@pytest.fixture
def project(
    shipped: Shipped, llama: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run beside its base and text, all named by absolute paths, and its export."""
    place = tmp_path / "secret-place"
    shutil.copytree(shipped.run, place / "runs/tiny")
    shutil.copytree(llama, place / "base")
    shutil.copytree(shipped.recipe.parent / "data", place / "data")
    (place / "east.txt").write_text("\n\n".join(sentences(7, 80)) + "\n")
    state = json.loads((place / "runs/tiny/run.json").read_text())
    state["base"] |= {"model": str(place / "base"), "path": str(place / "base")}
    state["recipe"]["base"]["model"] = str(place / "base")
    for name, source in state["recipe"]["domains"].items():
        source["text"] = str(place / "data" / f"{name}.txt")
    state["recipe"]["retention"]["text"] = str(place / "data" / "general.txt")
    write_record(place / "runs/tiny/run.json", state)
    monkeypatch.chdir(place)
    assert koffkit("export", "runs/tiny", "--output", "out").code == 0
    return place


def test_nothing_published_names_a_local_place(project: Path, koffkit: Koffkit) -> None:
    text, few = str(project / "east.txt"), ["--set", "stages.recover.max_steps=1"]
    assert koffkit("memory", "add", "out", "east", "--text", text, *few).code == 0
    against = ["--against", str(project / "data" / "*.txt")]
    assert koffkit("memory", "add", "out", "west", "--text", text, *few, *against).code == 0
    assert koffkit("memory", "compact", "out/east", "--in-place", "--data", text).code == 0
    assert koffkit("verify", "out").code == 0
    told = [
        path.relative_to(project).as_posix()
        for path in (project / "out").rglob("*")
        if path.is_file() and b"secret-place" in path.read_bytes()
    ]
    assert told == []
    manifest = json.loads((project / "out/koffkit.json").read_text())
    assert manifest["base"]["model"] == manifest["recipe"]["base"]["model"] == "./base"
    assert manifest["recipe"]["domains"]["north"]["text"] == "./data/north.txt"
    added = json.loads((project / "out/memories/west/memory.json").read_text())
    assert added["added"]["recipe"]["base"]["model"] == "./base"
    assert added["added"]["recipe"]["domains"]["west"]["text"] == ["./east.txt"]
    assert added["routing"]["against"] == ["./data/*.txt"]


def test_what_lies_beside_an_export_is_found_from_anywhere(
    project: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--set", "stages.recover.max_steps=1", "--json"]
    added = koffkit("memory", "add", "secret-place/out", "east", "--text", project / "east.txt", *few)
    assert added.code == 0
    assert added.json["routing"]["against"] == ["north", "south", "none"]


def test_this_machine_remembers_what_a_copied_export_was_made_of(
    project: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(project / "out", tmp_path / "elsewhere" / "copy"))
    monkeypatch.chdir(copy.parent)
    assert find_base(open_export(copy), None) == project / "base"
    few = ["--set", "stages.recover.max_steps=1", "--json"]
    added = koffkit("memory", "add", "copy", "east", "--text", project / "east.txt", *few)
    assert added.json["routing"]["against"] == ["north", "south", "none"]
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(DataError, match="say where it is with --base PATH"):
        find_base(open_export(copy), None)


def test_a_cache_that_cannot_be_written_does_no_harm(
    project: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "file").write_text("")
    monkeypatch.setenv("KOFFKIT_CACHE", str(project / "file"))
    assert koffkit("export", "runs/tiny", "--output", "other").code == 0
    assert find_base(open_export(project / "other"), None) == project / "base"


def test_an_export_of_earlier_versions_names_its_base_by_an_absolute_path(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = open_export(project / "out")
    old = export.manifest.base.model_copy(update={"model": str(project / "base")})
    monkeypatch.chdir(tmp_path)
    assert find_base(type(export)(export.path, export.manifest.evolve(base=old)), None) == project / "base"
