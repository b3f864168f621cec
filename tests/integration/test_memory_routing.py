"""`--memory auto` and a memory that came after the router."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from koffkit import KoffModel
from koffkit.artefact.names import ROUTER_COLUMN

from ..common import digests, list_anew, sentences, write_record
from ..conftest import Koffkit

FAST = ("--set", "stages.recover.max_steps=1", "--json")
OTHERS = {"north": 1, "south": 2}
COLUMN = Path("memories/east") / ROUTER_COLUMN


def unseen(seed: int) -> list[str]:
    return sentences(seed, 120)[80:]


def test_the_router_picks_the_added_memory_for_its_text_and_the_others_for_theirs(
    out: Path, koffkit: Koffkit
) -> None:
    before = digests(out / "router")
    added = koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST)
    assert added.code == 0, added.err
    routing = added.json["routing"]
    assert added.json["in_router"]
    assert routing["against"] == ["north", "south", "none"]
    assert digests(out / "router") == before
    assert routing["recognised"] > 0.5
    assert routing["mistaken"] < 0.4
    assert 0 < routing["documents"] < routing["other_documents"]
    model = KoffModel.from_pretrained(out)
    for name, seed in (OTHERS | {"east": 7}).items():
        assert sum(found == name for found, _ in model.route(unseen(seed))) >= 32, name
    few = KoffModel.from_pretrained(out, memories=["north"])
    assert "east" not in {found for found, _ in few.route(unseen(7))}
    few.load_memory(out / "memories" / "east")
    assert sum(found == "east" for found, _ in few.route(unseen(7))) >= 32
    prompts = [part for text in unseen(7)[:4] for part in ("--prompt", text)]
    rows = koffkit("generate", out, *prompts, "--max-new-tokens", 1, "--json").json["completions"]
    assert [row["memory"] for row in rows].count("east") >= 3
    assert koffkit("verify", out, "--json").json["ok"]
    assert koffkit("inspect", out, "--json").json["router"]["labels"][-1] == "east"


def test_the_column_is_part_of_the_bundle(out: Path, koffkit: Koffkit) -> None:
    assert koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST).code == 0
    column = (out / COLUMN).read_bytes()
    (out / COLUMN).write_bytes(column[:-1] + b"\x55")
    assert "its sha256 is not the one" in koffkit("verify", out, "--json").json["problems"][0]
    (out / COLUMN).write_bytes(column)
    assert ROUTER_COLUMN in (out / COLUMN).with_name("README.md").read_text()
    assert ROUTER_COLUMN not in (out / "memories" / "north" / "README.md").read_text()
    assert koffkit("memory", "compact", out / "memories" / "east", "--in-place").code == 0
    assert (out / COLUMN).read_bytes() == column and koffkit("verify", out, "--json").json["ok"]
    assert sum(name == "east" for name, _ in KoffModel.from_pretrained(out).route(unseen(7))) >= 32
    (out / COLUMN).write_bytes(column[:-4])
    damaged = koffkit("verify", out, "--json")
    assert damaged.code == 4 and ROUTER_COLUMN in damaged.json["problems"][0]
    found = koffkit("generate", out, "--prompt", "river")
    assert found.code == 4
    assert ROUTER_COLUMN in found.err
    assert "bytes, 8460 expected; copy the file again" in found.err


def test_a_bundle_beside_another_router_is_not_routed_to(out: Path, koffkit: Koffkit) -> None:
    """Its column was fitted beside other columns: with these it would mean nothing."""
    assert koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST).code == 0
    weights = out / "router" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x02")
    list_anew(out, weights.relative_to(out).as_posix())
    row = koffkit("memory", "list", out, "--json").json["memories"]["east"]
    assert row["in_router"] is False
    shown = koffkit("memory", "list", out).out
    assert "never picked by --memory auto: east" in " ".join(shown.split())
    assert "east" not in {name for name, _ in KoffModel.from_pretrained(out).route(unseen(7))}


def test_text_of_others_can_be_given(
    out: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "of another machine"))
    manifest = json.loads((out / "koffkit.json").read_text())
    for source in manifest["recipe"]["domains"].values():
        source["text"] = "gone.txt"
    manifest["recipe"]["retention"] = None
    write_record(out / "koffkit.json", manifest)
    add = ("memory", "add", out, "east", "--text", "east.txt", *FAST)
    found = koffkit(*add)
    assert found.code == 0
    assert found.json["in_router"] is False
    assert found.json["routing"] is None
    assert "give text of other kinds with --against GLOB" in found.err and not (out / COLUMN).exists()
    shutil.rmtree(out / "memories" / "east")
    Path("other.txt").write_text("\n\n".join(sentences(1, 60)), encoding="utf-8")
    found = koffkit(*add, "--against", "nowhere*.txt")
    assert found.code == 3
    assert "--against: no file matches 'nowhere*.txt'" in found.err
    assert not any(Path("runs").iterdir())
    Path("short.txt").write_text("one line", encoding="utf-8")
    found = koffkit(*add, "--against", "short.txt")
    assert (
        found.code == 3 and "--against short.txt: the router needs at least 2 documents, found 1" in found.err
    )
    assert not any(Path("runs").iterdir())
    found = koffkit(*add, "--against", "other.txt")
    assert found.code == 0
    assert found.json["in_router"]
    assert found.json["routing"]["against"] == ["other.txt"]


def test_what_is_missing_of_the_others_is_named(
    out: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "of another machine"))
    manifest = json.loads((out / "koffkit.json").read_text())
    manifest["recipe"]["domains"]["south"]["text"] = "gone.txt"
    write_record(out / "koffkit.json", manifest)
    found = koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST)
    assert found.json["routing"]["against"] == ["north", "none"] and "without text of south" in found.err


def test_a_second_memory_is_learned_against_the_first(out: Path, koffkit: Koffkit) -> None:
    Path("west.txt").write_text("\n\n".join(sentences(11, 80)), encoding="utf-8")
    assert koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST).code == 0
    added = koffkit("memory", "add", out, "west", "--text", "west.txt", *FAST).json
    assert added["routing"]["against"] == ["north", "south", "none", "east"]
    model = KoffModel.from_pretrained(out)
    for name, seed in (("east", 7), ("west", 11)):
        assert sum(found == name for found, _ in model.route(unseen(seed))) >= 30, name


@pytest.mark.parametrize("kind", ["probe"])
def test_other_kinds_of_router_say_that_they_cannot_learn_it(
    kind: str, out: Path, shipped, koffkit: Koffkit
) -> None:  # type: ignore[no-untyped-def]
    assert (
        koffkit("compress", shipped.recipe, "--output", "run", "--set", "stages.route={kind: probe}").code
        == 0
    )
    assert koffkit("export", "run", "--output", "probed").code == 0
    found = koffkit("memory", "add", "probed", "east", "--text", "east.txt", *FAST)
    assert found.code == 0
    assert found.json["in_router"] is False
    assert f"a router of kind {kind} learns no label later" in found.err
