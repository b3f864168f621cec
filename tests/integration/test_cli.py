"""The commands of the contract, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ..common import sentences, write_record
from ..conftest import Koffkit, Shipped


def test_from_recipe_to_export(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = koffkit("compress", shipped.recipe, "--dry-run", "--json").json["plan"]
    assert not (tmp_path / "runs").exists()
    done = koffkit("compress", shipped.recipe, "--json").json
    assert done["state"] == "finished" and done["plan"] == plan
    export = koffkit("export", "--format", "hf", "--json").json
    assert export["output"] == "exports/tiny-hf"
    assert export["removed"]["parameters"] == plan["budget"]["removed_params"]
    assert export["backbone"]["parameters"] == plan["backbone_params"]
    assert {domain["parameters"] for domain in export["domains"].values()} == {plan["memory_params"]}
    header = 4096
    assert plan["backbone_bytes"] <= export["backbone"]["bytes"] < plan["backbone_bytes"] + header
    assert koffkit("verify", "exports/tiny-hf").code == 0
    again = koffkit("export", "--format", "hf")
    assert again.code == 2 and "exports/tiny-hf: exists already" in again.err


def test_export_follows_the_recipe_unless_told_otherwise(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    state = json.loads((run / "run.json").read_text())
    for export, message in (
        ([{"format": "floppy"}], "--format: floppy is not installed"),
        ([{"format": "hf", "colour": "red"}], "format hf has no option colour"),
        (
            [{"format": "hf"}, {"format": "floppy"}],
            "the recipe asks for hf, floppy; name one of them with --format",
        ),
    ):
        write_record(run / "run.json", state | {"recipe": state["recipe"] | {"export": export}})
        found = koffkit("export", run, "--output", tmp_path / "out")
        assert found.code == 2
        assert message in found.err
        assert not (tmp_path / "out").exists()
    assert koffkit("export", run, "--format", "hf", "--output", tmp_path / "out").code == 0


def test_a_run_is_the_same_twice(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    assert koffkit("compress", shipped.recipe, "--output", tmp_path / "run").code == 0
    for name in (
        "masks.safetensors",
        "memories/north/kv_memory.safetensors",
        "memories/north/adapter_model.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (shipped.run / name).read_bytes()


def test_pruning_only_is_the_same_recipe_without_memory(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    off = ("--set", "memory.lora=null", "--set", "memory.kv=null")
    results = koffkit("compress", shipped.recipe, "--output", tmp_path / "run", *off, "--json").json[
        "results"
    ]
    assert set(results["mean"]) == {"unpruned", "backbone"}
    export = koffkit("export", tmp_path / "run", "--output", tmp_path / "out", "--json").json
    assert export["domains"] == {} and list(export["parity"]["max_abs"]) == ["none"]
    assert koffkit("verify", tmp_path / "out").code == 0
    text = koffkit(
        "generate", tmp_path / "out", "--prompt", "river", "--memory", "none", "--max-new-tokens", 3
    )
    assert text.code == 0 and text.out.startswith("river")


def test_metrics_have_one_object_a_step(shipped: Shipped) -> None:
    rows = [json.loads(line) for line in (shipped.run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("learn_masks", i) for i in range(1, 7)] + [
        ("recover", i) for i in range(1, 5)
    ]
    for row in rows:
        assert {
            "kl",
            "covered_mass",
            "tokens",
            "tokens_per_second",
            "peak_memory",
            "sparsity",
            "domain",
        } <= set(row)
    assert [row["domain"] == "retention" for row in rows] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    assert all("expected_sparsity" in row and "penalty" in row for row in rows[:6])


def test_swap_matrix_is_complete(shipped: Shipped) -> None:
    results = json.loads((shipped.run / "run.json").read_text())["results"]["domains"]
    for domain, found in results.items():
        assert set(found) == {"unpruned", "backbone", "matched", "swap"} and set(found["swap"]) == {
            "north",
            "south",
        } - {domain}
        assert found["unpruned"]["kl"] == pytest.approx(0, abs=1e-6) and found["matched"]["kl"] > 0


def test_inspect_says_what_everything_is(shipped: Shipped, llama: Path, koffkit: Koffkit) -> None:
    export = koffkit("inspect", shipped.export, "--json").json
    assert export["kind"] == "export" and "LlamaForCausalLM" in export["loads_in"]["transformers"]
    kinds = {
        path: koffkit("inspect", path, "--json").json["kind"]
        for path in (shipped.run, llama, shipped.export / "memories" / "north")
    }
    assert list(kinds.values()) == ["run", "checkpoint", "bundle"]
    shown = koffkit("inspect", shipped.export)
    assert shown.code == 0 and "north" in shown.out
    assert koffkit("inspect", shipped.recipe.parent).code == 2


def test_generate_with_each_memory(shipped: Shipped, koffkit: Koffkit) -> None:
    for memory in ("north", "none"):
        found = koffkit(
            "generate",
            shipped.export,
            "--prompt",
            "river stone",
            "--memory",
            memory,
            "--max-new-tokens",
            4,
            "--json",
        ).json
        row = found["completions"][0]
        assert row["prompt"] == "river stone"
        assert row["completion"]
        assert row["memory"] == (None if memory == "none" else memory)
    unknown = koffkit("generate", shipped.export, "--prompt", "x", "--memory", "east")
    assert unknown.code == 2 and "no memory 'east'; there is north, south" in unknown.err


def test_the_router_picks_the_memory(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    """Prompts are documents that were held out; the memory chosen is the one that is attached."""
    texts = {"north": sentences(1, 80)[-1], "south": sentences(2, 80)[-1], None: sentences(3, 80)[-1]}
    prompts = [part for text in texts.values() for part in ("--prompt", text)]
    found = koffkit("generate", shipped.export, *prompts, "--max-new-tokens", 4, "--json").json["completions"]
    assert [row["memory"] for row in found] == list(texts) and all(row["probability"] > 0.4 for row in found)
    named = koffkit(
        "generate",
        shipped.export,
        "--prompt",
        texts["south"],
        "--memory",
        "south",
        "--max-new-tokens",
        4,
        "--json",
    ).json
    assert named["completions"][0]["completion"] == found[1]["completion"]
    assert koffkit("inspect", shipped.export, "--json").json["router"]["labels"] == ["north", "south", "none"]
    data = shipped.recipe.parent / "data" / "north.txt"
    values = [
        koffkit("evaluate", shipped.export, "--data", data, "--memory", m, "--json").json["perplexity"]
        for m in ("auto", "north")
    ]
    assert values[0] == pytest.approx(values[1], rel=0.05)
    shutil.copytree(shipped.export, tmp_path / "out", ignore=shutil.ignore_patterns("router"))
    lost = koffkit("generate", tmp_path / "out", "--prompt", "x")
    assert lost.code == 4
    assert "router/config.json: missing; koffkit.json lists it" in lost.err
    manifest = json.loads((tmp_path / "out" / "koffkit.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "router" not in name}
    write_record(tmp_path / "out" / "koffkit.json", manifest)
    auto = koffkit("generate", tmp_path / "out", "--prompt", "x")
    assert auto.code == 2
    assert "there is no router" in auto.err
    assert "one of north, south" in auto.err


def test_router_figures_are_in_the_results(shipped: Shipped) -> None:
    router = json.loads((shipped.run / "run.json").read_text())["results"]["router"]
    assert set(router["confusion"]) == {"north", "south", "none"} and router["accuracy"] > 0.6
    assert router["documents"] == sum(sum(row.values()) for row in router["confusion"].values())


def test_evaluate_runs_exports_and_plain_models(shipped: Shipped, llama: Path, koffkit: Koffkit) -> None:
    results = koffkit("evaluate", shipped.run, "--json").json["results"]
    assert set(results["domains"]) == {"north", "south"}
    data = shipped.recipe.parent / "data" / "north.txt"
    values = {}
    for path, memory in ((shipped.export, "north"), (shipped.export, "none"), (llama, "none")):
        values[path, memory] = koffkit("evaluate", path, "--data", data, "--memory", memory, "--json").json[
            "perplexity"
        ]
    assert len(set(values.values())) == 3
    missing = koffkit("evaluate", llama)
    assert missing.code == 2 and "--data" in missing.err


def damage_weights(out: Path) -> str:
    path = out / "backbone" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    return "model.safetensors"


def damage_bundle(out: Path) -> str:
    path = out / "memories" / "south" / "kv_memory.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return "south/kv_memory.safetensors"


def remove_tokenizer(out: Path) -> str:
    (out / "backbone" / "tokenizer.json").unlink()
    return "tokenizer.json"


def change_bundle_and_its_digest(out: Path) -> str:
    """A bundle that is whole but not the one of the golden logits."""
    from koffkit.artefact.digests import file_entry

    folder = out / "memories" / "north"
    tensors = load_file(folder / "kv_memory.safetensors")
    save_file({name: value + 0.5 for name, value in tensors.items()}, folder / "kv_memory.safetensors")
    for path in (folder / "memory.json", out / "koffkit.json"):
        info = json.loads(path.read_text())
        prefix = "" if path.name == "memory.json" else "memories/north/"
        entry = file_entry(folder / "kv_memory.safetensors")
        info["files"][f"{prefix}kv_memory.safetensors"] = entry.to_json()
        if prefix:
            info["files"][f"{prefix}memory.json"] = file_entry(folder / "memory.json").to_json()
        write_record(path, info)
    return "golden logits of memory north differ"


@pytest.mark.parametrize(
    "damage", [damage_weights, damage_bundle, remove_tokenizer, change_bundle_and_its_digest]
)
def test_verify_names_what_is_off(damage, shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    shutil.copytree(shipped.export, out)
    assert koffkit("verify", out, "--json").json["ok"] is True
    expected = damage(out)
    found = koffkit("verify", out, "--json")
    assert found.code == 4 and found.json["ok"] is False
    assert any(expected in problem for problem in found.json["problems"]), found.json["problems"]
