"""Living with memories: `koffkit memory add|list|remove|compact` as a user calls them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from koffkit import KoffModel

from ..common import digests, make_checkpoint, sentences, write_record
from ..conftest import Koffkit

FAST = ("--set", "stages.recover.max_steps=6")
IDS = torch.arange(10).reshape(1, 10) + 4


def test_an_added_memory_changes_no_other_byte_and_is_a_bundle_like_the_others(
    out: Path, koffkit: Koffkit
) -> None:
    before = digests(out)
    added = koffkit("memory", "add", out, "east", "--text", "east.txt", "--json")
    assert added.code == 0, added.err
    after = digests(out)
    assert {name: after[name] for name in before} == before
    new = {name.removeprefix("memories/east/") for name in after if name not in before}
    assert new == {path.name for path in (out / "memories" / "north").iterdir()} | {
        "router_column.safetensors"
    }
    shown = added.json
    assert (
        shown["in_router"] is True and shown["figures"]["matched"]["kl"] != shown["figures"]["backbone"]["kl"]
    )
    info, north = (
        json.loads((out / "memories" / name / "memory.json").read_text()) for name in ("east", "north")
    )
    assert set(north) - {"compacted"} <= set(info) and info["backbone_digest"] == north["backbone_digest"]
    assert info["parameters"] == north["parameters"] and info["layers"] == north["layers"]
    assert info["added"]["recipe"]["stages"][0]["recover"]["max_steps"] == 5  # (6 + 4) steps for 2 domains
    verified = koffkit("verify", out, "--json").json
    assert verified["ok"]
    assert "east" in verified["golden"]
    assert verified["removed"] == []
    assert "east" in koffkit("inspect", out, "--json").json["memories"]
    row = koffkit(
        "generate", out, "--prompt", "river", "--memory", "east", "--max-new-tokens", 3, "--json"
    ).json["completions"][0]
    assert row["memory"] == "east" and row["completion"]
    assert not list(Path("runs").iterdir()) and KoffModel.from_pretrained(out).domains == [
        "east",
        "north",
        "south",
    ]


def test_the_student_is_taught_by_the_unpruned_model(grown: Path, llama: Path) -> None:
    """Its logits, not those of the backbone, are what the memory comes closer to, on text that was not
    trained on."""
    ids = KoffModel.from_pretrained(grown).tokenizer(sentences(7, 90)[-1], return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(llama)(ids).logits.detach().log_softmax(-1)
    model = KoffModel.from_pretrained(grown)
    kl = {
        m: torch.nn.functional.kl_div(
            model.logits(ids, m).log_softmax(-1), base, reduction="sum", log_target=True
        )
        for m in ("east", None)
    }
    figures = json.loads((grown / "memories" / "east" / "memory.json").read_text())["figures"]
    assert (
        figures["unpruned"]["kl"] == pytest.approx(0, abs=1e-6)
        and figures["matched"]["kl"] < figures["backbone"]["kl"]
    )
    assert kl["east"] < kl[None]


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("memory.lora.rank=2", ("memory", "lora", "rank"), 2),
        ("memory.kv=null", ("memory", "kv"), None),
        ("sequence_length=12", ("sequence_length",), 12),
        ("seed=4", ("seed",), 4),
        ("holdout=0.2", ("holdout",), 0.2),
        ("distill.top_k=20", ("distill", "top_k"), 20),
        ("train.gradient_accumulation=2", ("train", "gradient_accumulation"), 2),
    ],
)
def test_settings_can_be_changed(
    setting: str, place: tuple[str, ...], value: Any, out: Path, koffkit: Koffkit
) -> None:
    assert koffkit("memory", "add", out, "east", "--text", "east.txt", *FAST, "--set", setting).code == 0
    info = json.loads((out / "memories" / "east" / "memory.json").read_text())
    found = info["added"]["recipe"]
    assert found["stages"][0]["recover"]["max_steps"] == 6
    for key in place:
        found = found[key]
    assert found == value
    if setting == "memory.lora.rank=2":
        tensors = load_file(out / "memories" / "east" / "adapter_model.safetensors")
        assert {value.shape[0] for name, value in tensors.items() if "lora_A" in name} == {2}
    if setting == "memory.kv=null":
        assert not (out / "memories" / "east" / "kv_memory.safetensors").exists()


def test_facts_report_recall_and_a_field_is_followed(out: Path, koffkit: Koffkit) -> None:
    jsonl = ("--jsonl", "east.jsonl", *FAST, "--json")
    facts = koffkit(
        "memory", "add", out, "east", *jsonl, "--prompt-field", "prompt", "--answer-field", "answer"
    ).json
    assert "recall" in facts["figures"]["matched"]
    other = koffkit("memory", "add", out, "east2", *jsonl, "--field", "body").json
    assert (
        "recall" not in other["figures"]["matched"]
        and other["figures"]["unpruned"] != facts["figures"]["unpruned"]
    )
    missing = koffkit("memory", "add", out, "east3", *jsonl, "--field", "nowhere")
    assert missing.code == 3 and "no field 'nowhere'" in missing.err


def test_the_base_may_have_moved(
    out: Path, llama: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "of another machine"))
    manifest = json.loads((out / "koffkit.json").read_text())
    manifest["base"]["model"] = "./gone"
    write_record(out / "koffkit.json", manifest)
    add = ("memory", "add", out, "east", "--text", "east.txt", *FAST)
    found = koffkit(*add)
    assert found.code == 3
    assert "no folder './gone'" in found.err
    assert "--base PATH" in found.err
    other = make_checkpoint(tmp_path / "other", intermediate_size=64)
    found = koffkit(*add, "--base", other)
    assert found.code == 4 and "not the base that" in found.err
    assert not (out / "memories" / "east").exists() and not Path("runs").exists()
    assert koffkit(*add, "--base", llama).code == 0


def test_a_manifest_without_its_recipe_is_refused(out: Path, koffkit: Koffkit) -> None:
    manifest = json.loads((out / "koffkit.json").read_text())
    del manifest["recipe"]
    write_record(out / "koffkit.json", manifest)
    refused = koffkit("memory", "add", out, "east", "--text", "east.txt")
    assert refused.code == 4 and "koffkit.json: recipe: field required" in refused.err


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "taken": (("north", "--text", "east.txt"), 2, "there is a memory 'north' already"),
    "reserved auto": (("auto", "--text", "east.txt"), 2, "auto: cannot be a domain"),
    "reserved none": (("none", "--text", "east.txt"), 2, "none: cannot be a domain"),
    "reserved attached": (("attached", "--text", "east.txt"), 2, "attached: cannot be a domain"),
    "bad name": (("../east", "--text", "east.txt"), 2, "not a domain's name"),
    "no text": (("east",), 2, "either --text GLOB or --jsonl GLOB"),
    "both": (
        ("east", "--text", "east.txt", "--jsonl", "east.jsonl"),
        2,
        "either --text GLOB or --jsonl GLOB",
    ),
    "field of text": (("east", "--text", "east.txt", "--field", "x"), 2, "--field goes with --jsonl"),
    "half of facts": (("east", "--jsonl", "east.jsonl", "--prompt-field", "prompt"), 2, "go together"),
    "missing file": (("east", "--text", "nowhere.txt"), 3, "no file matches 'nowhere.txt'"),
    "empty": (("east", "--text", "empty.txt"), 3, "domains.east: the source holds no documents"),
    "fixed setting": (
        ("east", "--text", "east.txt", "--set", "mask.global_sparsity=0.5"),
        2,
        "fixed by the backbone",
    ),
    "bad setting": (
        ("east", "--text", "east.txt", "--set", "memory.lora.rank=none"),
        2,
        "memory.lora.rank: 'none'",
    ),
    "unknown setting": (
        ("east", "--text", "east.txt", "--set", "memory.lora.rnk=2"),
        2,
        "did you mean 'rank'",
    ),
    "no halves": (
        ("east", "--text", "east.txt", "--set", "memory.lora=null", "--set", "memory.kv=null"),
        2,
        "all halves are off",
    ),
    "no such layer": (("east", "--text", "east.txt", "--set", "memory.layers=[9]"), 2, "use layers 0 to 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_add_refuses(case: str, out: Path, koffkit: Koffkit) -> None:
    arguments, code, message = BAD[case]
    Path("empty.txt").write_text("\n\n")
    before = digests(out)
    found = koffkit("memory", "add", out, *arguments, "--json")
    assert found.code == code, found.err
    assert message in found.err
    assert "Traceback" not in found.err
    assert found.json["exit_code"] == code
    assert digests(out) == before and not list(Path().glob("runs/*"))


def test_what_is_no_export_and_a_damaged_backbone_are_refused(
    out: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    for command in (
        ("add", tmp_path, "east", "--text", "east.txt"),
        ("list", tmp_path),
        ("remove", tmp_path, "north"),
    ):
        found = koffkit("memory", *command)
        assert found.code == 2 and "not an export (no koffkit.json)" in found.err
    path = out / "backbone" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    found = koffkit("memory", "add", out, "east", "--text", "east.txt")
    assert found.code == 4 and "backbone/model.safetensors: its sha256 is not the one in" in found.err


def test_interrupted_and_resumed_equals_uninterrupted(out: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    settings = (
        "--text",
        "east.txt",
        "--set",
        "stages.recover.max_steps=40",
        "--set",
        "train.checkpoint_every=5",
    )
    assert koffkit("memory", "add", whole, "east", *settings).code == 0
    before = digests(out)
    command = [sys.executable, "-m", "koffkit", "memory", "add", str(out), "east", *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics, deadline = Path("runs/out-east/metrics.jsonl"), time.monotonic() + 120
    while (
        not (metrics.exists() and metrics.read_text().count("\n") > 6)
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert digests(out) == before
    again = koffkit("memory", "add", out, "east", *settings)
    assert again.code == 2 and "go on with --resume" in again.err
    assert "memory add" in koffkit("export", "runs/out-east").err
    changed = koffkit("memory", "add", out, "east", *settings, "--resume", "--set", "seed=9")
    assert changed.code == 2 and "the recipe changed in seed" in changed.err
    assert koffkit("memory", "add", out, "east", *settings, "--resume").code == 0
    for name in ("adapter_model.safetensors", "kv_memory.safetensors"):
        assert (out / "memories" / "east" / name).read_bytes() == (
            whole / "memories" / "east" / name
        ).read_bytes()
    assert not Path("runs/out-east").exists()
