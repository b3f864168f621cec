"""`koffkit memory add --output` by independent jobs on one export that nobody writes into, and `memory
collect`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from koffkit import KoffModel
from koffkit.artefact.export import open_export
from koffkit.router.routed import routed

from ..common import digests, sentences
from ..conftest import Koffkit

FAST = ("--set", "stages.recover.max_steps=6")


def state_of(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Inode, size, time of the last change and content of every file and folder."""
    paths = [root, *root.rglob("*")]
    return {
        str(path): (
            path.stat().st_ino,
            path.stat().st_size,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in paths
    }


def the_script_of_the_page(base: Path) -> str:
    """The Slurm array job of the documentation, for this environment, this base and few steps."""
    text = (Path(__file__).parents[2] / "docs" / "adding-memories.md").read_text(encoding="utf-8")
    script = text.split("```bash\n", 1)[1].split("```", 1)[0]
    assert "/models/base" in script and "exec koffkit " in script
    script = script.replace("/models/base", str(base)).replace(
        "exec koffkit ", f"exec {sys.executable} -m koffkit "
    )
    return script.rstrip() + " " + " ".join(FAST)


@pytest.fixture
def read_only(out: Path) -> Iterator[Path]:
    """The export without write bits (which do not stop root) and the state that must not change."""
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()]
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IRUSR)
    for path in folders:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield out
    make_writable(out)


def make_writable(out: Path) -> None:
    for path in [out, *out.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_jobs_learn_beside_an_export_that_stays_as_it_is(
    read_only: Path, koffkit: Koffkit, tmp_path: Path, llama: Path
) -> None:
    out = read_only
    (tmp_path / "west.txt").write_text("\n\n".join(sentences(9, 80)) + "\n")
    (tmp_path / "domains.txt").write_text("east east.txt\nwest west.txt\n")
    before, around = state_of(out), {path.name for path in tmp_path.iterdir()}
    script = the_script_of_the_page(base=llama)
    jobs = [
        subprocess.Popen(
            ["bash", "-c", script],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": task},
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in ("1", "2")
    ]
    ended = [(job.communicate(timeout=300)[1], job.returncode) for job in jobs]
    assert [code for _, code in ended] == [0, 0], ended
    assert state_of(out) == before
    assert {path.name for path in tmp_path.iterdir()} - around == {"new", "runs"}
    assert not list(Path("runs").iterdir())
    assert sorted(path.name for path in Path("new").iterdir()) == ["east", "west"]
    again = subprocess.run(["bash", "-c", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"}, check=False)
    assert again.returncode == 0  # learned already
    assert koffkit("memory", "list", out, "--json").json["memories"].keys() == {"north", "south"}
    make_writable(out)
    _collect(out, koffkit)


def _collect(out: Path, koffkit: Koffkit) -> None:
    collected = koffkit("memory", "collect", out, "new", "--json")
    assert collected.code == 0, collected.err
    assert collected.json == {
        "path": str(out),
        "collected": ["east", "west"],
        "already": [],
        "bytes": collected.json["bytes"],
        "not_in_router": [],
        "memories": ["east", "north", "south", "west"],
    }
    assert koffkit("verify", out).code == 0
    router = routed(open_export(out))
    assert router is not None
    assert {"east", "west"} <= set(router.labels)
    assert KoffModel.from_pretrained(out).complete("river", memory="west", max_new_tokens=2)
    listing = koffkit("memory", "list", out, "--json").json["memories"]
    assert [listing[name]["origin"] for name in ("east", "north", "south", "west")] == [
        *("added", "shipped", "shipped", "added")
    ]


def test_a_job_is_refused_before_it_learns(out: Path, koffkit: Koffkit) -> None:
    add = ("memory", "add", out, "east", "--text", "east.txt", *FAST, "--output")
    inside = koffkit(*add, out / "memories")
    assert inside.code == 2 and "--output out/memories: a folder of the export itself" in inside.err.replace(
        str(out), "out"
    )
    (Path("new") / "east").mkdir(parents=True)
    there = koffkit(*add, "new")
    assert there.code == 2
    assert "new/east: exists already" in there.err
    taken = koffkit("memory", "add", out, "north", "--text", "east.txt", "--output", "other")
    assert taken.code == 2
    assert "there is a memory 'north' already" in taken.err
    assert not Path("other").exists() and not Path("runs").exists()


def test_what_a_collection_says(out: Path, koffkit: Koffkit) -> None:
    add = ("memory", "add", out, "--text", "east.txt", "--output", "new", *FAST)
    told = koffkit(*add, "west", "--json").json
    assert (told["path"], told["in_router"]) == ("new/west", True)
    added = koffkit(*add, "east")
    assert added.code == 0, added.err
    assert "new/east: memory east" in added.out
    assert f"koffkit memory collect {out} new" in added.out
    (Path("new") / "east" / "router_column.safetensors").unlink()
    info = json.loads((Path("new") / "east" / "memory.json").read_text())
    assert "router_column.safetensors" in info["files"]
    before = digests(out)
    refused = koffkit("memory", "collect", out, "new")
    assert refused.code == 4
    assert "east/router_column.safetensors: missing" in refused.err
    assert digests(out) == before
    nothing = koffkit("memory", "collect", out)
    assert nothing.code == 2
    done = koffkit("memory", "collect", out, "new/west")
    assert done.code == 0
    assert ": collected west," in done.out
    assert "Not known to the router" not in done.out
