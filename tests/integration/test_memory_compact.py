"""`koffkit memory compact` as a user calls it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from koffkit import KoffModel

from ..common import digests, write_record
from ..conftest import Koffkit, Shipped

IDS = torch.arange(10).reshape(1, 10) + 4
DTYPES = {"--int8": "int8", "--no-int8": "float32", "--dtype": "float16", "--energy": "float32"}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--int8",),
        ("--no-int8",),
        ("--dtype", "float16"),
        ("--rank", "2"),
        ("--energy", "0.8", "--no-int8"),
    ],
)
def test_compact_bundles_load_everywhere(
    arguments: tuple[str, ...], out: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    before, data = digests(out), ("--data", "*.txt")
    made = koffkit(
        "memory", "compact", out / "memories" / "north", *arguments, *data, "--output", "small", "--json"
    )
    assert made.code == 0, made.err
    assert digests(out) == before
    row = made.json["memories"]["north"]
    assert row["kl"]["reference"] == "unpruned model" and row["kl"]["after"] == pytest.approx(
        row["kl"]["before"], rel=0.5
    )
    dtype = DTYPES.get((arguments or ("",))[0], "int6")
    info = json.loads(Path("small/north/memory.json").read_text())
    assert info["dtype"] == dtype == made.json["dtype"] and info["compacted"]["kl"] == row["kl"]
    ranks = info["compacted"]["ranks"]
    assert (
        ranks == [2, 2]
        if "--rank" in arguments
        else ranks[0] < 4
        if "--energy" in arguments
        else ranks == [4, 4]
    )
    _put_in_place_of(out, "south", info)
    verified = koffkit("verify", out, "--json").json
    assert (
        verified["ok"] is True and verified["golden"]["south"] < 1e-4
    )  # its own golden logits, recorded anew
    model = KoffModel.from_pretrained(out)
    full, small = model.logits(IDS, "north"), model.logits(IDS, "south")
    assert not torch.equal(full, small) or dtype == "float32"
    assert koffkit("inspect", "small/north", "--json").json["loads_in"].get("peft") == (
        None if dtype.startswith("int") else "LoRA half"
    )
    backbone = AutoModelForCausalLM.from_pretrained(out / "backbone")
    if dtype.startswith("int"):
        assert not Path(
            "small/north", SAFETENSORS_WEIGHTS_NAME
        ).exists()  # PEFT finds nothing that it could take for weights
        return
    stock = PeftModel.from_pretrained(backbone, "small/north").eval()
    loaded = model.store._loaded
    loaded["south"] = replace(loaded["south"], kv={})  # PEFT knows the LoRA half only
    torch.testing.assert_close(stock(IDS).logits.detach(), model.logits(IDS, "south"), atol=1e-4, rtol=1e-4)


def _put_in_place_of(out: Path, domain: str, info: dict[str, Any]) -> None:
    """Let the compact bundle of `north` be the memory `domain`."""
    target = out / "memories" / domain
    shutil.rmtree(target)
    shutil.copytree("small/north", target)
    replaced = info | {"domain": domain, "replaces": _listed(out, domain)}
    write_record(target / "memory.json", replaced)


def _listed(out: Path, name: str) -> str:
    return str(
        json.loads((out / "koffkit.json").read_text())["files"][f"memories/{name}/memory.json"]["sha256"]
    )


def test_compact_in_place_replaces_and_verify_accepts_it(out: Path, koffkit: Koffkit) -> None:
    before = digests(out)
    made = koffkit("memory", "compact", out, "--in-place", "--data", "*.txt", "--json")
    assert made.code == 0 and set(made.json["memories"]) == {"north", "south"}
    after = digests(out)
    assert {name for name in before if after.get(name) != before[name]} == {
        name for name in before if name.startswith("memories/")
    }
    assert koffkit("verify", out, "--json").json["ok"] is True
    listed = koffkit("memory", "list", out, "--json").json["memories"]
    assert all(
        row["compacted"] and row["dtype"] == "int6" and row["origin"] == "shipped" for row in listed.values()
    )
    shown = koffkit("inspect", out, "--json").json
    assert "north, south (packed weights)" in shown["loads_in"]["koffkit"]
    assert koffkit("generate", out, "--prompt", "river", "--memory", "north", "--max-new-tokens", 2).code == 0
    assert sorted(path.name for path in (out / "memories").iterdir()) == ["north", "south"]
    again = koffkit(
        "memory", "compact", out / "north", "--rank", 1, "--in-place"
    )  # EXPORT/NAME, and a compact bundle once more
    assert again.code == 0 and koffkit("verify", out, "--json").json["ok"] is True
    path = out / "memories" / "north" / "adapter_packed.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    found = koffkit("verify", out, "--json")
    assert found.code == 4 and "adapter_packed.safetensors" in found.json["problems"][0]


def test_what_a_command_killed_at_its_end_left_is_gone(out: Path, koffkit: Koffkit) -> None:
    given = ("memory", "compact", out, "--in-place", "--data", "*.txt")
    assert koffkit(*given).code == 0
    state, litter = digests(out), out / "memories" / ".south.koffkit-partial-4194999"
    shutil.copytree(out / "memories" / "north", litter)
    (out / "memories" / ".south.koffkit-lock").touch()
    assert koffkit(*given).code == 0  # both are compact already
    assert digests(out) == state
    assert sorted(path.name for path in (out / "memories").iterdir()) == ["north", "south"]


def test_compact_without_text_or_base_says_so(
    out: Path, llama: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "of another machine"))
    first = koffkit("memory", "compact", out, "--json")
    assert "no --data" in first.err and set(first.json["memories"]) == {"north", "south"}
    assert (
        first.json["output"].endswith("/out-compact")
        and first.json["memories"]["north"]["kl"]["text"] == "probe tokens"
    )
    manifest = json.loads((out / "koffkit.json").read_text())
    manifest["base"]["model"] = "./gone"
    write_record(out / "koffkit.json", manifest)
    Path("north.txt").write_text("river stone lamp\n")
    second = koffkit(
        "memory",
        "compact",
        out / "north",
        "--output",
        "b",
        "--data",
        "{name}.txt",
        "--data",
        "east.txt",
        "--json",
    )
    kl = second.json["memories"]["north"]["kl"]
    assert "against the memory before compaction" in second.err
    assert kl["reference"] == "memory before compaction"
    assert kl["before"] == 0
    third = koffkit(
        "memory",
        "compact",
        out / "north",
        "--output",
        "c",
        "--data",
        "east.jsonl",
        "--field",
        "answer",
        "--base",
        llama,
        "--json",
    )
    assert third.json["memories"]["north"]["kl"]["reference"] == "unpruned model"
    fourth = koffkit(
        "memory", "compact", out / "north", "--output", "e", "--data", "east.jsonl", "--base", llama, "--json"
    )
    assert third.json["memories"]["north"]["kl"]["tokens"] < fourth.json["memories"]["north"]["kl"]["tokens"]
    assert koffkit("memory", "compact", out / "north", "--output", "d", "--base", "nowhere").code == 3


def test_a_compact_bundle_is_refused_on_another_backbone(
    shipped: Shipped, out: Path, koffkit: Koffkit
) -> None:
    assert koffkit("memory", "compact", out / "north", "--output", "small").code == 0
    other = Path("other")
    shutil.copytree(shipped.export / "backbone", other)
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: value + 0.01 for name, value in tensors.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    from koffkit.errors import IntegrityError

    assert KoffModel.from_pretrained(out / "backbone", ["small/north"]).domains == ["north"]
    with pytest.raises(IntegrityError, match=r"this memory \(north\) belongs to backbone"):
        KoffModel.from_pretrained(other, ["small/north"])


BAD_COMPACT: dict[str, tuple[tuple[str, ...], int, str]] = {
    "rank too high": (("out/north", "--rank", "5"), 2, "--rank 5: memory north has rank 4"),
    "rank and energy": (
        ("out/north", "--rank", "2", "--energy", "0.9"),
        2,
        "--rank and --energy exclude each other",
    ),
    "two types": (("out/north", "--dtype", "int8", "--int8"), 2, "--dtype and --int8 exclude each other"),
    "two places": (
        ("out/north", "--output", "x", "--in-place"),
        2,
        "--output and --in-place exclude each other",
    ),
    "no such memory": (("out/west",), 2, "neither an export nor a memory in one"),
    "not an export": (("east.txt",), 2, "neither an export nor a memory in one"),
    "output there": (("out/north", "--output", "out"), 2, "exists already"),
    "no text": (("out/north", "--data", "nowhere.txt"), 3, "no file matches 'nowhere.txt'"),
}


@pytest.mark.parametrize("case", BAD_COMPACT)
def test_compact_refuses(case: str, out: Path, koffkit: Koffkit) -> None:
    arguments, code, message = BAD_COMPACT[case]
    before = digests(Path())
    found = koffkit("memory", "compact", *arguments)
    assert found.code == code, found.err
    assert message in found.err
    assert "Traceback" not in found.err
    assert digests(Path()) == before
